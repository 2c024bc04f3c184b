"""The calibrate stage: run the missing work units anywhere, one shard each."""

import dataclasses
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, nullcontext
from functools import partial
from itertools import chain

import numpy as np
import torch

from hpcmpq.config import ModelConfig, parse_config
from hpcmpq.errors import IncompleteCalibration
from hpcmpq.executors import Executor, Worker
from hpcmpq.models.data.kept_samples import kept_samples, planned_splits
from hpcmpq.models.data.samples import Samples
from hpcmpq.models.load import forward, load_model, pick_device
from hpcmpq.models.memory import keep_freed_memory
from hpcmpq.models.streaming import load_streamed
from hpcmpq.objective import OBJECTIVES
from hpcmpq.plan import UnitOutcome, WorkUnit, starting_from
from hpcmpq.quantized.variants import open_variants
from hpcmpq.response.engine import make_engine
from hpcmpq.sensitivity import EAGER_ATTENTION, FORWARD_ONLY, Contribution, Subject, find_method
from hpcmpq.sensitivity.differentiable_attention import differentiable_kernels
from hpcmpq.sensitivity.features import Features, gram, to_columns
from hpcmpq.sensitivity.probes import num_probes
from hpcmpq.store.attempts import recording
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.shards import Shard, pending, write_shard
from hpcmpq.store.whole_files import remove_abandoned

log = logging.getLogger(__name__)

THREADS_PER_WORKER = 1
"""Fixed, so that a unit's numbers do not depend on how many workers there are."""


def calibrate(
    run: RunDir,
    executor: Executor,
    on_outcome: Callable[[UnitOutcome, int, int], None],
    part: tuple[int, int] = (0, 1),
    at_most: int | None = None,
) -> list[UnitOutcome]:
    """Measure every missing unit.

    Args:
        run: A planned run directory.
        executor: Where units run.
        on_outcome: Called with each outcome, the number of units done and of all units.
        part: (i, n): of n processes that share the run directory this is number i; each starts elsewhere.
        at_most: Stop after this many units.

    Returns:
        The outcomes of the units that failed for good.

    Raises:
        IncompleteCalibration: If a unit failed for good; all others are on disk.
    """
    plan = read_plan(run)
    remove_abandoned(run.shards_path)
    units, damaged = pending(plan, run)
    num_missing = len(units)
    units = starting_from(units, plan.units, *part)[:at_most]
    for sentence in damaged:
        log.warning("%s", sentence)
    if not units:
        return []
    redo = frozenset(unit.id for unit in units if run.shard_path(unit.id).exists())
    done = len(plan.units) - num_missing
    failed = []
    outcomes = executor.run(partial(make_worker, run, redo), units)
    with recording(run) as record, closing(outcomes):
        for outcome in outcomes:
            done += outcome.error is None
            if outcome.error is not None and outcome.final:
                failed.append(outcome)
            record(outcome)
            on_outcome(outcome, done, len(plan.units))
    if failed:
        raise IncompleteCalibration(
            f"{len(failed)} of {len(plan.units)} units failed, first {failed[0].unit}: {failed[0].error}; "
            f"the others are on disk, run `hpcmpq calibrate {run.path}` again"
        )
    return failed


