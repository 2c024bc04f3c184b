"""How long a calibration will take: from units that were measured, or from a config alone."""

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcmpq.api.stages import units_before
from hpcmpq.cli.console import rows, say
from hpcmpq.cli.summaries import cost, duration, planned
from hpcmpq.errors import UserError
from hpcmpq.plan import Plan
from hpcmpq.planning.recommended import recommend
from hpcmpq.planning.scaling import Prediction, Site, measured_workload, predict
from hpcmpq.settings import CalibrationConfig, Config, ModelConfig
from hpcmpq.store.attempts import read_processes_of
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.shards import pending
from hpcmpq.wording import show_bytes

if TYPE_CHECKING:
    from hpcmpq.planning.dry import DryPlan

TFLOPS = 100.0
"""TFLOP/s of a device by default: about half of what a large GPU of 2023 does in TF32."""


def counts(plan: Plan) -> dict[str, Any]:
    """How much a plan is about."""
    return {
        "num_groups": len(plan.space.groups),
        "num_weights": sum(group.numel for group in plan.space.groups),
        "num_options": plan.space.num_options,
        "num_units": len(plan.units),
    }


def of_missing(run: RunDir, workers: int) -> dict[str, Any]:
    """Say and return how long the units that are missing take on up to `workers` workers, from those measured.

    The largest number of workers that are busy for most of the time is recommended. Of a run that is screened the units
    are those that are chosen by now.

    Raises:
        UserError: If none was measured, with what to do.
    """
    plan = read_plan(run)
    num_codes, num_passes = units_before(run)
    enough = max(2, num_codes, num_passes)
    if num_passes:
        raise UserError(
            "what a screened run measures is chosen by its first pass; run "
            f"`hpcmpq calibrate {run.path} --at-most {enough}` on the kind of node that will calibrate, then ask again"
        )
    if num_codes:
        say(f"codes come first, which is not predicted: {num_codes} units are left")
    missing, _ = pending(plan, run)
    work = measured_workload(
        plan, read_processes_of(plan, run), missing, f"hpcmpq calibrate {run.path} --at-most {enough}"
    )
    found = [predict(work, Site(), n) for n in sorted({1, 2, workers // 2 or 1, workers})] if missing else []
    if not found:
        say("every unit is measured: nothing to predict")
        return {"predictions": [], "recommended": None}
    best = recommend(work, Site(), workers)
    _table(found, "prediction from measured units")
    busy = f"{100 * best.efficiency:.0f} % of their time goes into units"
    say(
        f"{best.num_workers} of up to {workers} workers are recommended: {busy}, {duration(best.makespan_s)}, "
        f"{best.node_hours:.3g} node hours with {Site().workers_per_node} workers a node"
    )
    return {
        "predictions": [dataclasses.asdict(prediction) for prediction in found],
        "recommended": dataclasses.asdict(best),
    }


def dry(path: Path, tflops: float) -> dict[str, Any]:
    """Say and return what a run of a config, or of a model's config.json with all defaults and streamed, would be.

    Raises:
        UserError: If there is no such config, or the rate is none.
    """
    from hpcmpq.config import read_config
    from hpcmpq.planning.dry import Device, dry_plan

    if not 0 < tflops < math.inf:
        raise UserError(f"--tflops must be a number above 0, got {tflops:g}")
    if path.suffix == ".json":
        if path.name != "config.json" or not path.is_file():
            raise UserError(f"plan --dry takes a model's file config.json or a YAML config, not {path}")
        model = ModelConfig(path=str(path.resolve().parent), stream=True)
        config = Config(model, CalibrationConfig(data=""))
    else:
        config = read_config(path)
    found = dry_plan(config, Device(flops_per_s=1e12 * tflops), Site())
    _show(found, tflops)
    return {
        **counts(found.plan),
        "cost": dataclasses.asdict(found.cost),
        "model_bytes": found.model_bytes,
        "outside_bytes": found.block_bytes[0],
        "block_bytes": found.block_bytes[1],
        "sizes": found.sizes,
        "tflops": tflops,
        "seconds": found.seconds,
        "device_hours": found.device_hours,
        "bound_by": found.bound_by,
        "recommended": dataclasses.asdict(found.recommended),
        "predictions": [dataclasses.asdict(prediction) for prediction in found.predictions],
    }


def _show(found: "DryPlan", tflops: float) -> None:
    planned(found.plan)
    names = [
        name for name in ("size_bytes", "active_bytes") if all(name in own for own in found.sizes.values())
    ]
    rows(
        ("all groups in", *(name.replace("_", " ") for name in names)),
        [(form, *(show_bytes(own[name]) for name in names)) for form, own in found.sizes.items()],
        title="bytes of the checkpoint, and read for a token",
    )
    cost(dataclasses.asdict(found.cost))
    outside, block = found.block_bytes
    dtype = found.plan.config.model.dtype
    say(
        f"weights {show_bytes(found.model_bytes)} in {dtype}: {show_bytes(block)} in the largest block, "
        f"{show_bytes(outside)} outside blocks"
    )
    parts = ", ".join(f"{name} {seconds / 3600:.3g}" for name, seconds in found.seconds.items())
    best = found.recommended
    say(
        f"{found.device_hours:.3g} device hours at {tflops:g} TFLOP/s ({parts}): bound by {found.bound_by}; "
        f"{best.num_workers} workers with {show_bytes(found.cost.peak_bytes)} of device memory each take "
        f"{duration(best.makespan_s)}"
    )
    sizes = sorted(found.cost.peak_parts.items(), key=lambda part: -part[1])
    say("memory of a worker: " + ", ".join(f"{name} {show_bytes(size)}" for name, size in sizes))
    _table(list(found.predictions), "prediction from shapes")


def _table(found: list[Prediction], title: str) -> None:
    lines = [
        (
            str(each.num_workers),
            duration(each.makespan_s),
            f"{100 * each.efficiency:.0f} %",
            f"{each.node_hours:.3g}",
            each.bound_by,
        )
        for each in found
    ]
    rows(("workers", "time", "efficiency", "node hours", "bound by"), lines, title=title)
