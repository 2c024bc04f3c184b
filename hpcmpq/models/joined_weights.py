"""Tensors of a model that transformers makes of several in its files, such as all experts of a layer of one each.

They are made by transformers' own operations. Where these stack one tensor of each expert, experts are read and
joined a few at a time, in the dtype of the files, so that no second copy of a layer's experts is ever in memory.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hpcmpq.errors import UserError
from hpcmpq.models.memory import large_empty

ReadStored = Callable[[str], Tensor]
"""Name in the files → that tensor as it is there, on the CPU."""

MakeOwn = Callable[[Tensor], Tensor]
"""A tensor → the same in the model's dtype, on its device."""

EXPERTS_AT_ONCE = 4
"""Experts that are read before they are copied to their places."""


@dataclass(frozen=True)
class JoinedWeight:
    """A tensor of the model that is none in its files.

    Attributes:
        name: The name that transformers gives what it makes.
        first: The name under which it collects what it makes it of.
        converter: Transformers' description of how.
        sources: (name in the files, the converter's pattern) in transformers' order.
        model: Whose weights they are, for operations that look at its configuration or shapes.
        shape: Of the tensor.
    """

    name: str
    first: str
    converter: Any
    sources: tuple[tuple[str, str], ...]
    model: nn.Module
    shape: torch.Size

    @property
    def stored(self) -> tuple[str, ...]:
        """Names in the files."""
        return tuple(name for name, _ in self.sources)

    def read(self, read: ReadStored, own: MakeOwn, into: Tensor | None = None) -> Tensor:
        """The tensor, in memory that is given or new."""
        if not self.is_stack:
            made = self._whole(read, own)
            return made if into is None else filled(into, made)
        if into is not None and into.shape != self.shape:
            raise ValueError(f"{self.name} is {tuple(self.shape)}, not {tuple(into.shape)}")
        whole = into
        for start in range(0, self.shape[0], EXPERTS_AT_ONCE):
            stop = min(start + EXPERTS_AT_ONCE, self.shape[0])
            part = self._made(self._sources_of(start, stop), read)
            if whole is None:
                whole = large_empty(tuple(self.shape), like=own(part))
            whole[start:stop] = part
        assert whole is not None
        return whole

    def rows(self, start: int, stop: int, read: ReadStored, own: MakeOwn) -> Tensor:
        """A range of its first axis; of a stack of experts nothing else is read."""
        if not self.is_stack:
            return self._whole(read, own)[start:stop]
        return own(self._made(self._sources_of(start, stop), read))

    @property
    def is_stack(self) -> bool:
        """Whether its first axis stacks tensors of the files, and nothing that is done with them mixes these."""
        first, *others = self.converter.operations
        stacks = type(first).__name__ == "MergeModulelist" and first.dim == 0
        apart = all(_keeps_first_axis(operation) for operation in others)
        return stacks and apart and {len(own) for own in self._by_pattern().values()} == {self.shape[0]}

    def _whole(self, read: ReadStored, own: MakeOwn) -> Tensor:
        made = self._made(self.sources, lambda name: own(read(name)))
        self._check(made.shape, self.shape == made.shape)
        return made

    def _sources_of(self, start: int, stop: int) -> list[tuple[str, str]]:
        """Of a range of the experts in a stack."""
        return [each for own in self._by_pattern().values() for each in own[start:stop]]

    def _by_pattern(self) -> dict[str, list[tuple[str, str]]]:
        found: dict[str, list[tuple[str, str]]] = {}
        for name, pattern in self.sources:
            found.setdefault(pattern, []).append((name, pattern))
        return found

    def _made(self, sources: Iterable[tuple[str, str]], read: ReadStored) -> Tensor:
        converter = copy.deepcopy(self.converter)
        for name, pattern in sources:
            converter.add_tensor(self.first, name, pattern, read(name))
        made = converter.convert(self.first, model=self.model, config=getattr(self.model, "config", None))
        [tensor] = made[self.name] if isinstance(made[self.name], list) else [made[self.name]]
        self._check(tensor.shape, tensor.shape[1:] == self.shape[1:])
        return tensor

    def _check(self, made: torch.Size, fits: bool) -> None:
        if not fits:
            raise UserError(
                f"the files hold {self.sources[0][0]} and others that make {self.name} {list(made)}, and "
                f"config.json makes it {list(self.shape)}; check that it belongs to these weights"
            )


def filled(into: Tensor, tensor: Tensor) -> Tensor:
    """Memory that is given, with a tensor's values.

    Raises:
        ValueError: If it has another shape.
    """
    if into.shape != tensor.shape:
        raise ValueError(f"a tensor of {tuple(tensor.shape)} does not fill one of {tuple(into.shape)}")
    return into.copy_(tensor)


def _keeps_first_axis(operation: Any) -> bool:
    kind = type(operation).__name__
    if kind == "Concatenate":
        return bool(operation.dim > 0)
    return kind == "Transpose" and not operation.check_dims and min(operation.dim0, operation.dim1) > 0


def joined_weights(model: nn.Module, names: Iterable[str]) -> dict[str, JoinedWeight]:
    """{name that transformers gives a tensor: how it is made} of all that it makes of those in a model's files."""
    renamings, converters = conversions(model)
    if not converters:
        return {}
    from transformers.core_model_loading import dot_natural_key, rename_source_key

    by_pattern = {pattern: entry for entry in converters for pattern in entry.source_patterns}
    collected: dict[str, list[tuple[str, str]]] = {}
    for name in sorted(names, key=dot_natural_key):
        renamed, pattern = rename_source_key(name, renamings, converters)
        if pattern is not None:
            collected.setdefault(renamed, []).append((name, pattern))
    prefix = getattr(model, "base_model_prefix", "") + "."
    shapes = {name: parameter.shape for name, parameter in model.named_parameters(remove_duplicate=False)}
    found: dict[str, JoinedWeight] = {}
    for first, sources in collected.items():
        converter = by_pattern[sources[0][1]]
        for target in converter.target_patterns:
            name = first.replace(converter.target_patterns[0], target)
            own = next((n for n in (name, prefix + name, name.removeprefix(prefix)) if n in shapes), None)
            if own is not None:
                found[name] = JoinedWeight(name, first, converter, tuple(sources), model, shapes[own])
    return found


def conversions(model: nn.Module) -> tuple[list[Any], list[Any]]:
    """What transformers renames between a model and its files, and what it joins and takes apart.

    Empty with transformers 4, which stores the model's own tensors, and of models that are not of transformers.
    """
    if not hasattr(model, "config"):
        return [], []
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming
    except ImportError:
        return [], []
    found = get_model_conversion_mapping(model)
    kinds = (WeightRenaming, WeightConverter)
    renamings, converters = ([each for each in found if isinstance(each, kind)] for kind in kinds)
    return renamings, converters
