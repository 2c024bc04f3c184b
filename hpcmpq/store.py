"""The run directory on disk. HDF5 files are read and written by `hpcmpq.h5_files`, JSON by
`hpcmpq.json_files`.

    RUN/plan.json        resolved config, search space, work units, versions, fingerprint
    RUN/shards/<id>.h5   one file per finished work unit; the name existing is the only "done" mark
    RUN/attempts/*.jsonl when each calibrate process finished what, for `status`; nothing depends on it
    RUN/quadratic.h5     the quadratic model; RUN/activations.h5: static ranges of activations, if there are any
    RUN/solution.json  RUN/frontier.json  RUN/checkpoint/  RUN/evaluation.json  RUN/report.html

Every file is written beside its final name, fsynced and renamed, so a reader never sees half a file, no lock
is needed, and two writers of the same unit are waste, not corruption.

HDF5 schema (format_version 1), beside the checksums of `hpcmpq.h5_files`:

    shard      attributes kind, unit_id, fingerprint, num_samples, num_batches; datasets as named by the
    method
    quadratic  datasets linear [P], quadratic [P,P], stderr_linear [P], stderr_quadratic [P,P],
    diagonal [P],
               batches/linear [B,P], batches/quadratic [B,P,P], options/group [P], options/format [P];
               attributes objective, method, loss0, num_samples, fingerprint, task_loss_mean_square if measured
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hpcmpq.errors import CorruptShard, DamagedFile, UserError
from hpcmpq.h5_files import Scalar, read_h5, write_h5
from hpcmpq.json_files import read_edited_json, read_json, write_artefact, write_json
from hpcmpq.plan import Plan, WorkUnit, plan_from_json
from hpcmpq.quadratic import QuadraticModel
from hpcmpq.run_dir import RunDir
from hpcmpq.whole_files import remove_abandoned, replacing

log = logging.getLogger(__name__)

__all__ = [
    "RunDir",
    "Shard",
    "pending",
    "read_h5",
    "read_json",
    "read_plan",
    "read_quadratic",
    "read_shard",
    "read_shard_of",
    "read_solution",
    "remove_leftovers",
    "replacing",
    "write_artefact",
    "write_h5",
    "write_json",
    "write_quadratic",
    "write_shard",
]


@dataclass(frozen=True)
class Shard:
    """What one work unit contributed: sums over its samples and where they belong."""

    kind: str
    unit_id: str
    fingerprint: str
    num_samples: int
    num_batches: int
    arrays: dict[str, np.ndarray]


def read_plan(run: RunDir, with_times: bool = True) -> Plan:
    """The plan of a run directory.

    Args:
        run: The run directory.
        with_times: Whether the plan has the times that were measured there for it.

    Raises:
        UserError: If there is none.
        DamagedFile: If it, or the times, are damaged.
    """
    made_by = f"hpcmpq plan CONFIG --run-dir {run.path}"
    values = read_json(run.plan_path, made_by)
    try:
        plan = plan_from_json(values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__} {error}"
        raise DamagedFile(
            f"{run.plan_path} is damaged ({reason}); run `{made_by}` again to write it anew"
        ) from None
    if with_times and run.time_path.exists():
        times = read_json(run.time_path, f"hpcmpq time {run.path}")
        if times.get("fingerprint") == plan.fingerprint:
            return replace(plan, times=times)
    return plan


def read_solution(run: RunDir) -> dict[str, Any]:
    """`solution.json`. An assignment that somebody changed by hand is taken, with a notice.

    Raises:
        UserError: If nothing is solved yet, or the assignment is none of the plan's.
        DamagedFile: If it is damaged.
    """
    made_by = f"hpcmpq solve {run.path}"
    values, as_written = read_edited_json(run.solution_path, made_by)
    if as_written:
        return values
    space = read_plan(run, with_times=False).space
    formats = {group.name: names for group, names in zip(space.groups, space.formats, strict=True)}
    assignment = values.get("assignment")
    if not isinstance(assignment, dict) or formats.keys() != assignment.keys():
        raise DamagedFile(
            f"{run.solution_path} is damaged or was edited, and its assignment does not name the plan's "
            f"{len(formats)} groups; run `{made_by}` again to write it anew"
        )
    for group, name in assignment.items():
        if name not in formats[group]:
            raise UserError(
                f"{run.solution_path} was edited and gives {group} {name!r}, which is none of its formats: "
                f"{', '.join(formats[group])}"
            )
    log.warning(
        "%s was edited: its assignment is taken as it is; predicted loss and costs are those of the solver's",
        run.solution_path,
    )
    return values


def remove_leftovers(run: RunDir) -> None:
    """Remove what killed processes left beside artefacts; that of work units is for the stages that write those."""
    for folder in (".", "exports", "report", "rounded", "slurm", "times", "timings"):
        remove_abandoned(run.path / folder)


def write_shard(run: RunDir, shard: Shard) -> None:
    """Write a finished work unit atomically, with checksums."""
    attributes: dict[str, Scalar] = {
        "kind": shard.kind,
        "unit_id": shard.unit_id,
        "fingerprint": shard.fingerprint,
        "num_samples": shard.num_samples,
        "num_batches": shard.num_batches,
    }
    write_h5(run.shard_path(shard.unit_id), shard.arrays, attributes)


def read_shard(path: Path) -> Shard:
    """Read and verify one shard.

    Raises:
        CorruptShard: If it is truncated, altered or of another format version.
    """
    arrays, attributes = read_h5(path, "hpcmpq calibrate")
    return Shard(
        str(attributes["kind"]),
        str(attributes["unit_id"]),
        str(attributes["fingerprint"]),
        int(attributes["num_samples"]),
        int(attributes["num_batches"]),
        arrays,
    )


def read_shard_of(plan: Plan, run: RunDir, unit: WorkUnit) -> Shard:
    """Read and verify the shard of a unit of a plan.

    Raises:
        CorruptShard: If it is damaged, or that of another unit or plan.
    """
    path = run.shard_path(unit.id)
    shard = read_shard(path)
    if shard.fingerprint != plan.fingerprint or shard.unit_id != unit.id:
        raise CorruptShard(
            f"{path} belongs to another unit or plan; run `hpcmpq calibrate {run.path}` again to recompute it"
        )
    return shard


def pending(plan: Plan, run: RunDir) -> tuple[list[WorkUnit], list[str]]:
    """Units without a valid shard, and a sentence for every damaged shard that will be recomputed."""
    missing, damaged = [], []
    for unit in plan.units:
        path = run.shard_path(unit.id)
        if not path.exists():
            missing.append(unit)
            continue
        try:
            read_shard_of(plan, run, unit)
        except CorruptShard as error:
            damaged.append(str(error))
            missing.append(unit)
    return missing, damaged


def write_quadratic(path: Path, model: QuadraticModel, diagonal_P: np.ndarray, fingerprint: str) -> None:
    """Write `quadratic.h5` atomically."""
    arrays = {
        "linear": model.linear_P,
        "quadratic": model.quad_PP,
        "stderr_linear": model.stderr_linear_P,
        "stderr_quadratic": model.stderr_quad_PP,
        "diagonal": diagonal_P,
        "batches/linear": model.batch_linear_BP,
        "batches/quadratic": model.batch_quad_BPP,
        "options/group": np.array(model.option_group, dtype=object),
        "options/format": np.array(model.option_format, dtype=object),
    }
    attributes: dict[str, Scalar] = {
        "objective": model.objective,
        "method": model.method,
        "loss0": model.loss0,
        "num_samples": model.num_samples,
        "fingerprint": fingerprint,
    }
    if model.task_loss_mean_square is not None:
        attributes["task_loss_mean_square"] = model.task_loss_mean_square
    write_h5(path, arrays, attributes)


def read_quadratic(path: Path) -> QuadraticModel:
    """Read and verify `quadratic.h5`.

    Raises:
        UserError: If it is missing.
        CorruptShard: If it is damaged.
    """
    if not path.exists():
        raise UserError(f"{path} is missing; run `hpcmpq reduce` first")
    arrays, attributes = read_h5(path, "hpcmpq reduce")
    return QuadraticModel(
        option_group=tuple(arrays["options/group"].tolist()),
        option_format=tuple(arrays["options/format"].tolist()),
        linear_P=arrays["linear"],
        quad_PP=arrays["quadratic"],
        stderr_linear_P=arrays["stderr_linear"],
        stderr_quad_PP=arrays["stderr_quadratic"],
        loss0=float(attributes["loss0"]),
        objective=str(attributes["objective"]),
        method=str(attributes["method"]),
        num_samples=int(attributes["num_samples"]),
        batch_linear_BP=arrays["batches/linear"],
        batch_quad_BPP=arrays["batches/quadratic"],
        task_loss_mean_square=attributes.get("task_loss_mean_square"),
    )
