"""Codes of a model that came quantized: fp8 in blocks of 128 by 128, which the format `fp8_block` takes as they are.

The run's original is the model with these weights as plain numbers. Rounding these again would find other scales,
since the files' are float32 and ours bfloat16; so codes and scales are read from the files that the model came in.
Weights that they do not hold so, and experts that transformers joins, are rounded like any others. mxfp4 needs none of
this: rounding finds its numbers.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from hpcmpq.errors import PlanMismatch, UserError
from hpcmpq.formats import FORMATS
from hpcmpq.models.dequantized import source_digest
from hpcmpq.models.description import read_model_json
from hpcmpq.models.quantized_form import settings_of
from hpcmpq.models.stored_weights import names_in_model, tensors_in
from hpcmpq.models.tensor_files import read_tensor
from hpcmpq.plan import Plan
from hpcmpq.quantizers.codes import QParams
from hpcmpq.space import Member
from hpcmpq.store.original import read_source

FORMAT = "fp8_block"
"""The format that takes them."""

SOURCE_CODES = "model.codes"
"""The fact of a plan that says so; plans older than this round such weights again."""

_SCALE = "_scale_inv"


@dataclass(frozen=True)
class SourceCodes:
    """The codes in the files that a model came in.

    Attributes:
        directory: Of these files.
        model: What became of them, whose names members have.
    """

    directory: Path
    model: nn.Module

    def holds(self, member: Member, format_name: str) -> bool:
        """Whether a weight's codes in a format are there."""
        return format_name == FORMAT and not member.transposed and self._place(member) is not None

    def read(self, member: Member, like: Tensor) -> tuple[Tensor, QParams]:
        """Codes [M, K], e4m3, and scales of blocks, on the device of `like`.

        Raises:
            UserError: If the files have scales of other blocks, or have gone.
        """
        place = self._place(member)
        assert place is not None
        tall, wide = FORMATS[FORMAT].block or (1, 1)
        codes_MK, scale_RS = self._read(place), self._read(f"{place}{_SCALE}")
        blocks = -(-member.num_rows // tall), -(-member.num_columns // wide)
        if tuple(scale_RS.shape) != blocks:
            raise UserError(
                f"{self.directory} has scales {list(scale_RS.shape)} of {member.parameter}, and blocks of {tall} by "
                f"{wide} have {list(blocks)}; leave {FORMAT} out of formats"
            )
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        return codes_MK.to(like.device), QParams(scale_RS.to(like.device, dtype))

    def _read(self, name: str) -> Tensor:
        return read_tensor(self.directory / self._files[name], name)

    @cached_property
    def _files(self) -> dict[str, str]:
        found = tensors_in(self.directory)
        if not found:
            raise UserError(
                f"{self.directory}, which holds the weights in {FORMAT} that this run was planned with, is gone; bring "
                "it back"
            )
        return found

    @cached_property
    def _places(self) -> dict[str, str]:
        return names_in_model(self.model, [name for name in self._files if f"{name}{_SCALE}" in self._files])

    def _place(self, member: Member) -> str | None:
        """The tensor in the files that a weight is."""
        prefix = getattr(self.model, "base_model_prefix", "") + "."
        name = member.parameter
        names = (name, prefix + name, name.removeprefix(prefix))
        return next((self._places[n] for n in names if n in self._places), None)


def source_codes(plan: Plan, model: nn.Module) -> SourceCodes | None:
    """Where the plan's weights in `FORMAT` come from, if not from rounding.

    Raises:
        PlanMismatch: If the files hold another model now than they were planned with.
    """
    if plan.facts.get(SOURCE_CODES) != FORMAT:
        return None
    original = Path(str(plan.config.model.path))
    directory = _source(original)
    if any(directory.glob("*.safetensors")) and source_digest(directory) != read_source(original)["digest"]:
        raise PlanMismatch(
            f"{directory} holds other weights in {FORMAT} than the run was planned with; restore them, or use a new "
            "run directory"
        )
    return SourceCodes(directory, model)


def takes_source_codes(path: str | None, formats: tuple[str, ...]) -> bool:
    """Whether a run of a model with plain weights in `path` takes codes of the files that it came in.

    Args:
        path: Of the model, as `hpcmpq.models.dequantized.unpacked` leaves it.
        formats: Of the run.
    """
    if path is None or FORMAT not in formats or read_source(Path(path)).get("form") != "fp8":
        return False
    settings = settings_of(read_model_json(_source(Path(path)))) or {}
    return tuple(settings.get("weight_block_size") or ()) == FORMATS[FORMAT].block


def _source(directory: Path) -> Path:
    return Path(read_source(directory)["path"])
