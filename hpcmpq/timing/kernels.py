"""What computes a layer in a number format on the machine at hand, out of torch's own kernels.

    fp32, bf16   the operation itself, inputs and weights cast
    w8a8         int8 matrix product (`torch._int_mm`), inputs rounded per token; convolutions by rows of patches
    fp8_*        scaled fp8 matrix product (`torch._scaled_mm`), inputs rounded per token
    int8, int4   weight-only packed products (`torch._weight_int8pack_mm`, `torch._weight_int4pack_mm`)

A format that is missing here, a shape that a kernel refuses, and a kernel whose result differs from the format's
fake-quantized one are `NoKernel`: such an option takes infinitely long, it is never guessed.
To add a kernel: a function (operation, quantizer) -> FormatKernel and a line in `KERNELS`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from hpcmpq.errors import raise_if_no_room
from hpcmpq.formats import FORMATS, Format, Quantizer
from hpcmpq.models.factories import describe
from hpcmpq.models.weights import as_matrix, from_matrix
from hpcmpq.quantizers import choose_qparams, encode, fake_quantize
from hpcmpq.quantizers.activations import round_activations
from hpcmpq.space import Member, Product
from hpcmpq.timing.packed_products import (
    CastOperation,
    Int4Weights,
    Int8Convolution,
    Int8Linear,
    Int8Weights,
    ScaledFloat,
)
from hpcmpq.timing.roundings import Cast, ToFloat8, ToInt8
from hpcmpq.timing.subgraphs.graph import Trace
from hpcmpq.timing.subgraphs.pieces import activations

TOLERANCE = 0.03
"""Largest relative difference of a kernel's result from the format's: bfloat16 sums, not another format."""


INT8_INPUTS = 16
"""Inputs that torch's kernel for int8 weights takes at once on CPUs: with some left over it crashes."""


class NoKernel(Exception):
    """Nothing computes this operation in this format here; the message says why."""


@dataclass(frozen=True)
class FormatKernel:
    """See `hpcmpq.timing.subgraphs.pieces.Kernel`."""

    conversion: nn.Module | None
    conversion_name: str
    product: nn.Module


