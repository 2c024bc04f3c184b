"""Number formats: how the weights of a parameter group may be stored, and what its inputs are rounded to."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

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


@dataclass(frozen=True)
class Quantizer:
    """How a weight matrix [M outputs, K inputs] and a layer's inputs are rounded; the same for every group of a run.

    Attributes:
        group_size: Consecutive inputs that share a scale, or None for one scale per output channel.
            Float formats always use one scale per output channel.
        symmetric: Codes centred on zero without a zero point; otherwise one integer zero point per scale.
        range: ``absmax`` keeps the largest weight, ``mse`` searches the clipping of least squared error.
        activations: ``dynamic`` scales every token's inputs by their own largest; ``static`` scales all inputs of
            a layer by the largest that the calibration samples gave it.
        rounding: ``nearest``, or ``gptq``: integer codes that make up for one another's errors on the calibration
            samples, see `hpcmpq.quantizers.gptq`. They are made once, when the run is planned.
        damping: Of ``gptq``: share of the mean of Σ x xᵀ's diagonal that is added to it.
        act_order: Of ``gptq``: round inputs of large Σ x² first.
        checkpoints: {integer format: directory of a checkpoint that another tool quantized}, whose codes are
            taken as they are.
    """

    group_size: int | None = 64
    symmetric: bool = True
    range: Literal["absmax", "mse"] = "mse"
    activations: Literal["dynamic", "static"] = "dynamic"
    rounding: Literal["nearest", "gptq"] = "nearest"
    damping: float = 0.01
    act_order: bool = False
    checkpoints: Mapping[str, str] = field(default_factory=dict)


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
