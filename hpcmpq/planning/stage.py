"""The plan stage: look at the model and the data, write `plan.json`."""

import dataclasses
import logging
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hpcmpq.config import Config, to_values
from hpcmpq.errors import DamagedFile, UserError
from hpcmpq.formats import FORMATS
from hpcmpq.models.data.kept_samples import keep_samples
from hpcmpq.models.data.splits import Splits, load_splits
from hpcmpq.models.deployable import deployable_groups
from hpcmpq.models.dequantized import unpacked
from hpcmpq.models.description import describe_model
from hpcmpq.models.gguf_config import check_describable
from hpcmpq.models.groups import num_fixed_bytes
from hpcmpq.models.load import load_model, pick_device
from hpcmpq.models.original_marks import check_same_outputs, check_same_settings, original_marks
from hpcmpq.models.outputs import forward, tried_forward
from hpcmpq.models.repeatable import check_repeatable
from hpcmpq.models.stored_dtype import check_scales, check_stored_dtype
from hpcmpq.models.stored_weights import num_unused_bytes
from hpcmpq.models.streaming import load_streamed, shapes_only
from hpcmpq.models.weight_digests import streamed_fingerprint, weight_marks, weights_fingerprint
from hpcmpq.plan import Plan, content_hash, make_units, plan_to_json
from hpcmpq.planning.cost_estimate import estimate_cost
from hpcmpq.planning.facts import TARGETS, check_same_facts, default_facts, find_environment, find_facts
from hpcmpq.planning.rounded_activations import check_activations, keep_ranges
from hpcmpq.planning.scaling import Site, Workload, best_samples_per_unit
from hpcmpq.quantized.activations import rounds_activations
from hpcmpq.quantized.stored_codes import make_codes
from hpcmpq.sensitivity import find_method, forward_only_names
from hpcmpq.solve.feasibility import check_solvable
from hpcmpq.space import Group, SearchSpace
from hpcmpq.store.json_files import write_artefact
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir
from hpcmpq.targets import find_target, narrowed

log = logging.getLogger(__name__)

PLANNED_WORKERS = 64
"""Units are cut for this many workers when the config does not say: the same on every machine, since the plan
must not depend on where it is made. More workers help little once start-up takes as long as the units
(bench/scaling.py)."""

SAMPLE_S, SPREAD = 10.0, 0.1
"""A sample's time and how much it varies, for the same purpose; only the order of magnitude matters."""


def prepare(config: Config, run: RunDir, import_paths: tuple[str, ...]) -> Plan:
    """Write `plan.json`, or check that the one there plans the same measurement.

    Raises:
        PlanMismatch: If the run directory was planned with another configuration.
        UserError: If the model, the data or a pattern is wrong.
        Infeasible: If no assignment meets the budgets.
    """
    method = find_method(config.sensitivity.method)
    if config.sensitivity.products and not method.forward_only:
        raise UserError(
            f"sensitivity.products is for {' and '.join(forward_only_names())}; leave it out with "
            f"{config.sensitivity.method}"
        )
    config = dataclasses.replace(config, model=unpacked(config.model, run.original_path))
    target = find_target(config.target) if config.target else None
    if target:
        check_describable(target, Path(str(config.model.path)))
    if method.attention == "eager" and config.model.path:
        log.info("%s differentiates twice: using eager attention", config.sensitivity.method)
    model = None
    if not config.model.stream:
        model = load_model(config.model, attention=method.attention, import_paths=import_paths)
    planned = _planned_before(run)
    if planned is not None and planned.config["calibration"]["special_tokens"] is None:
        config = _with_samples_as_before(config, run)
    splits = load_splits(config, import_paths)
    block_bytes = None
    if model is None:
        model, block_bytes, (groups, fixed_bytes, weights) = _look_streamed(config, splits)
    else:
        check_stored_dtype(model, str(config.model.path), _stored_dtype(config))
        groups = deployable_groups(model, config.groups, splits.calibration[:1].inputs, target)
        check_repeatable(model, splits.calibration.of_all_lengths(config.calibration.samples_per_pass).inputs)
        fixed_bytes = num_fixed_bytes(
            model, groups, _stored_dtype(config), target.fixed_bytes if target else None
        )
        weights = weights_fingerprint(model)
    if config.model.path and (target is None or target.keeps_unused):
        count = target.fixed_bytes if target else None
        fixed_bytes += num_unused_bytes(model, Path(config.model.path), count)
    names = tuple(sorted(config.formats, key=lambda name: (FORMATS[name].num_bits, name)))
    formats = (names,) * len(groups) if target is None else narrowed(target, groups, names, config.quantizer)
    _say_narrowed(config, names, formats)
    space = SearchSpace(groups, formats)
    first = splits.calibration[:1].to(pick_device(config.model.device))
    with torch.no_grad():
        outputs_NTV = forward(model, first.inputs)
    check_activations(config, model, space)
    if target and target.export == "gguf":
        check_scales(model, space, torch.float16)
    facts = find_facts(config, weights, splits, space, outputs_NTV.shape[-1])
    if planned is not None:
        unknown = {TARGETS: facts[TARGETS]} if TARGETS in facts else {}
        check_same_facts(planned.facts, facts, str(run.path), default_facts() | unknown)
        check_same_settings(model, planned)
        check_same_outputs(planned, splits.calibration[:1].inputs, outputs_NTV)
        # Word for word, since what is measured already is named after them.
        facts, fingerprint, units = planned.facts, planned.fingerprint, planned.units
    else:
        fingerprint = content_hash(facts)
        units = make_units(
            fingerprint,
            len(groups),
            len(splits.calibration),
            groups_per_unit=config.sensitivity.groups_per_unit or len(groups),
            samples_per_unit=config.calibration.samples_per_unit or _samples_per_unit(config, splits),
        )
    plan = Plan(
        config=to_values(config),
        space=space,
        units=units,
        facts=facts,
        fingerprint=fingerprint,
        import_paths=import_paths,
        fixed_bytes=fixed_bytes,
        environment=find_environment(),
        weights=weight_marks(model, config.model.dtype),
        original=(planned.original if planned is not None else {})
        or original_marks(model, splits.calibration[:1].inputs, outputs_NTV),
    )
    check_solvable(plan)
    if not config.budgets:
        log.warning("budgets is empty, so nothing keeps the solution from the largest formats; name a budget")
    if config.quantizer.activations == "static" and rounds_activations(space):
        keep_ranges(run, plan, config, model, splits.calibration)
    keep_samples(run, splits.calibration)
    write_artefact(run.plan_path, plan_to_json(plan))
    if config.quantizer.rounding == "gptq" or config.quantizer.checkpoints:
        samples = splits.calibration.to(pick_device(config.model.device))
        size = config.calibration.samples_per_pass
        make_codes(run, fingerprint, model, space, config.quantizer, samples, size)
    if method.forward_only:
        batch = splits.calibration[: config.calibration.samples_per_pass].to(pick_device(config.model.device))
        cost = estimate_cost(model, config, space, plan.units, batch, block_bytes)
        write_artefact(run.file("cost.json"), dataclasses.asdict(cost))
    return plan


