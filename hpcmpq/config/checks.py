"""What types cannot refuse: unknown keys, with the nearest valid one, and values out of range."""

import dataclasses
import difflib
import math
from collections.abc import Mapping
from typing import Any, get_args

from hpcmpq.errors import UserError
from hpcmpq.formats import FORMATS, WEIGHT_FORMATS, check_weight_format
from hpcmpq.settings import Config
from hpcmpq.tables import table_name
from hpcmpq.targets import check_quantizer, find_target
from hpcmpq.targets.gpus import computed_as_measured
from hpcmpq.targets.kv_cache import check_cache_formats

LARGEST_PROBES = 1024
"""Signs of so many projections of a token take what exact features of as many outputs do."""

LARGEST_SEED = 2**63
"""Above the largest that torch takes."""


def check_keys(values: Mapping[str, Any], kind: type, source: str, place: str) -> None:
    """Raise `UserError` with the nearest valid key if a key is not one of the dataclass `kind`."""
    known = {f.name: f for f in dataclasses.fields(kind)}
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)
            raise UserError(
                f"{source}: unknown key '{place}{key}'; did you mean '{place}{near[0]}'? "
                f"valid keys: {', '.join(known)}"
            )
        if dataclasses.is_dataclass(known[key].type) and isinstance(value, Mapping):
            check_keys(value, known[key].type, source, f"{place}{key}.")  # type: ignore[arg-type]
        entry = next(iter(get_args(known[key].type)), None)
        if dataclasses.is_dataclass(entry) and isinstance(value, list | tuple):
            for number, item in enumerate(value):
                if isinstance(item, Mapping):
                    check_keys(item, entry, source, f"{place}{key}.{number}.")  # type: ignore[arg-type]


