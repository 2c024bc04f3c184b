"""A worker of refinement: the model loaded once in its process, then one shard per work unit of any inquiry."""

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
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.shards import Shard, write_shard


def make_worker(run: RunDir) -> Worker:
    """Load model and samples once and return the function that measures a unit of any inquiry."""
    plan = read_plan(run)
    source = plan.config.model
    if rounds_activations(plan.space):  # neighbours are then run as whole assignments
        source = replace(source, stream=False)
    opened = open_run(run, plan, source)
    samples = {"calibration": opened.calibration}
    asked: dict[str, Worker] = {}

    def work(unit: WorkUnit) -> None:
        inquiry, fingerprint = inquiry_of(run, unit)
        if fingerprint not in asked:
            asked.clear()  # frees the weights of the last before the next are made
            if isinstance(inquiry, WholeLosses) and inquiry.split not in samples:
                with already_said():
                    samples[inquiry.split] = planned_splits(plan).held_out.to(opened.device)
            asked[fingerprint] = answerer(run, plan, opened, inquiry, fingerprint, samples)
        asked[fingerprint](unit)

    return work


def answerer(
    run: RunDir,
    plan: Plan,
    opened: Opened,
    inquiry: Inquiry,
    fingerprint: str,
    samples: dict[str, Samples],
) -> Worker:
    """The function that measures a unit of one inquiry."""
    config = plan.config
    if isinstance(inquiry, Around):
        whole = make_subject(plan, opened, forward_only=True)
        inputs = opened.calibration[:2].inputs
        subject = around(whole, inquiry.neighbourhood, config.sensitivity, inputs)
        return measurer(run, fingerprint, subject, opened.calibration, secant.measure)

    def work(unit: WorkUnit) -> None:
        if run.shard_path(unit.id).exists():
            return
        part = samples[inquiry.split][unit.sample_start : unit.sample_stop]
        objective = config.objective
        comparison = Comparison(opened.variants, part, (objective,), config.calibration.samples_per_pass)
        with torch.no_grad():
            losses = [measured.values[objective] for measured in comparison.measure(inquiry.assignments)]
        write_shard(
            run, Shard("losses", unit.id, fingerprint, len(part), len(part), {"losses": np.stack(losses)})
        )

    return work
