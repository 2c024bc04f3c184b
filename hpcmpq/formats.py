"""Number formats: how the weights of a parameter group may be stored, and what its inputs are rounded to."""

from dataclasses import dataclass
from typing import Literal

from hpcmpq.errors import UserError
from hpcmpq.settings import Quantizer

SCALE_BITS = 16
"""Bits of one stored scale (bfloat16, see `hpcmpq.quantizers.ranges`)."""


UNROUNDED_BITS = 16
"""Bits of activations that a format leaves as the model computes them; what inference of such a format uses."""


@dataclass(frozen=True)
class Format:
    """A number format for weights and, where it names one, for the activations that meet them in a product.

    Attributes:
        name: The name in configs and artefacts, such as ``int4``.
        num_bits: Payload bits of one weight.
        type: ``int`` for scaled integer codes, ``float`` for floating point.
        scaled: Whether scales are stored beside the payload.
        activation: The format in `FORMATS` whose numbers the layer's inputs are rounded to, see
            `hpcmpq.quantizers.activations`; None leaves them as the model computes them.
    """

    name: str
    num_bits: int
    type: Literal["int", "float"]
    scaled: bool
    activation: str | None = None

    @property
    def activation_bits(self) -> int:
        """Bits of one activation in a product.

        Example:
            >>> [FORMATS[name].activation_bits for name in ("int4", "w4a8", "fp8_e4m3", "fp32")]
            [16, 8, 8, 32]
        """
        return UNROUNDED_BITS if self.activation is None else FORMATS[self.activation].num_bits


FORMATS: dict[str, Format] = {
    **{f"int{bits}": Format(f"int{bits}", bits, "int", True) for bits in range(2, 9)},
    "w4a8": Format("w4a8", 4, "int", True, "int8"),
    "w8a8": Format("w8a8", 8, "int", True, "int8"),
    "fp8_e4m3": Format("fp8_e4m3", 8, "float", True, "fp8_e4m3"),
    "fp8_e5m2": Format("fp8_e5m2", 8, "float", True, "fp8_e5m2"),
    "bf16": Format("bf16", 16, "float", False, "bf16"),
    "fp32": Format("fp32", 32, "float", False, "fp32"),
}
"""``int`` formats round weights alone; all others round a layer's weights and inputs, as kernels of that name do."""


def stored_bits(weight_format: Format, quantizer: Quantizer, num_rows: int, num_columns: int) -> int:
    """Bits that a [num_rows, num_columns] weight takes in a format: payload, scales and zero points.

    Example:
        >>> stored_bits(FORMATS["int4"], Quantizer(group_size=64), 128, 100)
        55296
    """
    payload = num_rows * num_columns * weight_format.num_bits
    if not weight_format.scaled:
        return payload
    group_size = quantizer.group_size if weight_format.type == "int" else None
    num_scales = num_rows * (1 if group_size is None else -(-num_columns // group_size))
    with_zero_point = weight_format.type == "int" and not quantizer.symmetric
    return payload + num_scales * (SCALE_BITS + (weight_format.num_bits if with_zero_point else 0))


def check_format(name: str, place: str) -> None:
    """Raise `UserError` with the known formats if `name` is not one."""
    if name not in FORMATS:
        raise UserError(f"unknown format {name!r} in {place}; known: {', '.join(FORMATS)}")
