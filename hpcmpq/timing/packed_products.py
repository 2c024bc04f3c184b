"""Matrix products and convolutions in low precision, as modules that hold their packed weights.

Shape letters: M outputs, K inputs, S scales of an output channel, L inputs that share a scale, T rows (tokens).
"""

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from hpcmpq.timing.subgraphs.graph import Trace
from hpcmpq.timing.subgraphs.pieces import activations

MIN_ROWS = 32
"""CUDA's int8 product takes no fewer than 17 rows; fewer are padded."""


class CastOperation(nn.Module):
    """An operation of a trace with its weights in another dtype; the result is cast back."""

    def __init__(self, trace: Trace, node: fx.Node, dtype: torch.dtype) -> None:
        super().__init__()
        self.node, self.places = node, activations(node)
        self.result_dtype = node.meta["val"].dtype
        self.constants = {a: trace.constant(a).to(dtype) for a in node.all_input_nodes if a.op == "get_attr"}

        def shown(argument: fx.Node) -> tuple[str, int | Tensor]:
            if argument in self.constants:
                return ("constant", self.constants[argument])
            return ("input", self.places.index(argument))

        self.arguments = [shown(a) if isinstance(a, fx.Node) else ("constant", a) for a in node.args]

    def forward(self, *inputs: Tensor) -> Tensor:
        """The operation's result in the model's dtype."""
        arguments = [inputs[v] if kind == "input" else v for kind, v in self.arguments]  # type: ignore[index]
        return self.node.target(*arguments).to(self.result_dtype)  # type: ignore[operator]


