"""Number formats: how the weights of a parameter group may be stored, and what its inputs are rounded to."""

from dataclasses import dataclass
from typing import Literal

from hpcmpq.errors import UserError
from hpcmpq.settings import Quantizer

SCALE_BITS = 16
"""Bits of one stored scale (bfloat16, see `hpcmpq.quantizers.ranges`)."""

GLOBAL_SCALE_BITS = 32
"""Bits of the scale that all of a weight shares, where its scales are fp8 numbers."""

UNROUNDED_BITS = 16
"""Bits of activations that a format leaves as the model computes them; what inference of such a format uses."""


@dataclass(frozen=True)
class Format:
    """A number format for weights and, where it names one, for the activations that meet them in a product.

    Attributes:
        name: The name in configs and artefacts, such as ``int4``.
        num_bits: Payload bits of one weight.
        type: ``int`` for scaled integer codes, ``float`` for floating point, ``ggml`` for super-blocks of
            llama.cpp, see `hpcmpq.quantizers.super_blocks`, ``cache`` for rotated keys and values with zero points,
            which nothing but a cache is kept in, see `hpcmpq.quantizers.rotated`.
        scaled: Whether scales are stored beside the payload.
        number: The floating-point numbers that codes are, see `hpcmpq.quantizers.floating`; empty for integers.
        block: Rows and inputs that share a scale, where the format fixes them. Otherwise integers share one as the
            quantizer says, and floating-point numbers along an output channel.
        block_bytes: Bytes of a block with its scales, of ``ggml``.
        scales: How scales are stored: ``bf16``; ``e8m0``, powers of two in 8 bits; ``e4m3``, fp8 numbers
            under one float32 of the group's, which all of its weights share.
        activation: The format in `FORMATS` whose numbers the layer's inputs are rounded to, see
            `hpcmpq.quantizers.activations`; None leaves them as the model computes them.
    """

    name: str
    num_bits: int
    type: Literal["int", "float", "ggml", "cache"]
    scaled: bool
    activation: str | None = None
    number: str = ""
    block: tuple[int, int] | None = None
    scales: Literal["bf16", "e8m0", "e4m3"] = "bf16"
    block_bytes: int = 0

    @property
    def of_caches(self) -> bool:
        """Whether nothing but keys and values of a cache can be in it.

        Example:
            >>> [name for name, format in FORMATS.items() if format.of_caches]
            ['int4_per_token_head']
        """
        return self.type == "cache"

    @property
    def rows_apart(self) -> bool:
        """Whether the codes of a row depend on that row alone.

        Example:
            >>> [FORMATS[name].rows_apart for name in ("int4", "mxfp4", "nvfp4a16", "fp8_block")]
            [True, True, False, False]
        """
        return self.scales != "e4m3" and (self.block is None or self.block[0] == 1)

    @property
    def static_inputs(self) -> bool:
        """Whether inputs have a scale in common that is measured before, whatever the quantizer says of ranges.

        Example:
            >>> [FORMATS[name].static_inputs for name in ("nvfp4", "nvfp4a16", "mxfp4", "w8a8")]
            [True, False, False, False]
        """
        return self.activation is not None and FORMATS[self.activation].scales == "e4m3"

    @property
    def takes_ranges(self) -> bool:
        """Whether inputs are scaled as the quantizer says, statically or not; blocks have their own scales, casts none.

        Example:
            >>> [FORMATS[name].takes_ranges for name in ("w8a8", "fp8_e4m3", "mxfp8", "nvfp4", "int4", "bf16")]
            [True, True, False, False, False, False]
        """
        inputs = None if self.activation is None else FORMATS[self.activation]
        return inputs is not None and inputs.scaled and inputs.block is None

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
    "fp8_e4m3": Format("fp8_e4m3", 8, "float", True, "fp8_e4m3", "e4m3"),
    "fp8_e5m2": Format("fp8_e5m2", 8, "float", True, "fp8_e5m2", "e5m2"),
    "fp8_block": Format("fp8_block", 8, "float", True, "fp8_block", "e4m3", (128, 128)),
    "mxfp8": Format("mxfp8", 8, "float", True, "mxfp8", "e4m3", (1, 32), "e8m0"),
    "mxfp4": Format("mxfp4", 4, "float", True, "mxfp4", "e2m1", (1, 32), "e8m0"),
    "mxfp4a16": Format("mxfp4a16", 4, "float", True, None, "e2m1", (1, 32), "e8m0"),
    "nvfp4": Format("nvfp4", 4, "float", True, "nvfp4", "e2m1", (1, 16), "e4m3"),
    "nvfp4a16": Format("nvfp4a16", 4, "float", True, None, "e2m1", (1, 16), "e4m3"),
    **{
        name: Format(name, num_bits, "ggml", True, block=(1, size), block_bytes=num_bytes)
        for name, num_bits, size, num_bytes in (
            ("q2_k", 2, 256, 84),
            ("q3_k", 3, 256, 110),
            ("q4_k", 4, 256, 144),
            ("q5_k", 5, 256, 176),
            ("q6_k", 6, 256, 210),
            ("iq4_xs", 4, 256, 136),
            ("iq4_nl", 4, 32, 18),
            ("q4_1", 4, 32, 20),
            ("q5_1", 5, 32, 24),
        )
    },
    "int4_per_token_head": Format("int4_per_token_head", 4, "cache", True, "int4_per_token_head"),
    "bf16": Format("bf16", 16, "float", False, "bf16", "bf16"),
    "fp32": Format("fp32", 32, "float", False, "fp32", "fp32"),
}
"""``int``, ``ggml`` and ``a16`` formats round weights alone, ``cache`` keys and values alone; all others inputs too, as
kernels of that name do."""

