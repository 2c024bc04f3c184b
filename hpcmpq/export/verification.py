"""Every export is read back by what its users read it with, and its outputs are compared with the run's own model's.

The run's model under the assignment and the reader's model run on one calibration sample, in the run's dtype. Their
difference is the root mean square over all outputs, as a share of the spread (standard deviation) of the run's.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hpcmpq.errors import NotReproduced
from hpcmpq.export.written import Written
from hpcmpq.models.data.samples import Samples
from hpcmpq.models.load import forward
from hpcmpq.models.weights import swapped
from hpcmpq.quantized.variants import Variants

TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.05}
"""Differences that rounding explains, by the narrowest of the run's dtype and a dtype that the file narrows to."""

OF_ROUNDED_INPUTS = {torch.float64: 0.02, torch.float32: 0.02, torch.float16: 0.1, torch.bfloat16: 0.2}
"""The same where the reader rounds inputs to 8 bits, which makes a step of up to 1/16 of a difference in a last bit."""


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
        if "difference" not in figures:
            return f"verified: {self.reader}"
        return f"verified: {self.reader} reads it back, outputs differ by {figures['difference']:.1e} of their spread"


def one_sample(samples: Samples, max_positions: int | None) -> dict[str, Tensor]:
    """The inputs of the first sample, without padding and no longer than `max_positions` tokens."""
    inputs = samples[:1].inputs
    mask = inputs.get("attention_mask")
    if "input_ids" not in inputs:
        return inputs
    num_tokens = inputs["input_ids"].shape[1]
    length = num_tokens if mask is None or mask[0, 0] == 0 else int(mask[0].cumprod(0).sum())
    length = min(length, max_positions or length)
    return {k: v[:, :length] if v.ndim > 1 and v.shape[1] == num_tokens else v for k, v in inputs.items()}


@torch.no_grad()
def run_outputs(
    variants: Variants, assignment: dict[str, str], written: Written, inputs: dict[str, Tensor]
) -> Tensor:
    """Outputs [1, T, V] of the run's model with all weights of the assignment, and inputs as the reader rounds them."""
    tensors: dict[str, Tensor] = {}
    for group in variants.space.groups:
        tensors |= variants.quantized(group, assignment[group.name])
    rounded = {group: name for group, name in assignment.items() if name in written.rounding}
    device = next(variants.model.parameters()).device
    with swapped(variants.model, tensors), variants.activations.rounded(rounded):
        return forward(variants.model, {name: value.to(device) for name, value in inputs.items()}).cpu()


def compare(
    name: str, reader: str, read_NTV: Tensor, expected_NTV: Tensor, dtype: torch.dtype, written: Written
) -> Verification:
    """That the reader's outputs are the run's.

    Args:
        name: Of the export.
        reader: With its version.
        read_NTV: Its outputs.
        expected_NTV: Of the run's own model.
        dtype: Of the run.
        written: What the exporter said.

    Raises:
        NotReproduced: If they differ by more than rounding explains.
    """
    if read_NTV.shape != expected_NTV.shape:
        shapes = f"{list(read_NTV.shape)}, the run's model gives {list(expected_NTV.shape)}"
        raise NotReproduced(f"{reader} gives outputs {shapes}, from the {name} export; {_ADVICE}")
    expected, read = expected_NTV.double(), read_NTV.double()
    error = read - expected
    scale = float(expected.std()) or float(expected.abs().max()) or 1.0
    share = float(error.square().mean().sqrt()) / scale
    dtypes = [each for each in (dtype, written.narrowed) if each is not None]
    tolerance = max((OF_ROUNDED_INPUTS if written.rounding else TOLERANCE)[each] for each in dtypes)
    if not share <= tolerance:  # NaN, too
        raise NotReproduced(
            f"{reader} reads the {name} export back with outputs that differ from the run's model by "
            f"{share:.2g} of their spread, where rounding explains {tolerance:g}; {_ADVICE}"
        )
    figures = {
        "difference": share,
        "tolerance": tolerance,
        "largest_difference": float(error.abs().max()),
        "spread": float(expected.std()),
        "num_positions": expected.shape[1],
    }
    return Verification(reader, figures=tuple(figures.items()))


_ADVICE = (
    "nothing of it is kept: take another format, or keep it unverified with `hpcmpq export --no-verify`, and please "
    "report this"
)