class Int8Linear(nn.Module):
    """int8 codes times int8 weights with int32 sums: scale_T · scale_M · (codes @ W) + bias."""

    def __init__(self, codes_MK: Tensor, scale_M: Tensor, bias_M: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight_KM, self.scale_M = codes_MK.t().contiguous(), scale_M.float()
        self.bias_M, self.dtype = bias_M, dtype

    def forward(self, converted: tuple[Tensor, Tensor]) -> Tensor:
        """The layer's output [..., M] of (codes [..., K], scales)."""
        codes, scale = converted
        sum_TM = int8_rows(codes.reshape(-1, codes.shape[-1]), self.weight_KM)
        result = sum_TM.view(*codes.shape[:-1], -1).float().mul_(scale).mul_(self.scale_M)
        return (result if self.bias_M is None else result.add_(self.bias_M)).to(self.dtype)


class Int8Convolution(nn.Module):
    """A 2-D convolution as the int8 product of patches, as rows, with the kernel."""

    def __init__(
        self, node: fx.Node, weight: Tensor, codes_MK: Tensor, scale_M: Tensor, bias_M: Tensor | None
    ) -> None:
        super().__init__()
        defaults: tuple[Any, ...] = (None, (1, 1), (0, 0), (1, 1), 1)
        given = (*node.args[2:], *defaults[len(node.args) - 2 :])
        _, stride, padding, dilation, groups = given
        if groups != 1 or _pair(dilation) != (1, 1) or isinstance(padding, str):
            raise NotImplementedError("grouped, dilated or named-padding convolutions")
        self.height, self.width = weight.shape[2:]
        self.stride = _pair(stride)
        rows, columns = _pair(padding)
        self.padding = (columns, columns, rows, rows)
        self.weight_KM, self.scale_M = codes_MK.t().contiguous(), scale_M.float()
        self.bias_M, self.dtype = bias_M, node.meta["val"].dtype

    def forward(self, converted: tuple[Tensor, Tensor]) -> Tensor:
        """The layer's output [N, M, H, W] of (codes [N, C, H, W], scales [N, 1, 1, 1])."""
        codes, scale = converted
        if any(self.padding):
            codes = F.pad(codes, self.padding)
        patches = codes.unfold(2, self.height, self.stride[0]).unfold(3, self.width, self.stride[1])
        num_samples, _, height, width = patches.shape[:4]
        rows_TK = patches.permute(0, 2, 3, 1, 4, 5).reshape(num_samples * height * width, -1)
        sums = int8_rows(rows_TK, self.weight_KM).view(num_samples, height, width, -1)
        result = sums.float().mul_(scale).mul_(self.scale_M)
        if self.bias_M is not None:
            result.add_(self.bias_M)
        return result.permute(0, 3, 1, 2).contiguous().to(self.dtype)


class ScaledFloat(nn.Module):
    """fp8 codes times fp8 weights, scaled per token and per output channel."""

    def __init__(self, codes_MK: Tensor, scale_M1: Tensor, bias_M: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight_KM, self.scale_1M = codes_MK.t(), scale_M1.float().t().contiguous()
        self.bias_M, self.dtype = bias_M, dtype

    def forward(self, converted: tuple[Tensor, Tensor]) -> Tensor:
        """The layer's output [..., M] of (codes [..., K], scales [..., 1])."""
        codes, scale = converted
        result_TM = torch._scaled_mm(
            codes.reshape(-1, codes.shape[-1]),
            self.weight_KM,
            scale_a=scale.reshape(-1, 1),
            scale_b=self.scale_1M,
            out_dtype=torch.bfloat16,
        )
        return _finished(result_TM, self.bias_M, codes, self.dtype)


class Int8Weights(nn.Module):
    """bfloat16 inputs times int8 weights with one scale per output channel."""

    def __init__(self, codes_MK: Tensor, scale_M: Tensor, bias_M: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.codes_MK, self.scale_M = codes_MK.contiguous(), scale_M.to(torch.bfloat16)
        self.bias_M, self.dtype = bias_M, dtype

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output [..., M] of a bfloat16 input."""
        result_TM = torch._weight_int8pack_mm(x.reshape(-1, x.shape[-1]), self.codes_MK, self.scale_M)
        return _finished(result_TM, self.bias_M, x, self.dtype)


class Int4Weights(nn.Module):
    """bfloat16 inputs times packed int4 weights with one scale per L inputs."""

    def __init__(
        self, codes_MK: Tensor, scale_MS: Tensor, length: int, bias_M: Tensor | None, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.length, self.bias_M, self.dtype = length, bias_M, dtype
        scale_SM = scale_MS.t().to(torch.bfloat16)
        self.scales_SM2 = torch.stack([scale_SM, torch.zeros_like(scale_SM)], -1).contiguous()
        unsigned_MK = codes_MK.to(torch.int32) + 8  # the kernels mean scale · (code − 8) + zero
        if codes_MK.is_cuda:
            pairs = (unsigned_MK[:, ::2] << 4 | unsigned_MK[:, 1::2]).to(torch.uint8)
            self.packed = torch.ops.aten._convert_weight_to_int4pack(pairs, 8)
            self.multiply = torch.ops.aten._weight_int4pack_mm
        else:
            self.packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(unsigned_MK, 1)
            self.multiply = torch.ops.aten._weight_int4pack_mm_for_cpu

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output [..., M] of a bfloat16 input."""
        rows_TK = x.reshape(-1, x.shape[-1])
        result_TM = self.multiply(rows_TK, self.packed, self.length, self.scales_SM2)
        return _finished(result_TM, self.bias_M, x, self.dtype)


def int8_rows(codes_TK: Tensor, weight_KM: Tensor) -> Tensor:
    """int32 [T, M] of int8 factors; few rows are padded on CUDA."""
    num_rows = len(codes_TK)
    if codes_TK.is_cuda and num_rows < MIN_ROWS:
        codes_TK = F.pad(codes_TK, (0, 0, 0, MIN_ROWS - num_rows))
    return torch._int_mm(codes_TK, weight_KM)[:num_rows]


def _finished(result_TM: Tensor, bias_M: Tensor | None, like: Tensor, dtype: torch.dtype) -> Tensor:
    result = result_TM.to(dtype).view(*like.shape[:-1], -1)
    return result if bias_M is None else result.add_(bias_M)


def _pair(value: object) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    first, second = (*value, *value)[:2]  # type: ignore[misc]
    return first, second
