"""Weights seen as matrices, swapped in place, and counted in bytes."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.func import functional_call

from hpcmpq.space import Group, Member

Tensors = dict[str, Tensor]
"""{parameter: tensor}."""


def as_matrix(tensor: Tensor, member: Member) -> Tensor:
    """A stored weight as [M outputs, K inputs], experts one after another; a view where the layout allows."""
    if member.transposed:
        tensor = tensor.mT
    return tensor.reshape(member.num_rows, member.num_columns)


def from_matrix(matrix_MK: Tensor, member: Member, like: Tensor) -> Tensor:
    """The inverse of `as_matrix`: the shape, dtype and device of the stored tensor `like`."""
    if member.transposed:
        return matrix_MK.reshape(like.mT.shape).mT.to(device=like.device, dtype=like.dtype)
    return matrix_MK.reshape(like.shape).to(device=like.device, dtype=like.dtype)


def holder_of(model: nn.Module, member: Member) -> nn.Module:
    """The layer that a weight is the `weight` of; for any other parameter the module that it is in."""
    return model.get_submodule(member.parameter.rpartition(".")[0])


@contextlib.contextmanager
def swapped(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """The model with other values in some parameters, which stay the same objects; the old ones return afterwards.

    Nothing is copied: parameters refer to the given tensors meanwhile, and whatever had hold of the old ones still has.
    Parameters that are one tensor under several names (tied weights) change together.

    Args:
        model: Any module.
        tensors: {qualified parameter name: new values of the same shape}, not to be changed meanwhile.

    Raises:
        ValueError: If there is no such parameter or a shape differs; nothing is changed then.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, tensor in tensors.items():
        if name not in parameters:
            raise ValueError(f"the model has no parameter {name!r}")
        if parameters[name].shape != tensor.shape:
            raise ValueError(f"{name} is {list(parameters[name].shape)}, got {list(tensor.shape)}")
    alike: dict[tuple, list[nn.Parameter]] = {}
    for parameter in model.parameters():
        alike.setdefault(_storage_key(parameter), []).append(parameter)
    owners = {name: alike[_storage_key(parameters[name])] for name in tensors}
    saved = list[tuple[nn.Parameter, Tensor]]()
    try:
        for name, tensor in tensors.items():
            wanted = _laid_out(tensor, parameters[name])
            for parameter in owners[name]:
                saved.append((parameter, parameter.data))
                parameter.data = wanted
        yield
    finally:
        for parameter, old in reversed(saved):
            parameter.data = old


def called_with(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
) -> Any:
    """What a module returns with other tensors in some parameters, differentiable in them; tied weights follow.

    torch's `functional_call` would leave its own tensors behind where a layer lies under two names in the module.

    Args:
        module: Any module.
        tensors: {qualified parameter name: tensor}.
        args: Of its call.
        kwargs: Of its call.
    """
    places: dict[int, list[str]] = {}
    for path, owner in module.named_modules():  # each once, under its first name
        for own, parameter in owner._parameters.items():
            places.setdefault(id(parameter), []).append(f"{path}.{own}".removeprefix("."))
    everywhere = {
        place: tensor for name, tensor in tensors.items() for place in places[id(module.get_parameter(name))]
    }
    return functional_call(module, everywhere, args, kwargs, tie_weights=False)


def _laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor in the dtype, on the device and in the order in memory of another: kernels give the same bits then."""
    tensor = tensor.detach().to(device=like.device, dtype=like.dtype)
    if tensor.stride() == like.stride():
        return tensor
    return torch.empty_like(like, requires_grad=False).copy_(tensor)


def num_fixed_bytes(
    model: nn.Module,
    groups: Sequence[Group],
    dtype: torch.dtype | None = None,
    count: Callable[[str, Sequence[int], int], int] | None = None,
    shares: Mapping[str, float] | None = None,
    wider: Mapping[str, torch.dtype] | None = None,
) -> int:
    """Bytes of all parameters and buffers of a checkpoint that no group searches; shared tensors count once.

    Args:
        model: Any module.
        groups: Their members are left out.
        dtype: Count floating tensors as stored in this dtype; None takes the dtype they are loaded in.
        count: Bytes of a tensor from its name, shape and bytes of one number; None takes its numbers alone.
        shares: {tensor: share of it that counts}; what is missing counts in full.
        wider: {tensor: dtype} of those that are stored in another than `dtype`.
    """
    state = {n: t for n, t in model.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}
    searched = {_storage_key(state[member.parameter]) for group in groups for member in group.members}
    fixed = {_storage_key(tensor): (name, tensor) for name, tensor in state.items()}
    total = 0.0
    for key, (name, tensor) in fixed.items():
        if key not in searched:
            usual = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
            stored = (wider or {}).get(name, usual)
            itemsize = stored.itemsize
            num_bytes = count(name, tensor.shape, itemsize) if count else tensor.numel() * itemsize
            total += num_bytes * (shares or {}).get(name, 1.0)
    return round(total)


def _storage_key(tensor: Tensor) -> tuple:
    address = 0 if isinstance(tensor, FakeTensor) else tensor.data_ptr()
    return (address or id(tensor), tuple(tensor.shape), tensor.stride())
