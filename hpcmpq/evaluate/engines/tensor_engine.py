"""DeepSpeed's `init_inference`: every layer's matrices cut over the ranks, which all run the same samples.

For models that DeepSpeed's automatic tensor parallelism knows, such as Llama's relatives. A GPU holds the model
divided by the number of ranks and nothing is gathered, so short inputs run faster than with ZeRO-3. But each process
loads and rounds the whole model in host memory before it gives away all but its part, once for each change of weights.
"""

import contextlib
import dataclasses
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hpcmpq.errors import UserError, raise_if_no_room
from hpcmpq.evaluate.engines.ranks import gathered
from hpcmpq.formats import FORMATS
from hpcmpq.models.load import forward, load_model
from hpcmpq.models.memory import peak_bytes
from hpcmpq.plan import Plan
from hpcmpq.quantized.solved import open_solved
from hpcmpq.settings import Config, ModelConfig
from hpcmpq.store.run_dir import RunDir


@dataclass
class TensorEngine:
    """See `hpcmpq.evaluate.engines.EvaluationEngine`: towards its caller one rank, which is spread over all."""

    run: RunDir
    plan: Plan
    config: Config
    deepspeed: Any
    device: torch.device
    num_ranks: int
    start_bytes: int
    stop: list[int]
    rank: int = 0
    size: int = 1
    _model: nn.Module | None = None
    _assignment: dict[str, str] | None = None
    _model_bytes: list[int] = field(default_factory=list)

    @contextmanager
    def assigned(self, assignment: Mapping[str, str]) -> Iterator[None]:
        """See `Engine.assigned`."""
        if self._model is None or self._assignment != dict(assignment):
            self._model, self._assignment = None, dict(assignment)  # frees the last before the next is loaded
            self._model = self._cut(assignment)
        yield

    def _cut(self, assignment: Mapping[str, str]) -> nn.Module:
        rounded = sorted({name for name in assignment.values() if FORMATS[name].activation is not None})
        if rounded and self.num_ranks > 1:
            raise UserError(
                f"{rounded[0]} rounds a layer's inputs, of which each rank sees a part; "
                "set evaluation.sharding: zero3"
            )
        config = self.config.model
        model = load_model(_on_host(config), import_paths=self.plan.import_paths)
        variants = open_solved(self.run, self.plan, model, check_outputs=not assignment)
        with torch.no_grad():
            for name, tensor in variants.weights(assignment).items():
                model.get_parameter(name).copy_(tensor)
        self._model_bytes = [sum(p.nbytes for p in model.parameters())]
        try:
            # It prints what it finds, on every rank.
            with contextlib.redirect_stdout(io.StringIO()):
                engine = self.deepspeed.init_inference(
                    model, tensor_parallel={"tp_size": self.num_ranks}, dtype=getattr(torch, config.dtype),
                    replace_with_kernel_inject=False,
                )  # fmt: skip
        except Exception as error:  # it takes the model's own code apart: it may fail in any way
            raise_if_no_room(error)
            raise UserError(
                f"DeepSpeed cannot cut {type(model).__name__} over {self.num_ranks} ranks ({error}); "
                "set evaluation.sharding: zero3"
            ) from error
        cut: nn.Module = engine.module
        return cut.eval()

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """See `Engine.forward`; also before the first assignment."""
        if self._model is None:
            with self.assigned({}):
                return self.forward(inputs)
        return forward(self._model, {name: value.to(self.device) for name, value in inputs.items()})

    def side_by_side(self, inputs: dict[str, Tensor]) -> None:
        """See `Engine.side_by_side`; ranks hold the model together."""

    def share(self, numbers: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Numbers of all ranks, so that they stop together."""
        return gathered(numbers, self.num_ranks)

    def gather(self, value: Any) -> list[Any]:
        """See `Engine.gather`; all ranks have the same."""
        return [value]

    def stop_signal(self) -> int:
        """See `Engine.stop_signal`."""
        return self.stop[0] if self.stop else 0

    def facts(self) -> dict[str, Any]:
        """`model_bytes`, and of each rank `shard_bytes` and `peak_bytes`."""
        own = 0 if self._model is None else sum(p.nbytes for p in self._model.parameters())
        each = gathered((own, peak_bytes(self.device) - self.start_bytes), self.num_ranks)
        return {
            "sharding": "tensor",
            "model_bytes": self._model_bytes[0] if self._model_bytes else None,
            "shard_bytes": [shard for shard, _ in each],
            "peak_bytes": [peak for _, peak in each],
        }


def _on_host(config: ModelConfig) -> ModelConfig:
    return dataclasses.replace(config, device="cpu")
