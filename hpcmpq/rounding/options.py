"""Codes of every option: from the inputs that the original gives its layers, or of checkpoints of other tools."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from hpcmpq.errors import UserError
from hpcmpq.formats import FORMATS, Quantizer
from hpcmpq.models.weights import as_matrix
from hpcmpq.quantized.checkpoint import open_checkpoint
from hpcmpq.quantized.stored_codes import StoredCodes, is_stored
from hpcmpq.quantizers import choose_qparams, encode
from hpcmpq.quantizers.codes import QParams, joined
from hpcmpq.quantizers.gptq import compensated_codes, compensated_qparams, compensation
from hpcmpq.rounding.linear_layers import check_linear, is_embedding
from hpcmpq.rounding.matrices import is_of_experts, num_matrices
from hpcmpq.rounding.original_inputs import OriginalInputs
from hpcmpq.space import Member, SearchSpace

FEWEST_INPUTS = 32
"""Of a layer or an expert; with fewer its weights are rounded to the nearest: Σ x xᵀ of so few is noise."""

Named = tuple[str, tuple[Tensor, QParams]]
"""A format's name, codes [M, K] and what they mean."""

StoredFormats = Mapping[Member, Sequence[str]]
"""{weight: formats whose codes are stored}, of those that have some."""


def stored_formats(space: SearchSpace, quantizer: Quantizer) -> StoredFormats:
    """What codes are to be made of a search space."""
    found: dict[Member, Sequence[str]] = {}
    for group, formats in zip(space.groups, space.formats, strict=True):
        if names := [name for name in formats if is_stored(name, quantizer)]:
            found |= dict.fromkeys(group.members, names)
    return found


def check_rounding(model: nn.Module, space: SearchSpace, quantizer: Quantizer) -> None:
    """Refuse weights that cannot have codes, before anything is measured.

    Raises:
        UserError: If one is neither that of a linear layer or of experts nor an embedding, or missing in a
            checkpoint, or the first does not fit there.
    """
    formats = stored_formats(space, quantizer)
    for member in formats:
        check_linear(model, member)
    for name, path in quantizer.checkpoints.items():
        members = [member for member, names in formats.items() if name in names]
        checkpoint = open_checkpoint(path)
        for member in members:
            check_linear(model, member, fused=False)
            checkpoint.check_holds(member)
        for member in members[:1]:
            checkpoint.codes(member, FORMATS[name], quantizer)


@torch.no_grad()
def make_codes(
    stored: StoredCodes, inputs: OriginalInputs, formats: StoredFormats, quantizer: Quantizer
) -> None:
    """Write the codes of weights that have none yet.

    Args:
        stored: Where they go.
        inputs: Of the original's layers.
        formats: Of each weight.
        quantizer: Its `rounding` is ``gptq``, or it has checkpoints.

    Raises:
        UserError: If a layer is never called, or a checkpoint does not fit.
    """
    checkpoints = {name: open_checkpoint(path) for name, path in quantizer.checkpoints.items()}
    missing = [member for member in formats if not stored.has(member)]
    called = {
        _alike(member) for member in inputs.members if member.macs and not is_of_experts(inputs.model, member)
    }

    def write(member: Member, made: Iterable[Named], rows: Sequence[int] | None) -> None:
        taken = {
            name: checkpoints[name].codes(member, FORMATS[name], quantizer)
            for name in formats[member]
            if name in checkpoints
        }
        fewest = None if rows is None else min(rows)
        experts = sum(count < FEWEST_INPUTS for count in rows) if rows and len(rows) > 1 else None
        stored.write(member, chain(made, taken.items()), quantizer, fewest, experts)

    made_here = {m: [name for name in formats[m] if name not in checkpoints] for m in missing}
    nearest = {m for m, names in made_here.items() if not names or is_embedding(inputs.model, m)}
    for member in (member for member in missing if member in nearest):
        weight_MK = as_matrix(inputs.model.get_parameter(member.parameter), member)
        write(member, _codes(weight_MK, None, made_here[member], quantizer).items(), None)
    compensated = [member for member in missing if member not in nearest]
    waiting: dict[Member, list[tuple[dict[str, tuple[Tensor, QParams]], int]]] = {m: [] for m in compensated}
    for matrices, sums in inputs.of(compensated) if compensated else ():
        hessian_KK = sums.hessian_KK if sums.num_rows >= FEWEST_INPUTS else None
        factor = None if hessian_KK is None else (hessian_KK, compensation(hessian_KK, quantizer))
        for matrix in matrices:
            member, made = matrix.member, waiting[matrix.member]
            made.append(
                (_codes(matrix.of(inputs.model), factor, made_here[member], quantizer), sums.num_rows)
            )
            if len(made) < num_matrices(inputs.model, member):  # experts come in their order
                continue
            rows = [num_rows for _, num_rows in made]
            if not any(rows) and _alike(member) not in called:
                raise UserError(
                    f"{member.parameter} is used without calling its layer, so quantizer.rounding gptq does not see "
                    "the layer's inputs; add it to groups.exclude"
                )
            write(member, _together([codes for codes, _ in made]), rows)
            made.clear()


def _together(parts: Sequence[dict[str, tuple[Tensor, QParams]]]) -> Iterator[Named]:
    """Codes of matrices one after another, format by format; what is joined leaves the parts, which end up empty."""
    for name in list(parts[0]):
        own = [part.pop(name) for part in parts]
        codes_MK = torch.cat([codes for codes, _ in own]) if len(own) > 1 else own[0][0]
        qparams = joined([each for _, each in own]) if len(own) > 1 else own[0][1]
        own.clear()
        yield name, (codes_MK, qparams)
        del codes_MK, qparams


def _codes(
    weight_MK: Tensor,
    factor: tuple[Tensor, tuple[Tensor, Tensor]] | None,
    names: Sequence[str],
    quantizer: Quantizer,
) -> dict[str, tuple[Tensor, QParams]]:
    codes: dict[str, tuple[Tensor, QParams]] = {}
    for name in names:
        format = FORMATS[name]
        if factor is None:
            qparams = choose_qparams(weight_MK, format, quantizer)
            codes[name] = encode(weight_MK, qparams, format, quantizer), qparams
        else:
            hessian_KK, compensating = factor
            qparams = compensated_qparams(weight_MK, hessian_KK, format, quantizer)
            codes[name] = compensated_codes(weight_MK, compensating, qparams, format, quantizer), qparams
    return codes


def _alike(member: Member) -> str:
    """The same of weights that differ by numbers in their names: where one is called, so are the other experts."""
    return re.sub(r"\d+", "#", member.parameter)
