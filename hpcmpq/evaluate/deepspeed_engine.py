"""DeepSpeed with ZeRO-3: every rank holds a piece of each weight, gathers a layer when it runs, and its own samples.

A rank's memory is the model divided by the number of ranks, and one layer. The numbers are those of ``torch``: the
same operations on the same batches. The only user of DeepSpeed.
"""

import os
import signal
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hpcmpq.activations import Activations
from hpcmpq.config import Config
from hpcmpq.errors import UserError
from hpcmpq.evaluate.memory import live_bytes, peak_bytes, return_freed_memory
from hpcmpq.evaluate.shards import Shards, build, partition
from hpcmpq.models.load import forward, pick_device, quiet_transformers
from hpcmpq.plan import Plan
from hpcmpq.store import RunDir
from hpcmpq.variants import open_variants
from hpcmpq.world import World, meeting_point

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


@dataclass
class DeepSpeedEngine:
    """See `hpcmpq.evaluate.engines.Engine`."""

    shards: Shards
    activations: Activations
    rank: int
    size: int
    device: torch.device
    start_bytes: int
    _stop: list[int] = field(default_factory=list)

    @contextmanager
    def assigned(self, assignment: Mapping[str, str]) -> Iterator[None]:
        """See `Engine.assigned`; the weights stay as they are afterwards, until the next assignment."""
        self.shards.fill(assignment)
        with self.activations.rounded(assignment):
            yield

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """See `Engine.forward`."""
        return forward(self.shards.model, {name: value.to(self.device) for name, value in inputs.items()})

    def share(self, numbers: tuple[int, ...]) -> list[tuple[int, ...]]:
        """See `Engine.share`."""
        return self.gather(numbers)

    def gather(self, value: Any) -> list[Any]:
        """See `Engine.gather`."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def stop_signal(self) -> int:
        """See `Engine.stop_signal`; all ranks must leave together, so signals do not raise here."""
        return self._stop[0] if self._stop else 0

    def facts(self) -> dict[str, Any]:
        """`model_bytes`, and of each rank `shard_bytes` and `peak_bytes`, the most above what it started with."""
        parameters: list[Any] = list(self.shards.model.parameters())
        own = sum(p.ds_tensor.nbytes for p in parameters)
        each = self.gather((own, peak_bytes(self.device) - self.start_bytes))
        return {
            "model_bytes": sum(p.ds_numel * p.element_size() for p in parameters),
            "shard_bytes": [shard for shard, _ in each],
            "peak_bytes": [peak for _, peak in each],
        }


@contextmanager
def open_engine(run: RunDir, plan: Plan, config: Config, world: World) -> Iterator[DeepSpeedEngine]:
    """The model sharded over the ranks of this job.

    Raises:
        UserError: If DeepSpeed is missing, the ranks cannot meet, or the model cannot be built.
    """
    device = pick_device(config.model.device)
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        return_freed_memory()
    deepspeed = _load_deepspeed()
    device = _join_world(deepspeed, world, device)
    with quiet_transformers():
        import transformers  # noqa: F401  (before memory is counted)
    start_bytes = live_bytes(device)
    model, rows = build(config.model, plan.import_paths, world.rank, world.size)
    if config.model.path is not None:
        start_bytes = live_bytes(device)  # code was loaded, and no values yet
    variants = open_variants(run, plan, model)
    settings = _settings(model, config.model.dtype)
    partition(model, deepspeed, settings)
    for module in model.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)
    shards = Shards(model, plan.space, config.quantizer, rows, world.rank, variants.codes)
    shards.fill_originals()
    deepspeed.initialize(model=model, config=settings)
    engine = DeepSpeedEngine(shards, variants.activations, world.rank, world.size, device, start_bytes)
    before = {number: signal.signal(number, lambda n, _: engine._stop.append(n)) for number in _SIGNALS}
    try:
        yield engine
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    deepspeed.comm.destroy_process_group()


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


def _load_deepspeed() -> Any:
    try:
        import deepspeed
    except ImportError as error:
        raise UserError(
            f"engine deepspeed cannot be loaded ({error}); `pip install 'hpcmpq[deepspeed]'`, or use --engine torch"
        ) from error
    deepspeed.utils.logger.setLevel("WARNING")
    # DeepSpeed calls functions that newer releases of torch have other names for.
    warnings.filterwarnings("ignore", message="`torch.distributed", category=FutureWarning)
    # Shared-memory collectives of CPU ranks would be compiled here, for minutes, and a compilation that was killed
    # leaves a lock on which every later start waits for ever. Gloo does.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _join_world(deepspeed: Any, world: World, device: torch.device) -> torch.device:
    """Meet the other ranks; the device of this one."""
    address, port = meeting_point(world, os.environ)
    if address in ("127.0.0.1", "localhost") and Path("/sys/class/net/lo").exists():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    # Slurm may show each task its own GPU alone, whatever its local rank is.
    place = (
        world.local_rank % max(1, torch.cuda.device_count()) if device.type == "cuda" else world.local_rank
    )
    os.environ.update(
        RANK=str(world.rank), WORLD_SIZE=str(world.size), LOCAL_RANK=str(place),
        MASTER_ADDR=address, MASTER_PORT=str(port),
    )  # fmt: skip
    try:
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"rank {world.rank} of {world.size} cannot meet the others at {address}:{port} "
            f"({str(error).splitlines()[0]}); set MASTER_ADDR and MASTER_PORT to rank 0's address and a free port"
        ) from error
    return torch.device("cuda", place) if device.type == "cuda" else device
