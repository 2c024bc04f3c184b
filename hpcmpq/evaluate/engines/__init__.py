"""What runs the models: one process, or DeepSpeed with the model sharded over ranks.

To add an engine: a file with a function `open_engine(run, plan, config, world)`, a context manager that yields an
`EvaluationEngine`, and its line in `ENGINES`. `tests/evaluate` compares every engine with ``torch``.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor

from hpcmpq.executors.world import World
from hpcmpq.plan import Plan
from hpcmpq.quantized.side_by_side import SideBySide
from hpcmpq.settings import Config
from hpcmpq.store.run_dir import RunDir
from hpcmpq.tables import look_up, named_by

ENGINES = {
    "torch": "hpcmpq.evaluate.engines.torch_engine:open_engine",
    "deepspeed": "hpcmpq.evaluate.engines.deepspeed_engine:open_engine",
}


class EvaluationEngine(Protocol):
    """A model whose weights can be changed, on one or more ranks that all call every method together."""

    @property
    def rank(self) -> int:
        """This process."""

    @property
    def size(self) -> int:
        """All of them."""

    def assigned(self, assignment: Mapping[str, str]) -> AbstractContextManager[None]:
        """Inside, the model with {group name: format name} applied; an empty one is the original."""

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """The outputs z [N, T, V] of this rank's inputs, which are on the CPU."""

    def side_by_side(self, inputs: dict[str, Tensor]) -> SideBySide | None:
        """How several models run together, block after block, found with some inputs; None where each runs alone."""

    def share(self, numbers: tuple[int, ...]) -> list[tuple[int, ...]]:
        """The numbers of every rank, in order."""

    def gather(self, value: Any) -> list[Any]:
        """What every rank gave, in order."""

    def stop_signal(self) -> int:
        """Number of the signal that told this rank to stop, or 0."""

    def facts(self) -> dict[str, Any]:
        """What to report about the engine: bytes of the model, the most that each rank held, ..."""


Opener = Callable[[RunDir, Plan, Config, World], AbstractContextManager[EvaluationEngine]]


def find_engine(name: str) -> Opener:
    """The function that opens an engine.

    Raises:
        UserError: If there is no such engine; the message names those there are.
    """
    return named_by(look_up(ENGINES, name, "engine"))  # type: ignore[no-any-return]
