"""Every export is read back by what its users read it with, and compared with the run's own model.

The run's model under the assignment and the reader's model run on one calibration sample, both in float32 (float64
where the run does), whatever the run measured in: the file is the same, and differences say what is wrong with it,
not how bfloat16 rounds. Their difference is the root mean square over all outputs, as a share of the spread (standard
deviation) of the run's. Where the reader's model is one of torch, its weights are compared too, row by row.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hpcmpq.errors import NotReproduced
from hpcmpq.export.weight_probes import Rows, largest_difference, probed
from hpcmpq.export.written import Written
from hpcmpq.formats import FORMATS
from hpcmpq.models.data.samples import Samples
from hpcmpq.models.load import forward
from hpcmpq.models.weights import from_matrix, holder_of
from hpcmpq.quantized.variants import Variants
from hpcmpq.quantizers import decode
from hpcmpq.space import Member

TOLERANCE = {None: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.05}
"""Differences of outputs that rounding explains, by a dtype that the file narrows to."""

OF_ROUNDED_INPUTS = {None: 0.02, torch.float16: 0.1, torch.bfloat16: 0.2}
"""The same where the reader rounds inputs to 8 bits, which makes a step of up to 1/16 of a difference in a last bit."""

OF_ROWS = {None: 1e-4, torch.float16: 2e-3, torch.bfloat16: 0.016}
"""Differences of what a row of a weight makes of probes: of an exact one, or four times half a last bit."""


@dataclass(frozen=True)
class Behaviour:
    """What a model does.

    Attributes:
        outputs_NTV: On a sample.
        rows: What its weights make of probes; empty where they cannot be asked.
    """

    outputs_NTV: Tensor
    rows: Rows


@dataclass(frozen=True)
class Verification:
    """What came of reading an export back.

    Attributes:
        reader: What read it, with its version.
        reason: Why nothing was compared; None where it was.
        figures: What was measured, for verification.json.
    """

    reader: str | None
    reason: str | None = None
    figures: tuple[tuple[str, Any], ...] = ()

    def to_values(self) -> dict[str, Any]:
        """The content of `verification.json`."""
        if self.reason is not None:
            return {"verified": False, "reason": self.reason}
        return {"verified": True, "reader": self.reader, **dict(self.figures)}

    def __str__(self) -> str:
        if self.reason is not None:
            return f"not verified: {self.reason}"
        figures = dict(self.figures)
        if "num_weights" not in figures:
            return f"verified: {self.reader}"
        if "difference" not in figures:
            return f"verified: {self.reader} reads all {figures['num_weights']} tensors back, one by one"
        return f"verified: {self.reader} reads it back, outputs differ by {figures['difference']:.1e} of their spread"


def one_sample(samples: Samples, max_positions: int | None) -> dict[str, Tensor]:
    """The inputs of the first sample, in full precision, without padding and no longer than `max_positions` tokens."""
    inputs = {
        name: tensor.to(full_precision(tensor.dtype)) if tensor.is_floating_point() else tensor
        for name, tensor in samples[:1].inputs.items()
    }
    mask = inputs.get("attention_mask")
    if "input_ids" not in inputs:
        return inputs
    num_tokens = inputs["input_ids"].shape[1]
    length = num_tokens if mask is None or mask[0, 0] == 0 else int(mask[0].cumprod(0).sum())
    length = min(length, max_positions or length)
    return {k: v[:, :length] if v.ndim > 1 and v.shape[1] == num_tokens else v for k, v in inputs.items()}


def full_precision(dtype: torch.dtype) -> torch.dtype:
    """What an export is compared in, of a run in `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@torch.no_grad()
def expected_behaviour(
    variants: Variants, assignment: dict[str, str], written: Written, inputs: dict[str, Tensor]
) -> Behaviour:
    """The run's model with all weights of the assignment, and inputs as the reader rounds them.

    The model of `variants` is changed for good: it is not the original any more.
    """
    model = variants.model
    _assign(variants, assignment, written.holds_codes)
    model.to(full_precision(next(model.parameters()).dtype))
    rounded = {  # a cache is the server's, and not in the files
        group.name: assignment[group.name]
        for group in variants.space.groups
        if not group.is_cache and assignment[group.name] in written.rounding
    }
    device = next(model.parameters()).device
    with variants.activations.rounded(rounded):
        outputs_NTV = forward(model, {name: value.to(device) for name, value in inputs.items()}).cpu()
        return Behaviour(outputs_NTV, probed(model, searched_layers(variants)))


def searched_layers(variants: Variants) -> list[str]:
    """Names of the linear layers that are searched."""
    members = [member for group in variants.space.groups for member in group.members]
    return [
        member.parameter.removesuffix(".weight")
        for member in members
        if type(holder_of(variants.model, member)) is nn.Linear and member.is_layer_weight
    ]


def decoded(variants: Variants, member: Member, name: str, weight: Tensor) -> Tensor:
    """Codes times scales of a weight in a scaled format, in full precision and the weight's shape."""
    like = torch.empty_like(weight, dtype=full_precision(weight.dtype))
    return from_matrix(
        decode(*variants.encoded(member, name), FORMATS[name], variants.quantizer), member, like
    )


def _assign(variants: Variants, assignment: dict[str, str], codes: bool) -> None:
    """Replace searched weights by rounded ones: by codes times scales in full precision, or as the run has them."""
    model = variants.model
    tensors: dict[str, Tensor] = {}
    for group in variants.space.groups:
        name = assignment[group.name]
        tensors |= variants.quantized(group, name)
        for member in group.members if codes and FORMATS[name].scaled else ():
            tensors[member.parameter] = decoded(variants, member, name, model.get_parameter(member.parameter))
    for parameter, tensor in tensors.items():
        model.get_parameter(parameter).data = tensor


def compare(name: str, reader: str, read: Behaviour, expected: Behaviour, written: Written) -> Verification:
    """That the reader's model is the run's.

    Args:
        name: Of the export.
        reader: With its version.
        read: What its model does.
        expected: What the run's does.
        written: What the exporter said.

    Raises:
        NotReproduced: If they differ by more than rounding explains.
    """
    of_weights = _row_figures(name, reader, read.rows, expected.rows, written)
    read_NTV, expected_NTV = read.outputs_NTV, expected.outputs_NTV
    if read_NTV.shape != expected_NTV.shape:
        shapes = f"{list(read_NTV.shape)}, the run's model gives {list(expected_NTV.shape)}"
        raise NotReproduced(f"{reader} gives outputs {shapes}, from the {name} export; {ADVICE}")
    error = read_NTV.double() - expected_NTV.double()
    spread = float(expected_NTV.double().std()) if expected_NTV.numel() > 1 else 0.0
    scale = spread or float(expected_NTV.abs().max()) or 1.0
    share = float(error.square().mean().sqrt()) / scale
    tolerance = (OF_ROUNDED_INPUTS if written.rounding else TOLERANCE)[written.narrowed]
    if not share <= tolerance:  # NaN, too
        raise NotReproduced(
            f"{reader} reads the {name} export back with outputs that differ from the run's model by "
            f"{share:.2g} of their spread, where rounding explains {tolerance:g}; {ADVICE}"
        )
    figures = {
        "difference": share,
        "tolerance": tolerance,
        "largest_difference": float(error.abs().max()),
        "spread": spread,
        "num_positions": expected_NTV.shape[1],
        **of_weights,
    }
    return Verification(reader, figures=tuple(figures.items()))


def compare_rows(name: str, reader: str, read: Rows, expected: Rows, written: Written) -> Verification:
    """That weights which were read one by one are the run's; arguments as in `compare`.

    Raises:
        NotReproduced: If one differs by more than rounding explains, or is missing.
    """
    if missing := [weight for weight in expected if weight not in read]:
        raise NotReproduced(
            f"{reader} finds no {missing[0]} in the {name} export ({len(missing)} of {len(expected)} tensors are "
            f"missing); {ADVICE}"
        )
    return Verification(reader, figures=tuple(_row_figures(name, reader, read, expected, written).items()))


def _row_figures(name: str, reader: str, read: Rows, expected: Rows, written: Written) -> dict[str, Any]:
    place, of_rows, count = largest_difference(read, expected)
    if not of_rows <= OF_ROWS[written.narrowed]:
        raise NotReproduced(
            f"{reader} reads {place} of the {name} export back with a row that differs from the run's model by "
            f"{of_rows:.2g} of its size, where rounding explains {OF_ROWS[written.narrowed]:g}; {ADVICE}"
        )
    return {"num_weights": count, "largest_row_difference": of_rows}


ADVICE = (
    "nothing of it is kept: take another format, or keep it unverified with `hpcmpq export --no-verify`, and please "
    "report this"
)
