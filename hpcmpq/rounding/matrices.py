"""Matrices of weights that are given inputs of their own: a layer's weight, or that of one of its fused experts.

A layer's inputs are what it is called with. Fused experts are called with the tokens of all: what each expert's matrix
is multiplied by is seen where torch multiplies. That is so where transformers runs experts one by one or by grouped
products; its batched products are with a gathered copy of the weights, of which nothing is seen
(`hpcmpq.models.searchable_layers.experts_one_by_one`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hpcmpq.models.layer_kinds import are_experts
from hpcmpq.models.weights import as_matrix, holder_of
from hpcmpq.space import Member

_PRODUCTS = ("linear", "matmul", "__matmul__", "mm", "bmm")
_GROUPED = ("grouped_mm", "_grouped_mm", "transformers::grouped_mm_fallback")


@dataclass(frozen=True)
class OwnMatrix:
    """One matrix.

    Attributes:
        member: The weight that it is, or is a part of.
        expert: Its place there, or None of a layer's.
    """

    member: Member
    expert: int | None = None

    def of(self, model: nn.Module) -> Tensor:
        """Its numbers, [M outputs, K inputs]."""
        weight = model.get_parameter(self.member.parameter)
        if self.expert is None:
            return as_matrix(weight, self.member)
        own = weight[self.expert]
        return own.mT if self.member.transposed else own


def is_of_experts(model: nn.Module, member: Member) -> bool:
    """Whether a weight holds a matrix of each expert of a layer."""
    return are_experts(holder_of(model, member)) and model.get_parameter(member.parameter).ndim == 3


def num_matrices(model: nn.Module, member: Member) -> int:
    """How many matrices a weight holds that are given inputs of their own."""
    return model.get_parameter(member.parameter).shape[0] if is_of_experts(model, member) else 1


def matrices_of(model: nn.Module, members: Iterable[Member]) -> list[OwnMatrix]:
    """Every matrix of some weights, in their order."""
    found: list[OwnMatrix] = []
    for member in members:
        of_experts = is_of_experts(model, member)
        found += (
            [OwnMatrix(member, k) for k in range(num_matrices(model, member))]
            if of_experts
            else [OwnMatrix(member)]
        )
    return found


class SeenExperts(TorchFunctionMode):
    """While active, shows the inputs of fused experts.

    Args:
        model: Theirs; the weights are in memory. Its experts do not run as batched products.
        wanted: Of which experts, none of a layer's own.
        look: Called with a matrix and inputs that it is multiplied by, [N, K], of which none is zero throughout.
    """

    def __init__(
        self, model: nn.Module, wanted: Sequence[OwnMatrix], look: Callable[[OwnMatrix, Tensor], None]
    ) -> None:
        super().__init__()
        self._wanted = frozenset(wanted)
        self._look = look
        self._weights: Mapping[Member, Tensor] = {
            matrix.member: model.get_parameter(matrix.member.parameter) for matrix in wanted
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of torch, and look at what it multiplies."""
        name, kwargs = _name_of(func), kwargs or {}
        if name in _PRODUCTS or name in _GROUPED:
            x, weight, *others = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            self._seen(
                x, weight, kwargs.get("offs", others[0] if others else None) if name in _GROUPED else None
            )
        return func(*args, **kwargs)

    def _seen(self, x: Tensor, weight: Tensor, ends_E: Tensor | None) -> None:
        member = next((m for m, whole in self._weights.items() if _is_within(weight, whole)), None)
        if member is None:
            return
        whole = self._weights[member]
        first = (weight.data_ptr() - whole.data_ptr()) // (whole.stride(0) * whole.element_size())
        if weight.ndim == 2:
            parts = {first: x.reshape(-1, x.shape[-1])}
        elif ends_E is not None:
            ends = ends_E.tolist()
            ranges = zip([0, *ends[:-1]], ends, strict=True)
            parts = {k: x[start:end] for k, (start, end) in enumerate(ranges, first)}
        else:
            parts = dict(enumerate(x, first))
        for expert, x_NK in parts.items():
            matrix = OwnMatrix(member, expert)
            if matrix in self._wanted and len(x_NK := x_NK[x_NK.any(dim=-1)]):
                self._look(matrix, x_NK)


@contextmanager
def without_padding_inside(experts: Iterable[nn.Module], masks: Sequence[Tensor]) -> Iterator[None]:
    """Inside, fused experts are given the tokens at real positions alone, and give zeros at the others.

    Nothing that is real looks at those. Experts whose tokens fit no mask are given all.

    Args:
        experts: Modules that are given rows of tokens [N·T, K], once or once for each expert.
        masks: Real positions of the batch, bool [N, T].
    """
    kept: list[Tensor | None] = []

    def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
        x = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        real_NT = next((mask for mask in masks if x.ndim == 2 and len(x) % mask.numel() == 0), None)
        rows = None if real_NT is None else real_NT.flatten().to(x.device).repeat(len(x) // real_NT.numel())
        kept.append(rows)

        def part(value: Any) -> Any:
            of_tokens = rows is not None and isinstance(value, Tensor) and value.shape[:1] == rows.shape
            return value[rows] if of_tokens else value

        return tuple(map(part, args)), {name: part(value) for name, value in kwargs.items()}

    def after(_: nn.Module, args: Any, output: Tensor) -> Tensor:
        rows = kept.pop()
        if rows is None:
            return output
        whole = output.new_zeros(len(rows), *output.shape[1:])
        whole[rows] = output
        return whole

    handles = []
    for module in experts if masks else ():
        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _name_of(func: Any) -> str:
    return str(getattr(func, "_qualified_op_name", getattr(func, "__name__", "")))


def _is_within(part: Tensor, whole: Tensor) -> bool:
    """Whether a tensor is a view of another, or of a part of it."""
    start = whole.data_ptr()
    return start <= part.data_ptr() < start + whole.numel() * whole.element_size()
