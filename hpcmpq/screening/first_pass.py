"""The first pass: what the Fisher matrix says that every option costs alone, for all options at once.

    f_p = ½ mean ⟨∇_w v·z, δ_p⟩²,  E[vvᵀ] = Λ

as `hpcmpq.sensitivity.fisher` measures it, from a forward pass of each sample and a few backward passes. Cross terms
are not looked at: from so few rows they are noise.

Axis letters: P options, N samples.
"""

from collections.abc import Callable
from dataclasses import replace
from math import ceil

import numpy as np

from hpcmpq.calibrate.reduce import sample_ranges
from hpcmpq.executors import Worker
from hpcmpq.executors.batches import Batches
from hpcmpq.plan import Plan, UnitOutcome, WorkUnit, content_hash
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.shards import pending, read_shard_of
from hpcmpq.units import missing_batches

ROWS = 96
"""Cotangents of all samples together, about: f has a relative error of √(2/ROWS) were slopes normal."""

MAX_ROWS = 8
"""Of one sample."""


def first_pass(
    run: RunDir,
    on_outcome: Callable[[UnitOutcome, int, int], None],
    part: tuple[int, int],
    at_most: int | None,
) -> Batches[np.ndarray | None]:
    """Costs of all options, float64 [P]; None where `at_most` units of them were not all.

    Raises:
        IncompleteCalibration: If a unit failed for good.
    """
    run = replace(run, measuring="screen")
    plan = read_plan(run, screened=False)
    own = replace(plan, units=units_of(plan))
    yield from missing_batches(run, own, _make_worker, on_outcome, part, at_most)
    if pending(own, run)[0]:
        return None
    shards = [read_shard_of(own, run, unit) for unit in own.units]
    return np.concatenate([shard.arrays["increase"] for shard in shards], axis=1).mean(1)


def units_left(run: RunDir) -> int:
    """Units of the first pass that are not measured yet."""
    run = replace(run, measuring="screen")
    plan = read_plan(run, screened=False)
    return len(pending(replace(plan, units=units_of(plan)), run)[0])


def units_of(plan: Plan) -> tuple[WorkUnit, ...]:
    """A unit of all groups for the samples of each of calibration's."""
    num_groups = len(plan.space.groups)
    return tuple(
        WorkUnit(content_hash([plan.fingerprint, "screen", *samples])[:12], 0, num_groups, *samples)
        for samples in sample_ranges(plan.units)
    )


def _make_worker(run: RunDir) -> Worker:
    """Load model and samples once and return the function that measures a unit."""
    from hpcmpq.calibrate.opened import make_subject, open_run, share_ranges
    from hpcmpq.calibrate.worker import measurer
    from hpcmpq.sensitivity import find_method

    plan = read_plan(run, screened=False)
    source = plan.config.model
    if source.dtype == "bfloat16":  # as secant's original is read
        source = replace(source, dtype="float32")
    opened = open_run(run, plan, source)
    share_ranges(opened)
    rows = min(MAX_ROWS, ceil(ROWS / len(opened.calibration)))
    subject = replace(make_subject(plan, opened, forward_only=False), num_probes=rows, choices=None)
    measure = find_method("fisher").measure
    return measurer(run, plan.fingerprint, subject, opened.calibration, measure, columns=True)
