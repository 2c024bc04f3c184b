"""Which weights error-compensated rounding takes: those of linear layers."""

from torch import nn

from hpcmpq.errors import UserError
from hpcmpq.models.weights import holder_of
from hpcmpq.space import Member


def is_linear_weight(model: nn.Module, member: Member) -> bool:
    """Whether a weight is that of a linear layer, which is called with its inputs."""
    linear = isinstance(holder_of(model, member), nn.Linear) or member.transposed
    return linear and member.is_layer_weight


def check_linear(model: nn.Module, member: Member) -> None:
    """Raise `UserError` unless a weight is that of a linear layer."""
    if not is_linear_weight(model, member):
        raise UserError(
            f"quantizer.rounding gptq and quantizer.checkpoints take linear layers only, {member.parameter} is of "
            f"a {type(holder_of(model, member)).__name__}; add it to groups.exclude"
        )
