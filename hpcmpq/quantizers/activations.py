"""Rounding of activations: one scale for each vector that enters a dot product, or one for a whole layer.

    x̂ = s · Q(x / s),   s = max|x| / largest code

`dynamic` takes the maximum over the axes that a product sums over (a token's features; a sample's image for a
convolution), so that the scale factors out of the sum and a token is rounded alike whatever is in its batch.
`static` takes a maximum that was measured before, and saturates beyond it. Codes are symmetric: int8 uses ±127.
bf16 and fp32 are plain casts without a scale.
"""

import torch
from torch import Tensor

from hpcmpq.formats import Format
from hpcmpq.quantizers.floating import largest_value, nearest_values
from hpcmpq.quantizers.integer import nearest_codes


def round_activations(
    x: Tensor, format: Format, axes: tuple[int, ...], maximum: float | None = None
) -> Tensor:
    """Activations rounded to a number format, in the dtype and shape given.

    Args:
        x: Any float dtype; computed in float32, or float64 for float64. NaN stays NaN.
        format: A format of `Format.activation`.
        axes: That share a dynamic scale, counted from the end.
        maximum: The static range's end, or None for dynamic scales.

    Example:
        >>> from hpcmpq.formats import FORMATS
        >>> round_activations(torch.tensor([[127.0, 0.6, -3.4], [0.0, 0.0, 0.0]]), FORMATS["int8"], (-1,))
        tensor([[127.,   1.,  -3.],
                [  0.,   0.,   0.]])
    """
    value = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    if not format.scaled:
        return nearest_values(value, torch.ones((), dtype=value.dtype, device=x.device), format).to(x.dtype)
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
