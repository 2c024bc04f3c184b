"""What an option changes in a chain of blocks: the weights of one block or several, or those outside all blocks."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hpcmpq.models.chain.chain import Chain
from hpcmpq.models.chain.places import first_block, is_outside, places_of_groups
from hpcmpq.models.memory import large_empty
from hpcmpq.models.weights import Tensors, swapped
from hpcmpq.quantized.variants import Variants
from hpcmpq.response.low_precision import LowPrecisionLayers


@dataclass
class Changes:
    """The options of a search space, by the places of a chain where they act.

    Attributes:
        chain: The model.
        variants: Quantized weights.
        products: Low-precision matrix products with compensated differences, or None.
    """

    chain: Chain
    variants: Variants
    products: LowPrecisionLayers | None = None
    _names: list[list[dict[str, str]]] = field(init=False)

    def __post_init__(self) -> None:
        self._names = places_of_groups(self.chain, self.variants.model, self.variants.space.groups)

    def group(self, option: int) -> int:
        """Index of an option's group."""
        return self.variants.space.options[option].group

    def group_name(self, option: int) -> str:
        """Name of an option's group."""
        return self.variants.space.groups[self.group(option)].name

    def is_outside(self, option: int) -> bool:
        """Whether an option changes weights of prologue or epilogue."""
        return is_outside(self._names[self.group(option)])

    def is_inside(self, option: int, k: int) -> bool:
        """Whether an option changes weights of block k."""
        return bool(self._names[self.group(option)][k + 1])

    def first_block(self, option: int) -> int:
        """The first block that an option changes; 0 for weights of prologue or epilogue."""
        return first_block(self._names[self.group(option)])

    def inside(self, members: list[int], k: int) -> tuple[Tensors, Tensors, Tensors]:
        """Weights to replace, by block k's own names, errors of low-precision products, and the number of each
        option where activations are rounded; stacked, [Q, ...].
        """
        names = self._names[self.group(members[0])][k + 1]
        tensors: Tensors = {}
        deltas: Tensors = {}
        for place, p in enumerate(members):
            self._put(tensors, deltas, names, p, place, len(members))
        group = self.group(members[0])
        rounds = self.variants.activations.rounds(group) or not (tensors or deltas)
        device = next(iter(self.variants.model.parameters())).device
        index = {"option": torch.arange(len(members), device=device)} if rounds else {}
        return tensors, deltas, index

    def _put(
        self, tensors: Tensors, deltas: Tensors, names: dict[str, str], p: int, place: int, count: int
    ) -> None:
        """An option's weights and errors at its place of `count`: those of one option at a time are in memory twice."""
        for name, tensor in self._quantized(p).items():
            if name not in names:
                continue
            layers, replace = ([], True) if self.products is None else self.products.adding("block", name)
            if layers:
                delta = tensor - self.variants.model.get_parameter(name)
                for layer in layers:
                    deltas.setdefault(layer, delta.new_empty((count, *delta.shape)))[place] = delta
            if replace:
                own = names[name]
                if own not in tensors:
                    tensors[own] = large_empty((count, *tensor.shape), like=tensor)
                tensors[own][place] = tensor

    @contextmanager
    def outside(self, scope: str, option: int) -> Iterator[None]:
        """Context in which prologue and epilogue have an option's weights."""
        tensors = {
            n: t for n, t in self._quantized(option).items() if n in self._names[self.group(option)][0]
        }
        deltas: Tensors = {}
        if self.products is not None:
            tensors, deltas = self.products.split(scope, self.variants.model, tensors)
        space = self.variants.space
        own = {space.groups[self.group(option)].name: space.options[option].format}
        rounded = self.variants.activations.rounded(own)
        with swapped(self.variants.model, tensors), self.replaying(scope, deltas), rounded:
            yield

    def recording(self, scope: str) -> AbstractContextManager[None]:
        """Context in which low-precision products remember what they do on the original."""
        return nullcontext() if self.products is None else self.products.recording(scope)

    def replaying(self, scope: str, deltas: Tensors) -> AbstractContextManager[None]:
        """Context in which low-precision products run relative to what was recorded."""
        return nullcontext() if self.products is None else self.products.replaying(scope, deltas)

    def rounding(self, members: Sequence[int], index: Tensor | None) -> AbstractContextManager[None]:
        """Context in which the options' group rounds activations, by the place of the option in `members`."""
        if index is None:
            return nullcontext()
        formats = [self.variants.space.options[p].format for p in members]
        return self.variants.activations.rounded_by_index(self.group(members[0]), formats, index)

    def _quantized(self, option: int) -> Tensors:
        chosen = self.variants.space.options[option]
        return self.variants.quantized(self.variants.space.groups[chosen.group], chosen.format)
