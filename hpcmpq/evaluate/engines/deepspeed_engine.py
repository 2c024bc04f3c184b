"""DeepSpeed with ZeRO-3: every rank holds a piece of each weight, gathers a layer when it runs, and its own samples.

A rank's memory is the model divided by the number of ranks, and one layer. The numbers are those of ``torch``: the
same operations on the same batches.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hpcmpq.evaluate.engines.ranks import gathered, joined_ranks, stop_requests
from hpcmpq.evaluate.engines.tensor_engine import TensorEngine
from hpcmpq.evaluate.engines.zero_shards import ZeroPieces, build, partition
from hpcmpq.executors.world import World
from hpcmpq.models.data.kept_samples import kept_samples
from hpcmpq.models.load import forward
from hpcmpq.models.memory import live_bytes, peak_bytes
from hpcmpq.models.original_marks import check_same_outputs
from hpcmpq.models.weight_digests import check_same_weights
from hpcmpq.plan import Plan
from hpcmpq.quantized.activations import Activations
from hpcmpq.quantized.solved import open_solved
from hpcmpq.settings import Config
from hpcmpq.store.run_dir import RunDir


@dataclass
class DeepSpeedEngine:
    """See `hpcmpq.evaluate.engines.EvaluationEngine`."""

    shards: ZeroPieces
    activations: Activations
    rank: int
    size: int
    device: torch.device
    start_bytes: int
    stop: list[int]

    @contextmanager
    def assigned(self, assignment: Mapping[str, str]) -> Iterator[None]:
        """See `Engine.assigned`; the weights stay as they are afterwards, until the next assignment."""
        self.shards.fill(assignment)
        with self.activations.rounded(assignment):
            yield

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """See `Engine.forward`."""
        return forward(self.shards.model, {name: value.to(self.device) for name, value in inputs.items()})

    def side_by_side(self, inputs: dict[str, Tensor]) -> None:
        """See `Engine.side_by_side`; ranks hold the model together."""

    def share(self, numbers: tuple[int, ...]) -> list[tuple[int, ...]]:
        """See `Engine.share`."""
        return self.gather(numbers)

    def gather(self, value: Any) -> list[Any]:
        """See `Engine.gather`."""
        return gathered(value, self.size)

    def stop_signal(self) -> int:
        """See `Engine.stop_signal`; all ranks must leave together, so signals do not raise here."""
        return self.stop[0] if self.stop else 0

    def facts(self) -> dict[str, Any]:
        """`model_bytes`, and of each rank `shard_bytes` and `peak_bytes`, the most above what it started with."""
        parameters: list[Any] = list(self.shards.model.parameters())
        own = sum(p.ds_tensor.nbytes for p in parameters)
        each = self.gather((own, peak_bytes(self.device) - self.start_bytes))
        return {
            "sharding": "zero3",
            "model_bytes": sum(p.ds_numel * p.element_size() for p in parameters),
            "shard_bytes": [shard for shard, _ in each],
            "peak_bytes": [peak for _, peak in each],
        }


@contextmanager
def open_engine(
    run: RunDir, plan: Plan, config: Config, world: World
) -> Iterator[DeepSpeedEngine | TensorEngine]:
    """The model over the ranks of this job, in the way of ``evaluation.sharding``.

    Raises:
        UserError: If DeepSpeed is missing, the ranks cannot meet, or the model cannot be built or cut.
    """
    with joined_ranks(config, world) as (deepspeed, device), stop_requests() as stop:
        if config.evaluation.sharding == "tensor":
            yield TensorEngine(run, plan, config, deepspeed, device, world.size, live_bytes(device), stop)
        else:
            yield _sharded(run, plan, config, world, deepspeed, device, stop)


def _sharded(
    run: RunDir,
    plan: Plan,
    config: Config,
    world: World,
    deepspeed: Any,
    device: torch.device,
    stop: list[int],
) -> DeepSpeedEngine:
    start_bytes = live_bytes(device)
    model, rows = build(config.model, plan.import_paths, world.rank, world.size)
    if config.model.path is not None:
        check_same_weights(model, plan, rows)
        start_bytes = live_bytes(device)  # code was loaded, and no values yet
    variants = open_solved(run, plan, model, check_outputs=False)
    settings = _settings(model, config.model.dtype)
    partition(model, deepspeed, settings)
    for module in model.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)
    shards = ZeroPieces(
        model, plan.space, config.quantizer, rows, world.rank, variants.codes, variants.solved
    )
    shards.fill_originals()
    deepspeed.initialize(model=model, config=settings)
    engine = DeepSpeedEngine(shards, variants.activations, world.rank, world.size, device, start_bytes, stop)
    _check_outputs(run, plan, engine)
    return engine


@torch.no_grad()
def _check_outputs(run: RunDir, plan: Plan, engine: DeepSpeedEngine) -> None:
    """On all ranks together, since each holds a piece of every layer."""
    samples = kept_samples(run, plan) if plan.original else None
    if samples is not None:
        first = samples[:1].inputs
        check_same_outputs(plan, first, engine.forward(first))


def _settings(model: nn.Module, dtype: str) -> dict[str, Any]:
    """DeepSpeed's configuration: gather the layer that runs and the next, keep nothing gathered."""
    layer = max(sum(p.numel() for p in module.parameters(recurse=False)) for module in model.modules())
    return {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": dtype == "bfloat16"},
        "zero_optimization": {
            "stage": 3,
            "stage3_prefetch_bucket_size": layer,
            "stage3_max_live_parameters": 2 * layer,
            "stage3_max_reuse_distance": 0,
            "stage3_param_persistence_threshold": 0,
            "memory_efficient_linear": False,
        },
    }
