"""Plain torch in one process, the whole model in memory: what other engines are compared with."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hpcmpq.config import Config
from hpcmpq.errors import UserError
from hpcmpq.models.load import forward, load_model
from hpcmpq.plan import Plan
from hpcmpq.store import RunDir
from hpcmpq.variants import Variants, open_variants
from hpcmpq.world import World


@dataclass(frozen=True)
class TorchEngine:
    """See `hpcmpq.evaluate.engines.Engine`."""

    variants: Variants
    rank: int = 0
    size: int = 1

    def assigned(self, assignment: Mapping[str, str]) -> AbstractContextManager[None]:
        """See `Engine.assigned`."""
        return self.variants.assigned(assignment)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """See `Engine.forward`."""
        device = next(self.variants.model.parameters()).device
        return forward(self.variants.model, {name: value.to(device) for name, value in inputs.items()})

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
        model = self.variants.model
        facts: dict[str, Any] = {"model_bytes": sum(p.nbytes for p in model.parameters())}
        if next(model.parameters()).device.type == "cuda":
            facts["peak_bytes"] = [torch.cuda.max_memory_allocated()]
        return facts


@contextmanager
def open_engine(run: RunDir, plan: Plan, config: Config, world: World) -> Iterator[TorchEngine]:
    """The model on the configured device.

    Raises:
        UserError: If several ranks were started.
    """
    if world.size > 1:
        raise UserError(
            f"{world.launcher} started {world.size} ranks and engine torch runs in one process; "
            "start one, or use --engine deepspeed"
        )
    model = load_model(config.model, import_paths=plan.import_paths)
    yield TorchEngine(open_variants(run, plan, model))