def check_plain(value: Any, declared: Any, source: str, place: str) -> None:
    """Raise `UserError` at what types take and nothing can use: `yes` for a number, infinity, a text with a NUL.

    Args:
        value: A plain value, or a mapping or a list of such.
        declared: Its type, such as a dataclass of `hpcmpq.settings`.
        source: Of the config, for messages.
        place: Name of the key.
    """
    if isinstance(value, Mapping):
        types = (
            {f.name: f.type for f in dataclasses.fields(declared)}
            if dataclasses.is_dataclass(declared)
            else {}
        )
        rest = next(iter(get_args(declared)[1:]), None)
        for key, item in value.items():
            check_plain(item, types.get(key, rest), source, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            check_plain(item, next(iter(get_args(declared)), None), source, f"{place}.{number}")
    elif isinstance(value, bool):
        kinds = {declared, *get_args(declared)}
        if kinds & {int, float} and bool not in kinds:
            raise UserError(f"{source}: {place} must be a number, got {str(value).lower()}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{source}: {place} must be a finite number, got {value}")
    elif isinstance(value, str) and "\0" in value:
        raise UserError(f"{source}: {place} holds a NUL character; write it anew")


def check_values(config: Config, source: str) -> None:
    """Raise `UserError` at the first value that no type can refuse: wrong sign, unknown or doubled names."""
    if (config.model.path is None) == (config.model.factory is None):
        raise UserError(f"{source}: model needs exactly one of path and factory")
    if config.target is not None:
        check_quantizer(find_target(config.target), config.quantizer)
        if config.model.path is None:
            raise UserError(f"{source}: target {config.target} needs a Hugging Face directory in model.path")
    if config.gpu is not None:
        if config.target != "vllm":
            raise UserError(
                f"{source}: gpu names what target vllm runs on; set target: vllm, or leave out gpu"
            )
        computed_as_measured(config.gpu, config.formats)
    check_cache_formats(config.groups.kv_cache, config.target, config.gpu, source)
    ranged = any(FORMATS[name].takes_ranges for name in config.groups.kv_cache)
    if ranged and config.quantizer.activations == "static":
        raise UserError(
            f"{source}: groups.kv_cache has a scale of each token and head, as a server does; set "
            "quantizer.activations: dynamic"
        )
    for name in config.quantizer.checkpoints:
        check_weight_format(name, f"{source}: quantizer.checkpoints")
        if FORMATS[name].type != "int" or name not in config.formats:
            raise UserError(
                f"{source}: quantizer.checkpoints names {name}; it takes integer formats that formats lists"
            )
    if not config.formats:
        raise UserError(f"{source}: formats is empty; known: {', '.join(WEIGHT_FORMATS)}")
    for name in config.formats:
        check_weight_format(name, f"{source}: formats")
    if len(set(config.formats)) != len(config.formats):
        raise UserError(f"{source}: formats names a format twice: {', '.join(config.formats)}")
    for name, value in {
        "calibration.num_samples": config.calibration.num_samples,
        "calibration.sequence_length": config.calibration.sequence_length,
        "calibration.samples_per_pass": config.calibration.samples_per_pass,
        "calibration.rounding_samples": config.calibration.rounding_samples,
        "calibration.samples_per_unit": config.calibration.samples_per_unit,
        "calibration.workers": config.calibration.workers,
        "sensitivity.probes": config.sensitivity.probes,
        "sensitivity.groups_per_unit": config.sensitivity.groups_per_unit,
        "sensitivity.options_per_pass": config.sensitivity.options_per_pass,
        "sensitivity.options_per_wave": config.sensitivity.options_per_wave,
        "quantizer.group_size": config.quantizer.group_size,
        "quantizer.damping": config.quantizer.damping,
        "evaluation.num_samples": config.evaluation.num_samples,
        "refine.max_evaluations": config.refine.max_evaluations,
        "timing.samples": config.timing.samples,
        "timing.rounds": config.timing.rounds,
        "timing.max_combinations": config.timing.max_combinations,
        "timing.threads": config.timing.threads,
        "solver.time_limit_s": config.solver.time_limit_s,
    }.items():
        if value is not None and not value > 0:
            raise UserError(f"{source}: {name} must be positive, got {value}")
    probes = config.sensitivity.probes
    if probes is not None and probes > LARGEST_PROBES:
        raise UserError(
            f"{source}: sensitivity.probes must be at most {LARGEST_PROBES:,}, got {probes:,}; take 64 where the "
            "default of 4 leaves too much noise, or null for exact features of up to 1,024 outputs"
        )
    if config.calibration.balance_experts and config.quantizer.rounding != "gptq":
        raise UserError(
            f"{source}: calibration.balance_experts chooses the samples that quantizer.rounding gptq is fitted on; set "
            "quantizer.rounding: gptq, or leave it out"
        )
    for name in config.budgets:
        if table_name(name) != name:
            raise UserError(f"{source}: budgets names {table_name(name)} twice; leave out {name}")
    shrink = config.solver.shrink
    if shrink != "auto" and (isinstance(shrink, str) or not shrink >= 0):
        raise UserError(f"{source}: solver.shrink must be auto or a number of at least 0, got {shrink!r}")
    positions = config.sensitivity.loss_positions
    if isinstance(positions, int) and positions < 1:
        raise UserError(f"{source}: sensitivity.loss_positions must be positive or all, got {positions}")
    strength = config.reround.strength
    if strength is not None and not 0 <= strength <= 1:
        raise UserError(f"{source}: reround.strength must be from 0 to 1, got {strength}")
    if config.refine.link_points < 3:
        raise UserError(f"{source}: refine.link_points must be at least 3, got {config.refine.link_points}")
    for name, value in {
        "calibration.held_out": config.calibration.held_out,
        "timing.generated_tokens": config.timing.generated_tokens,
        "solver.robust_k": config.solver.robust_k,
        "solver.seed": config.solver.seed,
    }.items():
        if value < 0:
            raise UserError(f"{source}: {name} must not be negative, got {value}")
    for name, value in {
        "calibration.seed": config.calibration.seed,
        "solver.seed": config.solver.seed,
    }.items():
        if not -LARGEST_SEED <= value < LARGEST_SEED:
            bound = "at least -2^63" if value < 0 else "less than 2^63"
            raise UserError(f"{source}: {name} must be {bound}, got {value}")
    _check_tasks(config, source)


def _check_tasks(config: Config, source: str) -> None:
    names = [task.name for task in config.evaluation.tasks]
    for name in names:
        if not name.replace("-", "_").isidentifier() or name == "data" or names.count(name) > 1:
            raise UserError(
                f"{source}: evaluation.tasks name {name!r} must be unique, not 'data', and of letters, digits, - and _"
            )
