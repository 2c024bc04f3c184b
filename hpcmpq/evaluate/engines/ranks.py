"""The ranks of a DeepSpeed job: meeting, exchanging values, leaving together. The only user of DeepSpeed."""

import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from hpcmpq.errors import UserError
from hpcmpq.executors.roll_call import call_roll, signals_heard
from hpcmpq.executors.world import World, meeting_point
from hpcmpq.models.load import pick_device, quiet_transformers
from hpcmpq.models.memory import return_freed_memory
from hpcmpq.settings import Config
from hpcmpq.stopping import SIGNALS


@contextmanager
def joined_ranks(config: Config, world: World) -> Iterator[tuple[Any, torch.device]]:
    """Inside, all ranks of the job are connected; yields DeepSpeed and this rank's device.

    Raises:
        UserError: If DeepSpeed is missing or the ranks cannot meet.
    """
    device = pick_device(config.model.device)
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        return_freed_memory()
    waits_for = f"{world.size} ranks of {world.launcher}" if world.rank == 0 and world.size > 1 else ""
    with signals_heard(waits_for):
        address, port = meeting_point(world, os.environ)
    # Where torchrun's agent keeps the meeting point, it has started all ranks; and MPI knew them all.
    if world.launcher != "mpiexec" and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        call_roll(world, address, port, os.environ)
    deepspeed = _load_deepspeed()
    with signals_heard(""):
        device = _join_world(deepspeed, world, device, address, port)
    with quiet_transformers():
        import transformers  # noqa: F401  (before memory is counted)
    yield deepspeed, device
    deepspeed.comm.destroy_process_group()


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Inside, signals that ask to stop are listed and raise nothing: all ranks must leave together."""
    stop: list[int] = []
    before = {number: signal.signal(number, lambda n, _: stop.append(n)) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def gathered(value: Any, num_ranks: int) -> list[Any]:
    """What every rank gave, in order, on all of them."""
    values: list[Any] = [None] * num_ranks
    dist.all_gather_object(values, value)
    return values


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


def _join_world(deepspeed: Any, world: World, device: torch.device, address: str, port: int) -> torch.device:
    """Meet the other ranks; the device of this one."""
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