WEIGHT_FORMATS = tuple(name for name, format in FORMATS.items() if not format.of_caches)


def stored_bits(weight_format: Format, quantizer: Quantizer, num_rows: int, num_columns: int) -> int:
    """Bits that a [num_rows, num_columns] weight takes in a format: payload, scales and zero points.

    Example:
        >>> stored_bits(FORMATS["int4"], Quantizer(group_size=64), 128, 100)
        55296
    """
    payload = num_rows * num_columns * weight_format.num_bits
    if not weight_format.scaled:
        return payload
    if weight_format.block is not None:
        rows, columns = weight_format.block
        if weight_format.block_bytes:
            return 8 * num_rows * -(-num_columns // columns) * weight_format.block_bytes
        scale_bits = SCALE_BITS if weight_format.scales == "bf16" else 8
        in_common = GLOBAL_SCALE_BITS if weight_format.scales == "e4m3" else 0
        return payload + -(-num_rows // rows) * -(-num_columns // columns) * scale_bits + in_common
    group_size = quantizer.group_size if weight_format.type == "int" else None
    num_scales = num_rows * (1 if group_size is None else -(-num_columns // group_size))
    with_zero_point = weight_format.type == "int" and not quantizer.symmetric
    return payload + num_scales * (SCALE_BITS + (weight_format.num_bits if with_zero_point else 0))


def check_format(name: str, place: str) -> None:
    """Raise `UserError` with the known formats if `name` is not one."""
    if name not in FORMATS:
        raise UserError(f"unknown format {name!r} in {place}; known: {', '.join(FORMATS)}")


def check_weight_format(name: str, place: str) -> None:
    """Raise `UserError` with the known formats if `name` is not one that weights can have."""
    if name in FORMATS and FORMATS[name].of_caches:
        raise UserError(
            f"{place} names {name}, which keeps keys and values alone; move it to groups.kv_cache, and take "
            f"int{FORMATS[name].num_bits} for weights of as many bits"
        )
    if name not in FORMATS:
        raise UserError(f"unknown format {name!r} in {place}; known: {', '.join(WEIGHT_FORMATS)}")
