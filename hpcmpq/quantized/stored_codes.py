"""Codes that were made before, and are read by whatever needs a weight after.

They are those of error-compensated rounding, and those of checkpoints that another tool quantized. Factorising
Σ x xᵀ gives other last bits on other machines, and now and then another code. So no worker does: a file of a weight
holds its codes, packed at their width, and every sensitivity, measurement and export decodes the same ones.

RUN/rounded/ holds the codes of every weight in every integer format and type of ggml. RUN/rerounded/NAME/ holds those
of one assignment, every weight in its own format, which are the weights of that very assignment and of no other.
"""

import hashlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hpcmpq.errors import DamagedFile, UserError
from hpcmpq.formats import FORMATS, Format, Quantizer
from hpcmpq.quantized.qparams_arrays import arrays_of, qparams_in
from hpcmpq.quantizers.codes import QParams
from hpcmpq.quantizers.gptq import COMPENSATED
from hpcmpq.quantizers.integer import code_limits
from hpcmpq.quantizers.packing import pack, unpack
from hpcmpq.quantizers.super_blocks import LAYOUTS
from hpcmpq.space import Member
from hpcmpq.store.h5_files import read_h5, read_number, write_h5
from hpcmpq.store.run_dir import RunDir

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredCodes:
    """The codes of a run, read from its directory.

    Attributes:
        run: The run directory.
        fingerprint: Of the plan that made them, or of whatever else they depend on.
        folder: Inside the run directory.
        command: That makes them, if it is not `hpcmpq calibrate`.
    """

    run: RunDir
    fingerprint: str
    folder: str = "rounded"
    command: str | None = None

    @property
    def made_by(self) -> str:
        """The command that makes them."""
        return self.command or f"hpcmpq calibrate {self.run.path}"

    def holds(self, member: Member, format_name: str, quantizer: Quantizer) -> bool:
        """Whether a weight's codes in a format are stored."""
        return is_stored(format_name, quantizer)

    def is_there(self, member: Member) -> bool:
        """Whether a weight's file is there; nothing of it is read."""
        return self._path(member).exists()

    def are_there(self, members: Iterable[Member]) -> bool:
        """Whether the files of all of some weights are there; nothing of them is read."""
        return all(map(self.is_there, members))

    def num_inputs(self, member: Member) -> int | None:
        """Inputs of its layer, or of its least used expert, that a weight's codes were fitted to.

        None of other codes and of earlier versions.
        """
        return read_number(self._path(member), "num_inputs")

    def num_nearest(self, member: Member) -> int | None:
        """Experts of a weight that holds several whose codes are fitted to no inputs; None of other weights."""
        return read_number(self._path(member), "num_nearest")

    def has(self, member: Member) -> bool:
        """Whether a weight's file is there and whole."""
        path = self._path(member)
        try:
            return path.exists() and self._is_of(member, *read_h5(path, self.made_by))
        except DamagedFile:
            _log.warning("%s is damaged; making it anew", path)
            return False

    def write(
        self,
        member: Member,
        codes: Iterable[tuple[str, tuple[Tensor, QParams]]],
        quantizer: Quantizer,
        num_inputs: int | None = None,
        num_nearest: int | None = None,
    ) -> None:
        """Store (format, (codes [M, K], what they mean)) of a weight, all at once.

        Each is packed, and let go, before the next is asked for.
        """
        self.write_packed(member, packed_codes(codes, quantizer), quantizer, num_inputs, num_nearest)

    def write_packed(
        self,
        member: Member,
        arrays: Mapping[str, np.ndarray],
        quantizer: Quantizer,
        num_inputs: int | None = None,
        num_nearest: int | None = None,
    ) -> None:
        """As `write`, of what `packed_codes` made of a weight, perhaps of its rows apart."""
        attributes: dict[str, str | int | float] = {
            "parameter": member.parameter,
            "fingerprint": self.fingerprint,
            "symmetric": int(quantizer.symmetric),
            **({} if num_inputs is None else {"num_inputs": num_inputs}),
            **({} if num_nearest is None else {"num_nearest": num_nearest}),
        }
        write_h5(self._path(member), arrays, attributes)

    def remove(self, member: Member) -> None:
        """Remove a weight's file, such as one that is damaged."""
        self._path(member).unlink(missing_ok=True)

    def read(self, member: Member, format_name: str, like: Tensor) -> tuple[Tensor, QParams]:
        """Codes [M, K] and what they mean, of a weight in a format that has some, on the device of `like`.

        Raises:
            UserError: If they are missing.
            CorruptShard: If their file is damaged.
        """
        path = self._path(member)
        if not path.exists():
            raise UserError(
                f"the rounded weights of {member.parameter} are missing; run `{self.made_by}` again"
            )
        arrays, attributes = read_h5(path, self.made_by)
        if not self._is_of(member, arrays, attributes):
            raise UserError(f"{path} belongs to another plan or weight; run `{self.made_by}` again")
        if f"{format_name}/scale" not in arrays:
            raise UserError(f"{path} is of an earlier version and has no {format_name}; plan a new run")
        qparams = qparams_in(arrays, format_name, like)
        whole = arrays.get(f"{format_name}/codes")  # a byte a code, as versions before wrote them
        if whole is not None:
            return torch.from_numpy(whole).to(like.device), qparams
        words_MW, format = torch.from_numpy(arrays[f"{format_name}/packed"]), FORMATS[format_name]
        symmetric = bool(attributes["symmetric"])
        codes_MK = unpack(words_MW, format.num_bits, member.num_columns) + _lowest(format, symmetric)
        signed = symmetric or format.type == "ggml"
        return codes_MK.to(like.device, torch.int8 if signed else torch.uint8), qparams

    def _is_of(
        self, member: Member, arrays: Mapping[str, np.ndarray], attributes: Mapping[str, object]
    ) -> bool:
        """Whether a file holds codes of this plan and, as far as it says of which, of this weight."""
        parameter = attributes.get("parameter", member.parameter)
        has_codes = any(name.endswith("/scale") for name in arrays)
        return has_codes and attributes["fingerprint"] == self.fingerprint and parameter == member.parameter

    def _path(self, member: Member) -> Path:
        name = hashlib.sha256(member.parameter.encode()).hexdigest()[:16]
        return self.run.path / self.folder / f"{name}.h5"


