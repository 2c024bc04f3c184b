"""Finished work units: one HDF5 file each, whose name existing is the only "done" mark."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpcmpq.errors import CorruptShard
from hpcmpq.plan import Plan, WorkUnit
from hpcmpq.store.h5_files import Scalar, read_h5, write_h5
from hpcmpq.store.run_dir import RunDir


@dataclass(frozen=True)
class Shard:
    """What one work unit contributed: sums over its samples and where they belong."""

    kind: str
    unit_id: str
    fingerprint: str
    num_samples: int
    num_batches: int
    arrays: dict[str, np.ndarray]


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


def read_shard(path: Path, command: str = "hpcmpq calibrate") -> Shard:
    """Read and verify one shard that a command has written.

    Raises:
        CorruptShard: If it is truncated, altered or of another format version.
    """
    arrays, attributes = read_h5(path, command)
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
    shard = read_shard(path, run.command)
    if shard.fingerprint != plan.fingerprint or shard.unit_id != unit.id:
        raise CorruptShard(
            f"{path} belongs to another unit or plan; run `{run.command}` again to recompute it"
        )
    return shard


def pending(
    plan: Plan, run: RunDir, verified: set[str] | None = None
) -> tuple[list[WorkUnit], dict[str, str]]:
    """Units without a valid shard, and of those with a damaged one, that will be recomputed, {id: a sentence}.

    Args:
        plan: Of the run.
        run: Its directory.
        verified: Ids of units whose shards were read before and are not read again; those that are valid are added.
    """
    missing: list[WorkUnit] = []
    damaged: dict[str, str] = {}
    verified = set() if verified is None else verified
    for unit in plan.units:
        path = run.shard_path(unit.id)
        if not path.exists():
            missing.append(unit)
            continue
        if unit.id in verified:
            continue
        try:
            read_shard_of(plan, run, unit)
            verified.add(unit.id)
        except CorruptShard as error:
            damaged[unit.id] = str(error)
            missing.append(unit)
    return missing, damaged


def remove_damaged_shard(plan: Plan, run: RunDir, unit: WorkUnit) -> None:
    """Remove a unit's shard that was found damaged, unless it is whole by now, as where another process was faster."""
    try:
        if run.shard_path(unit.id).exists():
            read_shard_of(plan, run, unit)
    except CorruptShard:
        run.shard_path(unit.id).unlink(missing_ok=True)
