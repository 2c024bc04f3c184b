"""What happens to a layer's input in front of its kernel; layers that read the same value share it.

A static range is a constant; it is taken from the first input seen, since times do not depend on its value.
"""

import torch
from torch import Tensor, nn

TINY = 1e-30


class Cast(nn.Module):
    """The input in another dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """The input cast."""
        return x.to(self.dtype)


class ToInt8(nn.Module):
    """Codes int8 of the input's shape, and their scales with the rounded axes kept."""

    def __init__(self, axes: tuple[int, ...], static: bool) -> None:
        super().__init__()
        self.axes, self.static = axes, static
        self.scale: Tensor | None = None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(codes, scale) with x ≈ scale · codes."""
        if self.scale is None:
            scale = x.abs().amax(() if self.static else self.axes, keepdim=True).float()
            scale = scale.clamp_min_(TINY).div_(127.0)
            if self.static:
                self.scale = scale
        else:
            scale = self.scale
        codes = torch.div(x, scale).round_()
        if self.static:
            codes.clamp_(-127, 127)
        return codes.to(torch.int8), scale


class ToFloat8(nn.Module):
    """Codes of an fp8 dtype and one scale per token."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.largest = dtype, torch.finfo(dtype).max

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(codes, scale) with x ≈ scale · codes."""
        scale = x.abs().amax(-1, keepdim=True).float().clamp_min_(TINY).div_(self.largest)
        return torch.div(x, scale).clamp_(-self.largest, self.largest).to(self.dtype), scale