def _planned_before(run: RunDir) -> Plan | None:
    """The plan that is there; None where there is none, or a damaged one, which is then written anew."""
    if not run.plan_path.exists():
        return None
    try:
        return read_plan(run, with_times=False)
    except DamagedFile:
        log.warning("%s is damaged; planning anew", run.plan_path)
        return None


def _with_samples_as_before(config: Config, run: RunDir) -> Config:
    """The config of a run that was planned before there was `calibration.special_tokens`; it keeps its samples."""
    if not config.calibration.special_tokens:
        return config
    log.warning(
        "%s was planned before there was calibration.special_tokens: windows of text stay without the tokenizer's "
        "special tokens there; for windows that have them use a new run directory",
        run.path,
    )
    calibration = dataclasses.replace(config.calibration, special_tokens=None)
    return dataclasses.replace(config, calibration=calibration)


def _samples_per_unit(config: Config, splits: Splits) -> int:
    return best_samples_per_unit(
        SAMPLE_S,
        len(splits.calibration),
        config.calibration.samples_per_pass,
        PLANNED_WORKERS,
        Workload(np.array([]), SPREAD),
        Site(),
    )


def _look_streamed(
    config: Config, splits: Splits
) -> tuple[nn.Module, tuple[int, int], tuple[tuple[Group, ...], int, str]]:
    """The streamed model, bytes outside its blocks and of the largest; groups, bytes outside them, digest."""
    if not find_method(config.sensitivity.method).forward_only:
        raise UserError(
            f"{config.sensitivity.method} needs the whole model; use {' or '.join(forward_only_names())}, "
            "or set model.stream: false"
        )
    streamed = load_streamed(config.model)
    check_stored_dtype(streamed.model, str(config.model.path), _stored_dtype(config), streamed.weights)
    weights = streamed_fingerprint(streamed.model, streamed.weights)
    batch = splits.calibration.of_all_lengths(config.calibration.samples_per_pass)
    with shapes_only(config.model, batch.inputs) as (model, inputs), torch.no_grad():
        tried_forward(model, inputs)
        target = find_target(config.target) if config.target else None
        groups = deployable_groups(model, config.groups, inputs, target)
        num_bytes = num_fixed_bytes(
            model, groups, _stored_dtype(config), target.fixed_bytes if target else None
        )
        found = groups, num_bytes, weights
    itemsize = getattr(torch, config.model.dtype).itemsize
    sizes = [itemsize * sum(p.numel() for p in block.parameters()) for block in streamed.blocks]
    outside = itemsize * sum(p.numel() for p in streamed.model.parameters()) - sum(sizes)
    return streamed.model, (outside, max(sizes)), found


def _say_narrowed(config: Config, names: tuple[str, ...], formats: tuple[tuple[str, ...], ...]) -> None:
    lost = [name for name in names if not any(name in kept for kept in formats)]
    if lost:
        log.info("target %s cannot hold %s: left out", config.target, ", ".join(lost))
    partly = sum(len(kept) < len(names) - len(lost) for kept in formats)
    if partly:
        log.info("%d groups are no whole number of quantization groups wide and get fewer formats", partly)


def _stored_dtype(config: Config) -> torch.dtype | None:
    """What a Hugging Face directory says its weights are stored in; None for a factory's model."""
    dtype = getattr(torch, describe_model(config.model).dtype or "", None)
    return dtype if isinstance(dtype, torch.dtype) else None
