"""A worker: the model loaded once in its process, then one shard per work unit."""

import dataclasses

import torch

from hpcmpq.calibrate.opened import make_subject, open_run, share_ranges
from hpcmpq.calibrate.sums import contents
from hpcmpq.executors import Worker
from hpcmpq.models.data.samples import Samples
from hpcmpq.plan import WIDE, WorkUnit
from hpcmpq.response.engine import make_engine
from hpcmpq.sensitivity import find_method
from hpcmpq.sensitivity.differentiable_attention import differentiable_kernels
from hpcmpq.sensitivity.subject import Measure, Subject
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.shards import Shard, write_shard


def make_worker(run: RunDir, number: int = 0) -> Worker:
    """Load model and samples of a planned run once and return the function that measures a unit.

    Args:
        run: The run directory.
        number: Of the round whose options are measured, of a plan that has rounds.
    """
    plan = read_plan(run)
    columns = bool(plan.rounds)
    plan = plan.rounds[number] if plan.rounds else plan
    config = plan.config
    method = find_method(config.sensitivity.method)
    is_bfloat16 = config.model.dtype == "bfloat16"
    low_precision = torch.bfloat16 if config.low_precision and method.forward_only else None
    source = config.model
    if is_bfloat16 and (low_precision is not None or WIDE in plan.facts):
        source = dataclasses.replace(source, dtype="float32")
    opened = open_run(run, plan, source, method.attention)
    share_ranges(opened)
    subject = make_subject(plan, opened, forward_only=method.forward_only)  # before products are patched
    if method.forward_only:
        engine = make_engine(
            config.sensitivity.engine,
            opened.variants,
            opened.calibration[:2].inputs,
            low_precision=low_precision,
            exact_original=not is_bfloat16,
            options_per_pass=config.sensitivity.options_per_pass,
            options_per_wave=config.sensitivity.options_per_wave,
            choices=subject.choices,
        )
        subject = dataclasses.replace(subject, engine=engine)
    measures = measurer(run, plan.fingerprint, subject, opened.calibration, method.measure, columns)
    if method.attention != "eager":
        return measures

    def differentiable(unit: WorkUnit) -> None:
        with differentiable_kernels():
            measures(unit)

    return differentiable


def measurer(
    run: RunDir,
    fingerprint: str,
    subject: Subject,
    samples: Samples,
    measure: Measure,
    columns: bool = False,
) -> Worker:
    """The function that measures a unit of the subject's groups and writes its shard.

    With `columns` shards keep features of all groups too, to be multiplied with those of other options. A shard that
    has appeared meanwhile is another process's work, and its unit is left alone.
    """

    def work(unit: WorkUnit) -> None:
        if run.shard_path(unit.id).exists():
            return
        groups = range(unit.group_start, unit.group_stop)
        parts = measure(subject, samples[unit.sample_start : unit.sample_stop], groups, unit.sample_start)
        kind, arrays, num_samples, num_batches = contents(
            parts, len(groups) == len(subject.space.groups) and not columns
        )
        write_shard(run, Shard(kind, unit.id, fingerprint, num_samples, num_batches, arrays))

    return work
