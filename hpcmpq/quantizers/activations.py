"""Rounding of activations: one scale for each vector that enters a dot product, or one for a whole layer.

    x̂ = s · Q(x / s),   s = max|x| / largest code

`dynamic` takes the maximum over the axes that a product sums over (a token's features; a sample's image for a
convolution), so that the scale factors out of the sum and a token is rounded alike whatever is in its batch.
`static` takes a maximum that was measured before, and saturates beyond it. Codes are symmetric: int8 uses ±127.
bf16 and fp32 are plain casts without a scale. Formats of blocks have a dynamic scale for every block of inputs,
whatever the quantizer says, as their kernels do. In nvfp4 these are fp8 numbers times a scale that all inputs of a
layer share: with the measured maximum at 6 · 448. Formats of caches are rotated, see `hpcmpq.quantizers.rotated`.
"""

import torch
from torch import Tensor

from hpcmpq.errors import UserError
from hpcmpq.formats import Format
from hpcmpq.quantizers.blocks import LARGEST_E4M3, fp8_scale, next_power_of_two
from hpcmpq.quantizers.floating import LARGEST_E2M1, largest_value, nearest_values
from hpcmpq.quantizers.integer import nearest_codes
from hpcmpq.quantizers.rotated import round_rotated


def round_activations(
    x: Tensor, format: Format, axes: tuple[int, ...], maximum: float | None = None
) -> Tensor:
    """Activations rounded to a number format, in the dtype and shape given.

    Args:
        x: Any float dtype; computed in float32, or float64 for float64. NaN stays NaN.
        format: A format of `Format.activation`.
        axes: That share a dynamic scale, counted from the end.
        maximum: The static range's end, or None for dynamic scales; of nvfp4 the end that its common scale is for,
            or None for one of each vector.

    Raises:
        UserError: If the format has blocks of inputs and the product sums over several axes.

    Example:
        >>> from hpcmpq.formats import FORMATS
        >>> round_activations(torch.tensor([[127.0, 0.6, -3.4], [0.0, 0.0, 0.0]]), FORMATS["int8"], (-1,))
        tensor([[127.,   1.,  -3.],
                [  0.,   0.,   0.]])
    """
    if format.of_caches:
        return round_rotated(x)
    value = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    if not format.scaled:
        return nearest_values(value, torch.ones((), dtype=value.dtype, device=x.device), format).to(x.dtype)
    if format.block is not None:
        return _in_blocks(value, format, axes, maximum).to(x.dtype)
    top = float(2 ** (format.num_bits - 1) - 1) if format.type == "int" else largest_value(format)
    if maximum is None:
        scale = value.abs().amax(axes, keepdim=True) / top
    else:
        scale = torch.tensor(maximum / top, dtype=value.dtype, device=x.device)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    if format.type == "int":
        codes = nearest_codes(value, scale, None, (-int(top), int(top)))
    else:
        codes = nearest_values(value, scale, format).to(value.dtype)
    return (codes * scale).to(x.dtype)


def input_scale(maximum: float) -> float:
    """The scale of a layer's inputs in nvfp4 under the fp8 scales of their blocks, for the largest input."""
    return maximum / (LARGEST_E2M1 * LARGEST_E4M3) if maximum > 0 else 1.0


def _in_blocks(value: Tensor, format: Format, axes: tuple[int, ...], maximum: float | None) -> Tensor:
    if len(axes) != 1 or format.block is None:
        raise UserError(
            f"{format.name} rounds blocks of the inputs of linear layers, and a layer here sums over {len(axes)} axes; "
            "exclude convolutions, or take formats without blocks"
        )
    moved = value.movedim(axes[0], -1)
    length = moved.shape[-1]
    size = format.block[1]
    padded = torch.nn.functional.pad(moved, (0, -length % size))
    blocks = padded.unflatten(-1, (-1, size))
    scale = blocks.abs().amax(-1, keepdim=True) / largest_value(format)
    if format.scales == "e8m0":
        scale = next_power_of_two(scale)
    elif format.scales == "e4m3":
        if maximum is None:
            common = scale.amax(-2, keepdim=True) / LARGEST_E4M3
            common = torch.where(common > 0, common, 1.0)
        else:
            common = torch.tensor(input_scale(maximum), dtype=value.dtype, device=value.device)
        scale = fp8_scale(scale, common)
    scale = torch.where(scale > 0, scale, 1.0)
    rounded = nearest_values(blocks, scale, format).to(value.dtype) * scale
    return rounded.flatten(-2)[..., :length].movedim(-1, axes[0])
