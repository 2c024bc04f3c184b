"""The calibrate stage: run the missing work units anywhere, one shard each."""

import logging
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import torch

from hpcmpq.config import parse_config
from hpcmpq.errors import CorruptShard, IncompleteCalibration
from hpcmpq.executors import Executor, UnitOutcome, Worker
from hpcmpq.models.calibration import Samples, load_splits
from hpcmpq.models.load import forward, load_model
from hpcmpq.objective import OBJECTIVES
from hpcmpq.plan import Plan, WorkUnit
from hpcmpq.probes import num_probes
from hpcmpq.sensitivity import EAGER_ATTENTION, Contribution, Subject, find_method
from hpcmpq.store import RunDir, Shard, read_plan, read_shard, write_shard
from hpcmpq.variants import Variants

log = logging.getLogger(__name__)

THREADS_PER_WORKER = 1
"""Fixed, so that a unit's numbers do not depend on how many workers there are."""


def pending(plan: Plan, run: RunDir) -> tuple[list[WorkUnit], list[str]]:
    """Units without a valid shard, and a sentence for every damaged shard that will be recomputed."""
    missing, damaged = [], []
    for unit in plan.units:
        path = run.shard_path(unit.id)
        if not path.exists():
            missing.append(unit)
            continue
        try:
            read_shard(path)
        except CorruptShard as error:
            damaged.append(str(error))
            missing.append(unit)
    return missing, damaged


def calibrate(
    run: RunDir, executor: Executor, on_outcome: Callable[[UnitOutcome, int, int], None]
) -> list[UnitOutcome]:
    """Measure every missing unit.

    Args:
        run: A planned run directory.
        executor: Where units run.
        on_outcome: Called with each outcome, the number of units done and of all units.

    Returns:
        The outcomes of the units that failed for good.

    Raises:
        IncompleteCalibration: If a unit failed for good; all others are on disk.
    """
    plan = read_plan(run)
    units, damaged = pending(plan, run)
    for sentence in damaged:
        log.warning("%s", sentence)
    done = len(plan.units) - len(units)
    failed = []
    for outcome in executor.run(partial(make_worker, run), units) if units else ():
        done += outcome.error is None
        if outcome.error is not None and outcome.final:
            failed.append(outcome)
        on_outcome(outcome, done, len(plan.units))
    if failed:
        raise IncompleteCalibration(
            f"{len(failed)} of {len(plan.units)} units failed, first {failed[0].unit}: {failed[0].error}; "
            f"the others are on disk, run `hpcmpq calibrate {run.path}` again"
        )
    return failed


def make_worker(run: RunDir) -> Worker:
    """Load model and samples once and return the function that measures a unit."""
    torch.set_num_threads(THREADS_PER_WORKER)
    plan = read_plan(run)
    config = parse_config(plan.config, "plan.json")
    method = config.sensitivity.method
    measure = find_method(method)
    model = load_model(
        config.model,
        attention="eager" if method in EAGER_ATTENTION else None,
        import_paths=plan.import_paths,
    )
    device = next(model.parameters()).device
    samples = load_splits(config, plan.import_paths).calibration.to(device)
    with torch.no_grad():
        num_outputs = forward(model, samples[:1].inputs).shape[-1]
    subject = Subject(
        model=model,
        space=plan.space,
        variants=Variants(model, plan.space, config.quantizer),
        objective=OBJECTIVES[config.objective],
        num_probes=num_probes(config.sensitivity.probes, num_outputs),
        samples_per_pass=config.calibration.samples_per_pass,
        seed=config.calibration.seed,
    )

    def work(unit: WorkUnit) -> None:
        part: Samples = samples[unit.sample_start : unit.sample_stop]
        groups = range(unit.group_start, unit.group_stop)
        contributions = measure(subject, part, groups, unit.sample_start)
        arrays, num_samples, num_batches = add_up(contributions)
        write_shard(run, Shard("sums", unit.id, plan.fingerprint, num_samples, num_batches, arrays))

    return work


def add_up(contributions: Iterable[Contribution]) -> tuple[dict[str, np.ndarray], int, int]:
    """Sums over batches, and of squares over batch sizes, from which `reduce` gets means and standard errors.

    Returns:
        Arrays `loss` [], `linear`, `linear_square` [R], `quad`, `quad_square` [R, P]; samples; batches.

    Raises:
        ValueError: If a contribution is not finite.
    """
    arrays: dict[str, np.ndarray] = {}
    num_samples = num_batches = 0
    for part in contributions:
        if not (np.isfinite(part.linear_R).all() and np.isfinite(part.quad_RP).all() and np.isfinite(part.loss)):
            raise ValueError(
                "the model's outputs are not finite for some option; use model.dtype float32 or drop its format"
            )
        terms = {
            "loss": np.array(part.loss),
            "linear": part.linear_R,
            "linear_square": part.linear_R**2 / part.num_samples,
            "quad": part.quad_RP,
            "quad_square": part.quad_RP**2 / part.num_samples,
        }
        for name, term in terms.items():
            arrays[name] = arrays[name] + term if name in arrays else term.astype(np.float64)
        num_samples += part.num_samples
        num_batches += 1
    return arrays, num_samples, num_batches
