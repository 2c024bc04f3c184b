"""ZeRO-3 shards filled in place: each rank reads and rounds only the rows that its own shard overlaps.

ZeRO-3 cuts a parameter, flattened and padded, into one piece per rank. Scales belong to rows, so a rank needs whole
rows to round its piece: those at the ends of the piece are rounded by two ranks, with the same result. No tensor
is ever sent, and only weights that are stored transposed are read whole, one at a time.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpcmpq.formats import Quantizer
from hpcmpq.models.layer_kinds import is_transposed
from hpcmpq.models.load import load_model
from hpcmpq.models.stored_weights import ReadRows, find_weights
from hpcmpq.models.streaming import skeleton
from hpcmpq.models.weights import as_matrix, from_matrix
from hpcmpq.quantized.rounded_weights import RoundedWeights
from hpcmpq.quantized.stored_codes import SolutionCodes, StoredCodes
from hpcmpq.settings import ModelConfig
from hpcmpq.space import Member, SearchSpace


@dataclass
class ZeroPieces:
    """This rank's pieces of all parameters of a model.

    Attributes:
        model: Partitioned by ZeRO-3.
        space: What may be rounded.
        quantizer: How.
        rows: Where originals come from.
        rank: Whose pieces.
        codes: Of weights that were rounded when the run was planned; read whole, one weight at a time.
        solved: Codes that replace them under one whole assignment.
    """

    model: nn.Module
    space: SearchSpace
    quantizer: Quantizer
    rows: ReadRows
    rank: int
    codes: StoredCodes | SolutionCodes | None = None
    solved: SolutionCodes | None = None
    _formats: dict[str, tuple[str | None, bool]] = field(default_factory=dict)

    def fill(self, assignment: Mapping[str, str]) -> None:
        """Round all groups as {group name: format name} says, and restore those that it does not name."""
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        solved = self.solved is not None and dict(assignment) == dict(self.solved.assignment)
        for group in self.space.groups:
            for member in group.members:
                wanted = assignment.get(group.name), solved
                if self._formats.get(member.parameter, (None, solved)) != wanted:
                    self._fill(member.parameter, parameters[member.parameter], member, *wanted)
                    self._formats[member.parameter] = wanted

    def fill_originals(self) -> None:
        """Give every parameter its original values; tied ones once."""
        for name, parameter in self.model.named_parameters():
            self._fill(name, parameter, None, None, False)

    @torch.no_grad()
    def _fill(
        self, name: str, parameter: Any, member: Member | None, format_name: str | None, solved: bool
    ) -> None:
        shape, piece = parameter.ds_shape, parameter.ds_tensor
        low, high = piece_of(parameter.ds_numel, piece.ds_numel, self.rank)
        if low == high:
            return
        start, stop = rows_of(shape, low, high)
        if member is None or format_name is None:
            values = self.rows(name, start, stop).to(piece.device)
        else:
            if member.transposed:
                start, stop = 0, shape[0]
            stored = self.rows(name, start, stop).to(piece.device)
            weights = self._solved_weights if solved else self._weights
            values = self._rounded(weights, member, stored, format_name, start)
        first = low - start * _width(shape)
        piece[: high - low].copy_(values.reshape(-1)[first : first + high - low])

    def _rounded(
        self, weights: RoundedWeights, member: Member, stored: Tensor, format_name: str, start: int
    ) -> Tensor:
        """A weight from a place of its first axis on, rounded as the whole weight would be: no row depends on another.

        That axis counts experts where a tensor holds several, whose rows follow one another.
        """
        if member.transposed:
            matrix_MK, first = as_matrix(stored, member), 0
        else:
            matrix_MK = stored.reshape(-1, member.num_columns)
            first = start * (len(matrix_MK) // len(stored))
        return from_matrix(weights.decoded(member, format_name, matrix_MK, first), member, stored)

    @cached_property
    def _weights(self) -> RoundedWeights:
        return RoundedWeights(self.quantizer, self.codes)

    @cached_property
    def _solved_weights(self) -> RoundedWeights:
        return RoundedWeights(self.quantizer, self.solved)


def piece_of(numel: int, piece_numel: int, rank: int) -> tuple[int, int]:
    """Range of a flattened parameter that is a rank's piece, without padding.

    Example:
        >>> [piece_of(10, 4, rank) for rank in range(3)]
        [(0, 4), (4, 8), (8, 10)]
    """
    low = min(rank * piece_numel, numel)
    return low, min(low + piece_numel, numel)


def rows_of(shape: tuple[int, ...], low: int, high: int) -> tuple[int, int]:
    """Rows of a parameter that a range of its flattened elements overlaps.

    Example:
        >>> rows_of((5, 4), 6, 13)
        (1, 4)
    """
    width = _width(shape)
    return low // width, -(-high // width)


def _width(shape: tuple[int, ...]) -> int:
    width = 1
    for size in shape[1:]:
        width *= size
    return width


def build(
    config: ModelConfig, import_paths: tuple[str, ...], rank: int, size: int
) -> tuple[nn.Module, ReadRows]:
    """The model before it is partitioned, and where its originals come from.

    A directory's model has no values yet. A factory's has them all, since the factory made them, and this rank's
    rows are kept when it gives them up.

    Raises:
        UserError: If the model cannot be built, or its safetensors do not hold its parameters by their names.
    """
    if config.path is None:
        model = load_model(config, import_paths=import_paths)
        return model, _kept_rows(model, rank, size)
    model = skeleton(config)
    weights = find_weights(model, Path(config.path), getattr(torch, config.dtype), torch.device("cpu"))
    for path, module in model.named_modules():
        for own_name in module._buffers:
            name = f"{path}.{own_name}" if path else own_name
            if name in weights.aliases:
                module._buffers[own_name] = weights.read(name)
    return model, weights.rows


def _kept_rows(model: nn.Module, rank: int, size: int) -> ReadRows:
    kept: dict[str, tuple[int, Tensor]] = {}
    transposed = {id(p) for m in model.modules() if is_transposed(m) for p in m.parameters(recurse=False)}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        low, high = piece_of(parameter.numel(), -(-parameter.numel() // size), rank)
        start, stop = rows_of(tuple(parameter.shape), low, high)
        if id(parameter) in transposed:
            start, stop = 0, parameter.shape[0]
        whole = parameter.detach().reshape(1) if parameter.ndim == 0 else parameter.detach()
        kept[name] = (start, whole[start:stop].cpu().clone())

    def rows(name: str, start: int, stop: int) -> Tensor:
        first, values = kept[name]
        return values[start - first : stop - first]

    return rows


def partition(model: nn.Module, deepspeed: Any, settings: dict[str, Any]) -> None:
    """Cut all parameters of a model into ZeRO-3 pieces, one module after the other.

    Parameters without storage (on the meta device) get pieces without meaning, to be filled.
    """
    fresh: dict[int, nn.Parameter] = {}
    for module in model.modules():
        holder = nn.Module()
        for own_name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if parameter.is_meta and id(parameter) not in fresh:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                fresh[id(parameter)] = nn.Parameter(empty, requires_grad=False)
            module._parameters[own_name] = fresh.get(id(parameter), parameter)
            holder.register_parameter(own_name, module._parameters[own_name])
        if holder._parameters:
            deepspeed.zero.Init(module=holder, config_dict_or_path=settings)
