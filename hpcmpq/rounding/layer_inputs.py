"""The inputs of linear layers while a part of a model runs, and sums over them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hpcmpq.models.layer_kinds import first_input
from hpcmpq.quantized.padding import without_padding
from hpcmpq.space import Member

LinearLayers = Mapping[Member, nn.Module]
"""{weight: its layer}."""


@dataclass
class InputSums:
    """Sums over the inputs x̃ of a layer in the quantized model, and x in the original.

    Attributes:
        hessian_KK: H = Σ x̃ x̃ᵀ, float64 [K, K].
        cross_KK: C = Σ (x − x̃) x̃ᵀ, or None where it is not known which x belongs to which x̃.
        num_rows: Inputs that were added.
    """

    hessian_KK: Tensor
    cross_KK: Tensor | None
    num_rows: int = 0

    def add(self, quantized_NK: Tensor, original_NK: Tensor | None) -> None:
        """Add rows; without the original's of the same positions there is no cross term any more."""
        quantized_NK = quantized_NK.double()
        self.hessian_KK += quantized_NK.T @ quantized_NK
        self.num_rows += len(quantized_NK)
        if original_NK is None:
            self.cross_KK = None
        elif self.cross_KK is not None:
            self.cross_KK += (original_NK.double() - quantized_NK).T @ quantized_NK

    def absorb(self, other: "InputSums") -> None:
        """Add those of other inputs, with cross terms if both have them."""
        self.hessian_KK += other.hessian_KK
        self.num_rows += other.num_rows
        if other.cross_KK is None:
            self.cross_KK = None
        elif self.cross_KK is not None:
            self.cross_KK += other.cross_KK

    def __add__(self, other: "InputSums") -> "InputSums":
        """Of the inputs of both, without cross terms."""
        return InputSums(self.hessian_KK + other.hessian_KK, None, self.num_rows + other.num_rows)


def no_sums(member: Member, device: torch.device, crossed: bool) -> InputSums:
    """Sums before anything is added."""
    hessian_KK = torch.zeros(member.num_columns, member.num_columns, dtype=torch.float64, device=device)
    return InputSums(hessian_KK, torch.zeros_like(hessian_KK) if crossed else None)


@dataclass(frozen=True)
class SameInputs:
    """LinearLayers that are given the same tensor, such as queries, keys and values.

    Attributes:
        layers: The layers.
        calls: Times that the first of them runs in a pass.
    """

    layers: LinearLayers
    calls: int


class _AllSeen(Exception):
    """What is wanted of a pass has been seen."""


def inputs_in_order(run: Callable[[], object], layers: LinearLayers) -> list[SameInputs]:
    """LinearLayers by the tensor that they are given, in the order in which it first is.

    Args:
        run: A pass.
        layers: To look at; those that do not run come last, each alone.
    """
    seen: list[tuple[Tensor, list[Member]]] = []
    calls = dict.fromkeys(layers, 0)

    def look(member: Member, x: Tensor) -> None:
        calls[member] += 1
        if calls[member] > 1:
            return
        same = next((members for other, members in seen if other is x), None)
        if same is None:
            seen.append((x, [member]))
        else:
            same.append(member)

    with hooked(layers, look):
        run()
    found = [members for _, members in seen]
    found += [[member] for member in layers if not calls[member]]
    return [SameInputs({m: layers[m] for m in members}, calls[members[0]]) for members in found]


def rows_given(
    run: Callable[[], object], same: SameInputs, masks: tuple[Tensor, ...]
) -> tuple[Tensor, int] | None:
    """What the layers are given in a pass, padding aside, [N, K], and with how many rows it came; None if nothing.

    The pass ends where nothing more is expected.
    """
    member = next(iter(same.layers))
    seen: list[Tensor] = []

    def look(_: Member, x: Tensor) -> None:
        seen.append(x)
        if same.calls and len(seen) >= same.calls:
            raise _AllSeen

    with hooked({member: same.layers[member]}, look), suppress(_AllSeen):
        run()
    if not seen:
        return None
    rows = [without_padding(x, masks).reshape(-1, member.num_columns) for x in seen]
    return torch.cat(rows), sum(x.numel() // member.num_columns for x in seen)


@contextmanager
def hooked(layers: LinearLayers, look: Callable[[Member, Tensor], None]) -> Iterator[None]:
    """Hooks that run after a layer, and so see its inputs as hooks before it may have rounded them."""
    handles = [
        layer.register_forward_hook(
            lambda _m, args, _z, member=member: look(member, first_input(member.parameter, args))
        )
        for member, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
