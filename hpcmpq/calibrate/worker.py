"""A worker: the model loaded once in its process, then one shard per work unit."""

import dataclasses
import os
from contextlib import nullcontext

import torch

from hpcmpq.calibrate.sums import contents
from hpcmpq.executors import Worker
from hpcmpq.models.data.kept_samples import kept_samples, planned_splits
from hpcmpq.models.data.samples import Samples
from hpcmpq.models.load import forward, load_model, pick_device
from hpcmpq.models.memory import keep_freed_memory
from hpcmpq.models.original_marks import check_same_outputs
from hpcmpq.models.streaming import load_streamed
from hpcmpq.objective import OBJECTIVES
from hpcmpq.plan import WorkUnit
from hpcmpq.quantized.variants import open_variants
from hpcmpq.response.engine import make_engine
from hpcmpq.sensitivity import find_method
from hpcmpq.sensitivity.differentiable_attention import differentiable_kernels
from hpcmpq.sensitivity.probes import num_probes
from hpcmpq.sensitivity.sampled_positions import find_head
from hpcmpq.sensitivity.subject import Subject
from hpcmpq.settings import ModelConfig
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.shards import Shard, write_shard

THREADS_PER_WORKER = 1
"""Fixed, so that a unit's numbers do not depend on how many workers there are."""


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
    config = plan.config
    method = find_method(config.sensitivity.method)
    measure = method.measure
    is_bfloat16 = config.model.dtype == "bfloat16"
    low_precision = torch.bfloat16 if config.low_precision and method.forward_only else None
    source = staged(config.model)
    if is_bfloat16 and low_precision is not None:
        source = dataclasses.replace(source, dtype="float32")
    streamed = load_streamed(source) if source.stream else None
    model = (
        streamed.model
        if streamed is not None
        else load_model(source, attention=method.attention, import_paths=plan.import_paths)
    )
    variants = open_variants(run, plan, model, check_outputs=False)
    device = pick_device(source.device)
    samples = kept_samples(run, plan)
    if samples is None:
        samples = planned_splits(plan).calibration
    samples = samples.to(device)
    with torch.no_grad():
        first_NTV = forward(model, samples[:1].inputs)
    check_same_outputs(plan, samples[:1].inputs, first_NTV)
    num_outputs = first_NTV.shape[-1]
    probes = num_probes(config.sensitivity.probes, num_outputs)
    head = None
    if method.forward_only:  # before products are patched
        positions = config.sensitivity.loss_positions
        head = find_head(positions, num_outputs, probes, config.objective, model, samples)
    subject = Subject(
        model=model,
        space=plan.space,
        variants=variants,
        objective=OBJECTIVES[config.objective],
        num_probes=probes,
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
        if method.forward_only
        else None,
        head=head,
        loss_positions=config.sensitivity.loss_positions,
    )

    def work(unit: WorkUnit) -> None:
        if unit.id not in redo and run.shard_path(unit.id).exists():
            return
        part: Samples = samples[unit.sample_start : unit.sample_stop]
        groups = range(unit.group_start, unit.group_stop)
        all_groups = len(groups) == len(plan.space.groups)
        with differentiable_kernels() if method.attention == "eager" else nullcontext():
            parts = measure(subject, part, groups, unit.sample_start)
            kind, arrays, num_samples, num_batches = contents(parts, all_groups)
        write_shard(run, Shard(kind, unit.id, plan.fingerprint, num_samples, num_batches, arrays))

    return work


def staged(model: ModelConfig) -> ModelConfig:
    """The copy of the model on this node's own disk, where the batch job made one (`slurm/env.sh`)."""
    copy = os.environ.get("HPCMPQ_MODEL_DIR")
    return dataclasses.replace(model, path=copy) if copy and model.path else model
