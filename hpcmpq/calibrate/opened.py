"""What every worker opens first: the model, its options and its samples; and the subject that methods are given."""

import dataclasses
import os
import socket
import zlib
from dataclasses import dataclass

import torch

from hpcmpq.calibrate.mended import check_plan_mended
from hpcmpq.executors import THREADS_PER_WORKER
from hpcmpq.models.active_weights import num_experts
from hpcmpq.models.data.kept_samples import kept_samples, planned_splits
from hpcmpq.models.data.samples import Samples, in_dtype
from hpcmpq.models.load import forward, load_model, pick_device
from hpcmpq.models.memory import keep_freed_memory
from hpcmpq.models.original_marks import check_same_outputs
from hpcmpq.models.streaming import load_streamed
from hpcmpq.objective import OBJECTIVES
from hpcmpq.plan import CHOICES, KEPT, Plan
from hpcmpq.quantized.variants import Variants, open_variants
from hpcmpq.response.kept_choices import KeptChoices
from hpcmpq.sensitivity.probes import num_probes
from hpcmpq.sensitivity.sampled_positions import find_head
from hpcmpq.sensitivity.subject import Subject
from hpcmpq.settings import ModelConfig
from hpcmpq.store.run_dir import RunDir


@dataclass(frozen=True)
class Opened:
    """A run's model in this process.

    Attributes:
        variants: The model and its options.
        calibration: The calibration samples, on the model's device.
        num_outputs: V.
        device: Where the model runs.
    """

    variants: Variants
    calibration: Samples
    num_outputs: int
    device: torch.device


def open_run(run: RunDir, plan: Plan, source: ModelConfig, attention: str | None = None) -> Opened:
    """Load model and samples, the model whole or to be streamed.

    Args:
        run: A planned run directory.
        plan: Its plan.
        source: Where the model is.
        attention: See `hpcmpq.models.load.load_model`.

    Raises:
        PlanMismatch: If the model has changed since it was planned for, or an earlier version planned it that measured
            it wrongly.
    """
    torch.set_num_threads(THREADS_PER_WORKER)
    keep_freed_memory()
    source = staged(source)
    if source.stream:
        variants = open_variants(
            run, plan, streamed=load_streamed(source, read_ahead=True), check_outputs=False
        )
    else:
        model = load_model(source, attention=attention, import_paths=plan.import_paths)
        variants = open_variants(run, plan, model, check_outputs=False)
    samples = kept_samples(run, plan)
    if samples is None:
        samples = planned_splits(plan).calibration
    device = pick_device(source.device)
    own = in_dtype(samples.inputs, getattr(torch, source.dtype))  # perhaps wider than the plan's
    samples = dataclasses.replace(samples, inputs=own).to(device)
    with torch.no_grad():
        first_NTV = forward(variants.model, samples[:1].inputs)
    check_same_outputs(plan, samples[:1].inputs, first_NTV)
    check_plan_mended(plan, variants.model, samples[:2].inputs, str(run.path))
    return Opened(variants, samples, first_NTV.shape[-1], device)


def share_ranges(opened: Opened) -> None:
    """Choose ranges that no process of the run has chosen yet, each process in an order of its own."""
    seed = zlib.crc32(f"{socket.gethostname()} {os.getpid()}".encode())
    opened.variants.store_ranges(seed)


def make_subject(plan: Plan, opened: Opened, *, forward_only: bool) -> Subject:
    """What is measured, as the plan says; the model's head is looked for where methods run forward passes only."""
    config = plan.config
    model, positions = opened.variants.model, config.sensitivity.loss_positions
    probes = num_probes(config.sensitivity.probes, opened.num_outputs)
    head = None
    if forward_only:
        head = find_head(positions, opened.num_outputs, probes, config.objective, model, opened.calibration)
    return Subject(
        model=model,
        space=opened.variants.space,
        variants=opened.variants,
        objective=OBJECTIVES[config.objective],
        num_probes=probes,
        samples_per_pass=config.calibration.samples_per_pass,
        seed=config.calibration.seed,
        head=head,
        loss_positions=positions,
        choices=KeptChoices(num_experts=num_experts(model)) if plan.facts.get(CHOICES) == KEPT else None,
    )


def staged(model: ModelConfig) -> ModelConfig:
    """The copy of the model on this node's own disk, where the batch job made one (`slurm/env.sh`).

    The job of one run names it in HPCMPQ_MODEL_DIR, that of several in a line of HPCMPQ_MODEL_COPIES: model, tab, copy.
    """
    pairs = [line.partition("\t") for line in os.environ.get("HPCMPQ_MODEL_COPIES", "").split("\n")]
    copy = {path: name for path, _, name in pairs}.get(model.path or "") or os.environ.get("HPCMPQ_MODEL_DIR")
    return dataclasses.replace(model, path=copy) if copy and model.path else model
