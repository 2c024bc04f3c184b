"""The search space: parameter groups, the formats each may take, and the flat option index.

Axis letters used across the package: P options, G groups, R rows, N samples, T tokens, V vocabulary
or outputs, K inputs, M output channels.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

Assignment = Mapping[str, str]
"""{group name: format name}."""


@dataclass(frozen=True)
class Member:
    """One weight tensor of a group, seen as a matrix of output channels by inputs.

    Attributes:
        parameter: Qualified parameter name, such as ``model.layers.0.mlp.up_proj.weight``.
        num_rows: Output channels M.
        num_columns: Inputs K of each output channel (for a convolution, channels times kernel).
        transposed: Whether the stored tensor is [K, M] (transformers' Conv1D).
        macs: Multiply-accumulates of one sample's forward pass.
        active: Share of its numbers that a token reads on average, see `hpcmpq.models.active_weights`.
        tensors: Tensors of as many rows each in which checkpoints hold it, such as one of each expert.
    """

    parameter: str
    num_rows: int
    num_columns: int
    transposed: bool = False
    macs: int = 0
    active: float = 1.0
    tensors: int = 1

    @property
    def numel(self) -> int:
        """Number of weights."""
        return self.num_rows * self.num_columns

    @property
    def is_layer_weight(self) -> bool:
        """Whether it is the `weight` of a layer, not a parameter among others of a module, such as fused experts."""
        return self.parameter.rpartition(".")[2] == "weight"


KV_BYTES = "kv_bytes_per_token"
"""The cost that counts what caches keep of a token."""


@dataclass(frozen=True)
class Product:
    """A product of two activations inside attention, such as queries times keys; or its cache of keys and values.

    Attributes:
        module: Name of the module that multiplies or keeps them, see `hpcmpq.models.attention_products`.
        macs: Multiply-accumulates of one sample's forward pass.
        cached: Numbers that a token adds to a cache; 0 of a product.
        vectors: Vectors, each of one head, that these numbers are; a scaled format stores a scale with each.
    """

    module: str
    macs: int = 0
    cached: int = 0
    vectors: int = 0


@dataclass(frozen=True)
class Group:
    """Tensors that must share one format.

    Attributes:
        name: Unique name: the module's, or the tie rule's.
        members: The weights, in model order; none where the group is a product of activations.
        block: Index of the repeated block it lives in, or None.
        products: Products of activations, whose two factors a format rounds as it rounds a layer's inputs, or a cache
            of keys and values, which it rounds likewise.
    """

    name: str
    members: tuple[Member, ...]
    block: int | None = None
    products: tuple[Product, ...] = ()

    @property
    def numel(self) -> int:
        """Number of weights."""
        return sum(member.numel for member in self.members)

    @property
    def is_cache(self) -> bool:
        """Whether it is a cache of keys and values."""
        return any(product.cached for product in self.products)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one sample's forward pass."""
        return sum(member.macs for member in self.members) + sum(product.macs for product in self.products)


@dataclass(frozen=True)
class Option:
    """Group `group` in format `format`: one row and column of the quadratic model."""

    index: int
    group: int
    format: str


@dataclass(frozen=True)
class SearchSpace:
    """All groups and the formats they may take; options are numbered group by group.

    Attributes:
        groups: In model order.
        formats: For each group the names of its formats, in increasing number of bits.
    """

    groups: tuple[Group, ...]
    formats: tuple[tuple[str, ...], ...]

    @cached_property
    def options(self) -> tuple[Option, ...]:
        """All options in index order."""
        pairs = [(g, f) for g, names in enumerate(self.formats) for f in names]
        return tuple(Option(index, group, name) for index, (group, name) in enumerate(pairs))

    @cached_property
    def group_P(self) -> np.ndarray:
        """Group index of every option, int64 [P]."""
        return np.repeat(np.arange(len(self.groups)), [len(names) for names in self.formats])

    @cached_property
    def offset_G(self) -> np.ndarray:
        """First option of every group, int64 [G]."""
        return np.searchsorted(self.group_P, np.arange(len(self.groups)))

    @property
    def num_options(self) -> int:
        """P."""
        return sum(len(names) for names in self.formats)

    def slice_of(self, group: int) -> slice:
        """The options of one group as a slice of the option index."""
        start = sum(len(names) for names in self.formats[:group])
        return slice(start, start + len(self.formats[group]))

    def uniform(self, format_name: str) -> dict[str, str]:
        """{group name: format name} with all weights and products in one format, and caches in their widest."""
        return {
            group.name: names[-1] if group.is_cache else format_name
            for group, names in zip(self.groups, self.formats, strict=True)
        }

    def among(self, options: Iterable[int]) -> "SearchSpace":
        """Some of the options alone, of the groups that have some; `options` are their indices."""
        formats: dict[int, list[str]] = {}
        for p in sorted(options):
            formats.setdefault(self.options[p].group, []).append(self.options[p].format)
        return SearchSpace(
            tuple(self.groups[group] for group in formats), tuple(map(tuple, formats.values()))
        )

    def places_of(self, options: Iterable[Option], space: "SearchSpace") -> np.ndarray:
        """Indices here of another space's options, int64."""
        index = {(self.groups[o.group].name, o.format): o.index for o in self.options}
        return np.array([index[space.groups[o.group].name, o.format] for o in options], dtype=np.int64)

    def assignment(self, choice_G: Sequence[int] | np.ndarray) -> dict[str, str]:
        """{group name: format name} of an option index per group."""
        return {self.groups[self.options[p].group].name: self.options[p].format for p in choice_G}

    def choice(self, assignment: Mapping[str, str]) -> np.ndarray:
        """Option index per group, int64 [G], of {group name: format name}.

        Raises:
            ValueError: If a group is missing or a format is not among its options.
        """
        index = {(self.groups[o.group].name, o.format): o.index for o in self.options}
        try:
            return np.array([index[g.name, assignment[g.name]] for g in self.groups], dtype=np.int64)
        except KeyError as error:
            raise ValueError(f"assignment has no valid entry for {error.args[0]!r}") from None