@dataclass(frozen=True)
class Operation:
    """An operation of a trace that belongs to a group.

    Attributes:
        trace: Where it is from.
        node: The operation.
        use: The weight or the product of activations.
    """

    trace: Trace
    node: fx.Node
    use: Member | Product

    @property
    def kind(self) -> str:
        """``linear``, ``addmm``, ``conv2d``, ``matmul``, ..."""
        return str(self.node.target).removeprefix("aten.").split(".")[0]

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in here."""
        return self.node.meta["val"].dtype

    def weight(self) -> Tensor:
        """The weight as stored.

        Raises:
            NoKernel: If there is none, in a product of activations.
        """
        for argument in self.node.all_input_nodes:
            if argument.op == "get_attr" and self.trace.constant(argument).ndim > 1:
                return self.trace.constant(argument)
        raise NoKernel("products of activations have none but bf16 and fp32")

    def bias(self) -> Tensor | None:
        """The bias, float32 [M], or None."""
        found = [self.trace.constant(a) for a in self.node.all_input_nodes if a.op == "get_attr"]
        vectors = [tensor for tensor in found if tensor.ndim == 1]
        return vectors[0].float() if vectors else None

    def matrix(self) -> Tensor:
        """The weight of a linear layer as [M, K].

        Raises:
            NoKernel: If the operation is no linear layer.
        """
        weight = self.weight()
        if self.kind not in ("linear", "addmm") or not isinstance(self.use, Member):
            raise NoKernel(f"only linear layers have one, this is {self.kind}")
        return as_matrix(weight, self.use)


def find_kernel(operation: Operation, format_name: str, quantizer: Quantizer) -> FormatKernel | None:
    """The kernel of a format for an operation, checked; None where the model's own operation is it.

    Raises:
        NoKernel: If there is none here.
    """
    chosen = FORMATS[format_name]
    if format_name not in KERNELS:
        raise NoKernel(f"torch has none for {format_name}")
    try:
        kernel = KERNELS[format_name](operation, chosen, quantizer)
        if kernel is not None:
            _check(operation, kernel, chosen, quantizer)
    except (RuntimeError, NotImplementedError, ValueError, IndexError) as error:
        raise_if_no_room(error)
        raise NoKernel(f"torch's refuses this shape or device ({describe(error)[:160]})") from None
    return kernel


def _cast(operation: Operation, format: Format, quantizer: Quantizer) -> FormatKernel | None:
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[format.name]
    if dtype == operation.dtype:
        return None
    return FormatKernel(Cast(dtype), str(dtype), CastOperation(operation.trace, operation.node, dtype))


def _w8a8(operation: Operation, format: Format, quantizer: Quantizer) -> FormatKernel:
    weight, member = operation.weight(), operation.use
    assert isinstance(member, Member)
    matrix_MK = as_matrix(weight, member)
    codes_MK, scale_M = _per_channel(matrix_MK, format, quantizer)
    static = quantizer.activations == "static"
    name = "int8 static" if static else "int8"
    if operation.kind == "conv2d":
        convolution = Int8Convolution(operation.node, weight, codes_MK, scale_M, operation.bias())
        return FormatKernel(ToInt8((-3, -2, -1), static), f"{name} sample", convolution)
    operation.matrix()
    return FormatKernel(
        ToInt8((-1,), static), name, Int8Linear(codes_MK, scale_M, operation.bias(), operation.dtype)
    )


def _fp8(operation: Operation, format: Format, quantizer: Quantizer) -> FormatKernel:
    if quantizer.activations == "static":
        raise NoKernel("fp8 with static ranges has none here; use quantizer.activations dynamic")
    matrix_MK = operation.matrix()
    qparams = choose_qparams(matrix_MK, format, quantizer)
    codes_MK = encode(matrix_MK, qparams, format, quantizer)
    product = ScaledFloat(codes_MK, qparams.scale, operation.bias(), operation.dtype)
    return FormatKernel(ToFloat8(codes_MK.dtype), format.name, product)


def _int8_weights(operation: Operation, format: Format, quantizer: Quantizer) -> FormatKernel:
    matrix_MK = operation.matrix()
    if not matrix_MK.is_cuda and matrix_MK.shape[1] % INT8_INPUTS:
        raise NoKernel(
            f"int8 has one for multiples of {INT8_INPUTS} inputs alone, this layer has {matrix_MK.shape[1]}"
        )
    codes_MK, scale_M = _per_channel(matrix_MK, format, quantizer)
    product = Int8Weights(codes_MK, scale_M, operation.bias(), operation.dtype)
    return FormatKernel(Cast(torch.bfloat16), str(torch.bfloat16), product)


def _int4_weights(operation: Operation, format: Format, quantizer: Quantizer) -> FormatKernel:
    matrix_MK = operation.matrix()
    if not quantizer.symmetric:
        raise NoKernel("packed int4 has none for zero points here; use quantizer.symmetric true")
    num_inputs = matrix_MK.shape[1]
    wanted = quantizer.group_size or num_inputs
    sizes = [size for size in (256, 128, 64, 32) if wanted % size == 0 and num_inputs % wanted == 0]
    if not sizes:
        raise NoKernel(f"packed int4 has none for {wanted} weights a scale of {num_inputs} inputs")
    qparams = choose_qparams(matrix_MK, format, quantizer)
    codes_MK = encode(matrix_MK, qparams, format, quantizer)
    scale_MS = qparams.scale.repeat_interleave(wanted // sizes[0], 1)
    product = Int4Weights(codes_MK, scale_MS, sizes[0], operation.bias(), operation.dtype)
    return FormatKernel(Cast(torch.bfloat16), str(torch.bfloat16), product)


def _per_channel(matrix_MK: Tensor, format: Format, quantizer: Quantizer) -> tuple[Tensor, Tensor]:
    """Codes int8 [M, K] and one scale per output channel, float32 [M]."""
    if not quantizer.symmetric or (quantizer.group_size or matrix_MK.shape[1]) < matrix_MK.shape[1]:
        raise NoKernel(
            f"{format.name} has one for a symmetric scale per channel alone: quantizer.group_size null"
        )
    qparams = choose_qparams(matrix_MK, format, quantizer)
    return encode(matrix_MK, qparams, format, quantizer), qparams.scale[:, 0]


KERNELS: dict[str, Callable[[Operation, Format, Quantizer], FormatKernel | None]] = {
    "fp32": _cast,
    "bf16": _cast,
    "w8a8": _w8a8,
    "fp8_e4m3": _fp8,
    "fp8_e5m2": _fp8,
    "int8": _int8_weights,
    "int4": _int4_weights,
}


def _check(operation: Operation, kernel: FormatKernel, format: Format, quantizer: Quantizer) -> None:
    """Raise `NoKernel` if a kernel computes something else than its format on random inputs."""
    generator = torch.Generator().manual_seed(0)
    values = [node.meta["val"] for node in activations(operation.node)]
    inputs = [torch.randn(v.shape, generator=generator).to(device=v.device, dtype=v.dtype) for v in values]
    converted = inputs if kernel.conversion is None else [kernel.conversion(x) for x in inputs]
    found = kernel.product(*converted)
    expected = _reference(operation, inputs, format, quantizer)
    if found.shape != expected.shape or found.dtype != operation.dtype:
        raise NoKernel(f"{format.name} gives {found.dtype} {list(found.shape)}")
    error = float((found.float() - expected.float()).norm() / expected.float().norm().clamp_min(1e-30))
    if not error <= TOLERANCE:
        raise NoKernel(f"{format.name} differs from its definition by {100 * error:.0f} %")


def _parameters(operation: Operation) -> list[fx.Node]:
    return [argument for argument in operation.node.all_input_nodes if argument.op == "get_attr"]


def _reference(operation: Operation, inputs: list[Tensor], format: Format, quantizer: Quantizer) -> Tensor:
    """The operation with fake-quantized weight and inputs."""
    replaced: dict[fx.Node, Any] = dict(zip(activations(operation.node), inputs, strict=True))
    axes = (-3, -2, -1) if operation.kind == "conv2d" else (-1,)
    if format.activation is not None:
        for node, x in replaced.items():
            static = float(x.abs().max()) if quantizer.activations == "static" else None
            replaced[node] = round_activations(x, FORMATS[format.activation], axes, static)
    for node in _parameters(operation):
        tensor = operation.trace.constant(node)
        if tensor.ndim > 1 and isinstance(operation.use, Member):
            rounded = fake_quantize(as_matrix(tensor, operation.use), format, quantizer)
            tensor = from_matrix(rounded, operation.use, tensor)
        replaced[node] = tensor
    arguments = fx.node.map_arg(operation.node.args, replaced.__getitem__)
    assert callable(operation.node.target)
    return operation.node.target(*arguments)