@dataclass(frozen=True)
class SolutionCodes:
    """Codes of the weights of one assignment: those that were made for it, and the run's others.

    Attributes:
        assignment: {group: format}.
        own: Those that were made for it.
        parameters: The weights that they are of.
        planned: The run's, for the others.
    """

    assignment: Mapping[str, str]
    own: StoredCodes
    parameters: frozenset[str]
    planned: StoredCodes

    def holds(self, member: Member, format_name: str, quantizer: Quantizer) -> bool:
        """See `StoredCodes.holds`."""
        return member.parameter in self.parameters or self.planned.holds(member, format_name, quantizer)

    def read(self, member: Member, format_name: str, like: Tensor) -> tuple[Tensor, QParams]:
        """See `StoredCodes.read`."""
        codes = self.own if member.parameter in self.parameters else self.planned
        return codes.read(member, format_name, like)


def packed_codes(
    codes: Iterable[tuple[str, tuple[Tensor, QParams]]], quantizer: Quantizer
) -> dict[str, np.ndarray]:
    """What is stored of (format, (codes [R, K], what they mean)) of a weight or some of its rows, [R, ...] each."""
    arrays: dict[str, np.ndarray] = {}
    for name, (codes_RK, qparams) in codes:
        lowest = _lowest(FORMATS[name], quantizer.symmetric)
        arrays[f"{name}/packed"] = pack(codes_RK, FORMATS[name].num_bits, lowest).numpy()
        arrays |= arrays_of(name, qparams)
        del codes_RK, qparams  # before the next are made
    return arrays


def is_stored(format_name: str, quantizer: Quantizer) -> bool:
    """Whether a format's codes are made before anything is measured."""
    compensated = quantizer.rounding == "gptq" and FORMATS[format_name].type in COMPENSATED
    return compensated or format_name in quantizer.checkpoints


def _lowest(format: Format, symmetric: bool) -> int:
    """The smallest code of a format."""
    if format.type == "ggml":
        return LAYOUTS[format.name].codes[0]
    return code_limits(format, Quantizer(symmetric=symmetric))[0]
