"""Weights rounded as a run rounds them: to the nearest code, or to codes that are stored.

The one definition of an option's weight: codes, and scales that a file holds exactly before anything is measured with
them. Sensitivities, losses and exports have all their weights from here.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hpcmpq.errors import UserError
from hpcmpq.formats import FORMATS, Quantizer
from hpcmpq.quantized.source_codes import SourceCodes
from hpcmpq.quantized.stored_codes import SolutionCodes, StoredCodes, is_stored
from hpcmpq.quantized.stored_ranges import StoredRanges
from hpcmpq.quantizers import choose_qparams, decode, encode, fake_quantize
from hpcmpq.quantizers.codes import QParams
from hpcmpq.space import Member


@dataclass
class RoundedWeights:
    """Rows of weights as matrices [M, K], rounded: no row depends on another where `Format.rows_apart`.

    Other formats need whole matrices, and `largest` where all of a group share a global scale.

    Only the qparams (one scale per `group_size` weights) are remembered between calls, because searching them costs
    far more than rounding with them. So of one weight always the same rows are to be given.

    Attributes:
        quantizer: How weights are rounded.
        codes: Those that are stored.
        largest: The largest absolute weight of the group that a weight is of, [].
        source: Codes of the files that the model came in.
        ranges: Qparams that processes of the run have chosen.
    """

    quantizer: Quantizer
    codes: StoredCodes | SolutionCodes | None
    _qparams: dict[tuple[str, str], QParams] = field(default_factory=dict)
    largest: Callable[[Member], Tensor] | None = None
    source: SourceCodes | None = None
    ranges: StoredRanges | None = None

    def decoded(self, member: Member, format_name: str, rows_RK: Tensor, first: int = 0) -> Tensor:
        """The rows as inference in a format sees them, [R, K].

        Args:
            member: The weight.
            format_name: The format.
            rows_RK: Original values.
            first: Place of the first of them in the whole matrix.
        """
        weight_format = FORMATS[format_name]
        if self._is_stored(member, format_name) or self._is_in_source(member, format_name):
            return decode(*self.encoded(member, format_name, rows_RK, first), weight_format, self.quantizer)
        qparams = self._chosen(member, format_name, rows_RK, first)
        return fake_quantize(rows_RK, weight_format, self.quantizer, qparams)

    def encoded(
        self, member: Member, format_name: str, rows_RK: Tensor, first: int = 0
    ) -> tuple[Tensor, QParams]:
        """Codes of the rows, [R, K], and what they mean; arguments as in `decoded`."""
        if self.source is not None and self._is_in_source(member, format_name):
            _check_whole(member, format_name, rows_RK)
            return self.source.read(member, rows_RK)
        if not self._is_stored(member, format_name):
            qparams = self._chosen(member, format_name, rows_RK, first)
            return encode(rows_RK, qparams, FORMATS[format_name], self.quantizer), qparams
        if self.codes is None:
            raise ValueError("quantizer.rounding gptq needs the codes of a planned run")
        codes_MK, qparams = self.codes.read(member, format_name, rows_RK)
        rows = slice(first, first + len(rows_RK))
        return codes_MK[rows], qparams.rows(rows)

    def _is_stored(self, member: Member, format_name: str) -> bool:
        if self.codes is None:
            return is_stored(format_name, self.quantizer)
        return self.codes.holds(member, format_name, self.quantizer)

    def _is_in_source(self, member: Member, format_name: str) -> bool:
        return self.source is not None and self.source.holds(member, format_name)

    def store_ranges(
        self, member: Member, format_names: Iterable[str], dtype: torch.dtype, weight: Callable[[], Tensor]
    ) -> None:
        """Choose the qparams of a weight's options and store them, unless a process of the run has done so.

        Args:
            member: The weight.
            format_names: Its options.
            dtype: That it is loaded in.
            weight: Reads it, as a matrix [M, K].
        """
        names = [
            name
            for name in format_names
            if FORMATS[name].scaled
            and not self._is_stored(member, name)
            and not self._is_in_source(member, name)
        ]
        if self.ranges is None or not names or self.ranges.is_there(member, dtype):
            return
        weight_MK = weight()
        self.ranges.write(member, dtype, {name: self._choose(member, name, weight_MK) for name in names})

    def _chosen(self, member: Member, format_name: str, rows_RK: Tensor, first: int) -> QParams:
        key = (member.parameter, format_name)
        if key not in self._qparams:
            stored = self._stored_ranges(member, format_name, rows_RK, first)
            self._qparams[key] = self._choose(member, format_name, rows_RK) if stored is None else stored
        return self._qparams[key]

    def _stored_ranges(self, member: Member, format_name: str, rows_RK: Tensor, first: int) -> QParams | None:
        """Of the rows, where they are stored and no row needs the others."""
        is_whole = len(rows_RK) == member.num_rows
        if self.ranges is None or not (is_whole or FORMATS[format_name].rows_apart):
            return None
        found = self.ranges.read(member, format_name, rows_RK)
        return found if found is None or is_whole else found.rows(slice(first, first + len(rows_RK)))

    def _choose(self, member: Member, format_name: str, rows_RK: Tensor) -> QParams:
        chosen = FORMATS[format_name]
        largest = None
        if not chosen.rows_apart:
            _check_whole(member, format_name, rows_RK if self.largest is not None else None)
            assert self.largest is not None
            largest = self.largest(member) if chosen.scales == "e4m3" else None
        return choose_qparams(rows_RK, chosen, self.quantizer, largest)


def _check_whole(member: Member, format_name: str, rows_RK: Tensor | None) -> None:
    """Raise `UserError` unless the rows are all of a weight's."""
    if rows_RK is None or len(rows_RK) != member.num_rows:
        raise UserError(
            f"{format_name} has scales that rows share, and the weights are in parts here; use evaluation.engine torch "
            "and model.stream false, or leave the format out"
        )
