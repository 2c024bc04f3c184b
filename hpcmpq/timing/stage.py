"""The time stage: rounds of measurement on disk, and their medians in `RUN/time.json`.

    RUN/times/<phase>-<round>.json   seconds of one round; the name existing is the only "done" mark
    RUN/time.json                    partition, medians, noise, and the formats without a kernel

A round is another measurement of the same, so an interrupted stage goes on where it was, on the same machine.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hpcmpq.errors import DamagedFile, PlanMismatch, UserError
from hpcmpq.models.attention_products import attach_products
from hpcmpq.models.data.splits import load_splits
from hpcmpq.models.load import load_model
from hpcmpq.models.original_marks import check_same_settings
from hpcmpq.models.weight_digests import check_same_weights
from hpcmpq.plan import Plan, content_hash
from hpcmpq.settings import Config
from hpcmpq.store.json_files import read_json, write_artefact
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir
from hpcmpq.timing.machine import describe_machine
from hpcmpq.timing.measure import Classes, measure_round, warm_up
from hpcmpq.timing.passes import TimedModel, timed_model

log = logging.getLogger(__name__)


def measure_times(run: RunDir, on_round: Callable[[int, int], None]) -> dict[str, Any]:
    """Measure what is missing of all rounds and write `time.json`; returns its values.

    Args:
        run: A planned run directory.
        on_round: Called with the number of rounds done and of all rounds.

    Raises:
        UserError: If the model cannot be traced, or a group has no kernel here.
        PlanMismatch: If the run directory holds times of another machine or plan.
    """
    plan = read_plan(run, with_times=False, screened=False)
    config = plan.config
    if config.timing.threads is not None:
        torch.set_num_threads(config.timing.threads)
    if any(group.is_cache for group in plan.space.groups):
        raise UserError(
            "decoding is timed without a cache, so formats of one have no time; plan without groups.kv_cache"
        )
    model = load_model(config.model, import_paths=plan.import_paths)
    check_same_settings(model, plan)
    check_same_weights(model, plan)
    attach_products(model, plan.space.groups)
    device = next(model.parameters()).device
    machine = describe_machine(device)
    samples = load_splits(config, plan.import_paths).calibration
    batch = samples[: config.timing.samples or config.calibration.samples_per_pass].to(device)
    phases = phase_inputs(model, batch.inputs)
    values: dict[str, Any] = {
        "format_version": 1,
        "fingerprint": plan.fingerprint,
        "machine": machine,
        "dtype": config.model.dtype,
        "generated_tokens": config.timing.generated_tokens,
        "rounds": config.timing.rounds,
        "phases": {},
    }
    num_rounds = config.timing.rounds * len(phases)
    for place, (phase, inputs) in enumerate(phases.items()):
        timed = timed_model(model, plan.space, config.quantizer, inputs)
        classes = timed.classes(config.timing.max_combinations)
        identity = _identity(plan, config, machine, phase, inputs, classes)
        before = place * config.timing.rounds
        rounds = _rounds(
            run,
            phase,
            timed,
            classes,
            identity,
            config.timing.rounds,
            lambda n, b=before: on_round(b + n, num_rounds),  # type: ignore[misc]
        )
        values["phases"][phase] = summarise(timed, classes, rounds, inputs)
    write_artefact(run.time_path, values)
    return values


def phase_inputs(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """{phase: inputs}: `prefill` and, where the model generates text, `decode` of one token; else `batch`.

    Decoding has no cache here: its attention reads one position, which no assignment changes.
    """
    if "input_ids" not in inputs:
        return {"batch": inputs}
    can_generate = getattr(model, "can_generate", None)
    if not (callable(can_generate) and can_generate()):
        return {"prefill": inputs}
    length = inputs["input_ids"].shape[1]
    one = {
        name: tensor[:, :1].contiguous() if tensor.ndim > 1 and tensor.shape[1] == length else tensor
        for name, tensor in inputs.items()
    }
    return {"prefill": inputs, "decode": one}


def _identity(
    plan: Plan,
    config: Config,
    machine: dict[str, Any],
    phase: str,
    inputs: dict[str, Tensor],
    classes: Classes,
) -> dict[str, Any]:
    """What times depend on, as plain values."""
    return {
        "plan": plan.fingerprint,
        "machine": " ".join(str(value) for value in machine.values()),
        "shapes": [[name, list(tensor.shape)] for name, tensor in inputs.items()],
        "combinations": content_hash(
            [[key, parts, found.tied, found.formats] for key, (parts, found) in classes.items()]
        )[:12],
    }  # fmt: skip


def _rounds(
    run: RunDir, phase: str, timed: TimedModel, classes: Classes, identity: dict[str, Any], count: int,
    on_round: Callable[[int], None],
) -> list[dict[str, Any]]:  # fmt: skip
    """All rounds of a phase, those on disk read and the missing ones measured."""
    rounds, warm = [], False
    for number in range(count):
        path = run.times_path / f"{phase}-{number:03d}.json"
        found = _known_round(run, path, identity)
        if found is None:
            if not warm:
                warm_up(timed, classes)
                warm = True
            found = {"identity": identity, **measure_round(timed, classes, number)}
            write_artefact(path, found)
        rounds.append(found)
        on_round(number + 1)
    return rounds


def _known_round(run: RunDir, path: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """A round on disk, or None where there is none or its file is damaged."""
    if not path.exists():
        return None
    try:
        found: dict[str, Any] = read_json(path, f"hpcmpq time {run.path}")
        before: dict[str, Any] = found["identity"]
    except DamagedFile:
        log.warning("%s is damaged; measuring that round anew", path)
        return None
    for key, value in identity.items():
        if before.get(key) != value:
            raise PlanMismatch(
                f"{run.times_path} holds times of another {key} ({before.get(key)}, now {value}); "
                f"move that folder away and run `hpcmpq time {run.path}` again"
            )
    return found


def summarise(
    timed: TimedModel, classes: Classes, rounds: list[dict[str, Any]], inputs: dict[str, Tensor]
) -> dict[str, Any]:
    """Values of one phase in `time.json`: medians over rounds, and how much they vary."""
    names = [group.name for group in timed.space.groups]
    class_of = {part: key for key, (parts, _) in classes.items() for part in parts}
    medians: dict[str, dict[str, Any]] = {}
    noise = []
    for key, (_, found) in classes.items():
        rows = []
        for number in range(len(found.formats) + 1):
            seconds = np.array([s for r in rounds for s in r["combinations"][key].get(str(number), ())])
            middle = float(np.median(seconds))
            spread = float(np.median(np.abs(seconds - middle)) / middle)
            noise.append(spread)
            rows.append({"seconds": middle, "spread": spread, "count": len(seconds)})
        combinations = [
            {"formats": list(formats), **row} for formats, row in zip(found.formats, rows[1:], strict=True)
        ]
        medians[key] = {
            "rule": found.rule,
            "tied": [list(own) for own in found.tied],
            "original": rows[0],
            "combinations": combinations,
        }
    shared_s = float(np.median([s for r in rounds for s in r["shared"]]))
    parts = [
        {
            "groups": [names[group] for group in part.groups],
            "operations": len(part.nodes),
            "result": part.nodes[-1].name if part.nodes else "",
            "class": class_of.get(place),
        }
        for place, part in enumerate(timed.parts)
    ]
    return {
        "inputs": {name: list(tensor.shape) for name, tensor in inputs.items()},
        "parts": parts,
        "classes": medians,
        "shared_s": shared_s,
        "original_s": shared_s + sum(medians[key]["original"]["seconds"] for key in class_of.values()),
        "noise": float(np.median(noise)),
        "no_kernel": sorted({f"{name}: {reason}" for (_, name), reason in timed.refused.items()}),
    }
