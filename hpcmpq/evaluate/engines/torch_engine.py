"""Plain torch in one process: what other engines are compared with.

The whole model is in memory, or one block at a time where the config streams it.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hpcmpq.errors import UserError
from hpcmpq.executors.world import World
from hpcmpq.models.load import forward, pick_device, quiet_transformers
from hpcmpq.models.memory import live_bytes, peak_bytes
from hpcmpq.plan import Plan
from hpcmpq.quantized.side_by_side import SideBySide, find_walk
from hpcmpq.quantized.solved import open_as_planned
from hpcmpq.quantized.variants import Variants
from hpcmpq.settings import Config
from hpcmpq.store.run_dir import RunDir


@dataclass(frozen=True)
class TorchEngine:
    """See `hpcmpq.evaluate.engines.EvaluationEngine`."""

    variants: Variants
    device: torch.device
    start_bytes: int
    rank: int = 0
    size: int = 1

    def assigned(self, assignment: Mapping[str, str]) -> AbstractContextManager[None]:
        """See `Engine.assigned`."""
        return self.variants.assigned(assignment)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """See `Engine.forward`."""
        return forward(self.variants.model, {name: value.to(self.device) for name, value in inputs.items()})

    def side_by_side(self, inputs: dict[str, Tensor]) -> SideBySide | None:
        """See `Engine.side_by_side`."""
        return find_walk(self.variants, inputs)

    def share(self, numbers: tuple[int, ...]) -> list[tuple[int, ...]]:
        """See `Engine.share`."""
        return [numbers]

    def gather(self, value: Any) -> list[Any]:
        """See `Engine.gather`."""
        return [value]

    def stop_signal(self) -> int:
        """Always 0: a signal raises where it arrives."""
        return 0

    def facts(self) -> dict[str, Any]:
        """See `Engine.facts`."""
        return {
            "model_bytes": sum(p.nbytes for p in self.variants.model.parameters()),
            "peak_bytes": [peak_bytes(self.device) - self.start_bytes],
        }


@contextmanager
def open_engine(run: RunDir, plan: Plan, config: Config, world: World) -> Iterator[TorchEngine]:
    """The model on the configured device.

    Raises:
        UserError: If several ranks were started.
    """
    if world.size > 1:
        raise UserError(
            f"{world.launcher} started {world.size} ranks and engine torch runs in one process; "
            "start one, also outside of a step of several tasks (srun --ntasks=1 --overlap), or use --engine deepspeed "
            "or --executor mpi"
        )
    yield make_engine(run, plan, config)


def make_engine(run: RunDir, plan: Plan, config: Config) -> TorchEngine:
    """The engine of this process, whoever else there is."""
    device = pick_device(config.model.device)
    with quiet_transformers():
        import transformers  # noqa: F401  (before memory is counted)
    start_bytes = live_bytes(device)
    return TorchEngine(open_as_planned(run, plan), device, start_bytes)