def make_worker(run: RunDir, redo: frozenset[str] = frozenset()) -> Worker:
    """Load model and samples once and return the function that measures a unit.

    Args:
        run: A planned run directory.
        redo: Units whose shards are damaged. Any other shard that has appeared meanwhile is another process's
            work, and its unit is left alone.
    """
    torch.set_num_threads(THREADS_PER_WORKER)
    keep_freed_memory()
    plan = read_plan(run)
    config = parse_config(plan.config, "plan.json")
    method = config.sensitivity.method
    measure = find_method(method)
    is_bfloat16 = config.model.dtype == "bfloat16"
    low_precision = torch.bfloat16 if config.low_precision and method in FORWARD_ONLY else None
    source = staged(config.model)
    if is_bfloat16 and low_precision is not None:
        source = dataclasses.replace(source, dtype="float32")
    streamed = load_streamed(source) if source.stream else None
    model = (
        streamed.model
        if streamed is not None
        else load_model(
            source, attention="eager" if method in EAGER_ATTENTION else None, import_paths=plan.import_paths
        )
    )
    variants = open_variants(run, plan, model)
    device = pick_device(source.device)
    samples = kept_samples(run, plan)
    if samples is None:
        samples = planned_splits(config, plan).calibration
    samples = samples.to(device)
    with torch.no_grad():
        num_outputs = forward(model, samples[:1].inputs).shape[-1]
    subject = Subject(
        model=model,
        space=plan.space,
        variants=variants,
        objective=OBJECTIVES[config.objective],
        num_probes=num_probes(config.sensitivity.probes, num_outputs),
        samples_per_pass=config.calibration.samples_per_pass,
        seed=config.calibration.seed,
        engine=make_engine(
            config.sensitivity.engine,
            variants,
            samples[:2].inputs,
            low_precision=low_precision,
            exact_original=not is_bfloat16,
            resident=None if streamed is None else streamed.resident,
            options_per_pass=config.sensitivity.options_per_pass,
            options_per_wave=config.sensitivity.options_per_wave,
        )
        if method in FORWARD_ONLY
        else None,
    )

    def work(unit: WorkUnit) -> None:
        if unit.id not in redo and run.shard_path(unit.id).exists():
            return
        part: Samples = samples[unit.sample_start : unit.sample_stop]
        groups = range(unit.group_start, unit.group_stop)
        all_groups = len(groups) == len(plan.space.groups)
        with differentiable_kernels() if method in EAGER_ATTENTION else nullcontext():
            parts = measure(subject, part, groups, unit.sample_start)
            kind, arrays, num_samples, num_batches = contents(parts, all_groups)
        write_shard(run, Shard(kind, unit.id, plan.fingerprint, num_samples, num_batches, arrays))

    return work


def staged(model: ModelConfig) -> ModelConfig:
    """The copy of the model on this node's own disk, where the batch job made one (`slurm/env.sh`)."""
    copy = os.environ.get("HPCMPQ_MODEL_DIR")
    return dataclasses.replace(model, path=copy) if copy and model.path else model


def contents(
    parts: Iterable[Contribution | Features], all_groups: bool
) -> tuple[str, dict[str, np.ndarray], int, int]:
    """Kind, arrays, samples and batches of a unit's shard: sums, or the columns of a unit of some groups."""
    iterator = iter(parts)
    first = next(iterator)
    if isinstance(first, Contribution):
        return "sums", *add_up(chain([first], iterator))  # type: ignore[list-item, arg-type]
    if all_groups:
        return "sums", *add_up(products(chain([first], iterator)))  # type: ignore[list-item, arg-type]
    arrays = to_columns(chain([first], iterator))  # type: ignore[list-item, arg-type]
    return "features", arrays, len(arrays["loss"]), len(arrays["loss"])


def products(parts: Iterable[Features]) -> Iterator[Contribution]:
    """The contribution of every sample."""
    for part in parts:
        for n in range(len(part.loss_N)):
            yield Contribution(1, float(part.loss_N[n]), part.increase_NR[n], gram(part.phi_NRF[n]))


def add_up(contributions: Iterable[Contribution]) -> tuple[dict[str, np.ndarray], int, int]:
    """Sums over batches, and of squares over batch sizes, from which `reduce` gets means and standard errors.

    Returns:
        Arrays `loss` [], `linear`, `linear_square` [R], `quad`, `quad_square` [R, P], and `task_loss_square` []
        where the method gives it; samples; batches.

    Raises:
        ValueError: If a contribution is not finite.
    """
    arrays: dict[str, np.ndarray] = {}
    num_samples = num_batches = 0
    for part in contributions:
        if not (
            np.isfinite(part.linear_R).all() and np.isfinite(part.quad_RP).all() and np.isfinite(part.loss)
        ):
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
        if part.task_loss_square is not None:
            terms["task_loss_square"] = np.array(part.task_loss_square)
        for name, term in terms.items():
            arrays[name] = arrays[name] + term if name in arrays else term.astype(np.float64)
        num_samples += part.num_samples
        num_batches += 1
    return arrays, num_samples, num_batches
