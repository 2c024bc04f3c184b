"""A worker of refinement: the model loaded once in its process, then one shard per work unit of any inquiry."""

import gc
from dataclasses import replace

import numpy as np
import torch

from hpcmpq.calibrate.neighbourhood import around
from hpcmpq.calibrate.opened import Opened, make_subject, open_run
from hpcmpq.calibrate.worker import measurer
from hpcmpq.executors import Worker
from hpcmpq.models.data.kept_samples import already_said, planned_splits
from hpcmpq.models.data.samples import Samples
from hpcmpq.plan import Plan, WorkUnit
from hpcmpq.quantized.activations import rounds_activations
from hpcmpq.quantized.losses import Comparison
from hpcmpq.refine.inquiries import Around, Inquiry, WholeLosses, inquiry_of
from hpcmpq.sensitivity import secant
from hpcmpq.sensitivity.subject import Subject
from hpcmpq.settings import ModelConfig
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.shards import Shard, write_shard


def make_worker(run: RunDir) -> Worker:
    """Load model and samples once and return the function that measures a unit of any inquiry.

    With `dtype: bfloat16` whole assignments run as evaluation runs them, and neighbours as calibration runs options: in
    float32, with what they change multiplied in bfloat16. A worker then holds one of the two models at a time.
    """
    plan = read_plan(run)
    source = plan.config.model
    if rounds_activations(plan.space):  # neighbours are then run as whole assignments
        source = replace(source, stream=False)
    wide = replace(source, dtype="float32") if source.dtype == "bfloat16" else source
    opened = {source: open_run(run, plan, source)}
    subjects: dict[ModelConfig, Subject] = {}
    held_out: list[Samples] = []
    asked: dict[str, Worker] = {}

    def answerer(inquiry: Inquiry, fingerprint: str) -> Worker:
        wanted = wide if isinstance(inquiry, Around) else source
        if wanted not in opened:
            opened.clear()
            subjects.clear()
            gc.collect()  # modules whose products are replaced refer to themselves
            with already_said():
                opened[wanted] = open_run(run, plan, wanted)
        own = opened[wanted]
        if isinstance(inquiry, Around):
            if wanted not in subjects:  # before products are replaced
                subjects[wanted] = make_subject(plan, own, forward_only=True)
            low_precision = torch.bfloat16 if wide is not source else None
            return neighbours(run, plan, own, inquiry, fingerprint, subjects[wanted], low_precision)
        if inquiry.split == "held_out" and not held_out:
            with already_said():
                held_out.append(planned_splits(plan).held_out.to(own.device))
        samples = held_out[0] if inquiry.split == "held_out" else own.calibration
        return whole_losses(run, plan, own, inquiry, fingerprint, samples)

    def work(unit: WorkUnit) -> None:
        inquiry, fingerprint = inquiry_of(run, unit)
        if fingerprint not in asked:
            asked.clear()  # frees the weights of the last before the next are made
            asked[fingerprint] = answerer(inquiry, fingerprint)
        asked[fingerprint](unit)

    return work


def neighbours(
    run: RunDir,
    plan: Plan,
    opened: Opened,
    inquiry: Around,
    fingerprint: str,
    subject: Subject,
    low_precision: torch.dtype | None,
) -> Worker:
    """The function that measures a unit of the loss around an assignment."""
    inputs = opened.calibration[:2].inputs
    own = around(subject, inquiry.neighbourhood, plan.config.sensitivity, inputs, low_precision)
    return measurer(run, fingerprint, own, opened.calibration, secant.measure)


def whole_losses(
    run: RunDir, plan: Plan, opened: Opened, inquiry: WholeLosses, fingerprint: str, samples: Samples
) -> Worker:
    """The function that measures a unit of the losses of whole assignments."""
    config = plan.config

    def work(unit: WorkUnit) -> None:
        if run.shard_path(unit.id).exists():
            return
        part = samples[unit.sample_start : unit.sample_stop]
        objective = config.objective
        comparison = Comparison(opened.variants, part, (objective,), config.calibration.samples_per_pass)
        with torch.no_grad():
            losses = [measured.values[objective] for measured in comparison.measure(inquiry.assignments)]
        write_shard(
            run, Shard("losses", unit.id, fingerprint, len(part), len(part), {"losses": np.stack(losses)})
        )

    return work
