"""Which weights error-compensated rounding takes: of linear layers and experts. Embeddings go to the nearest."""

from torch import nn

from hpcmpq.errors import UserError
from hpcmpq.models.weights import holder_of
from hpcmpq.rounding.matrices import is_of_experts
from hpcmpq.space import Member


def is_linear_weight(model: nn.Module, member: Member) -> bool:
    """Whether a weight is that of a linear layer, which is called with its inputs."""
    linear = isinstance(holder_of(model, member), nn.Linear) or member.transposed
    return linear and member.is_layer_weight


def is_embedding(model: nn.Module, member: Member) -> bool:
    """Whether a weight is that of an embedding, which is given numbers of rows and no inputs to sum."""
    return isinstance(holder_of(model, member), nn.Embedding)


def check_linear(model: nn.Module, member: Member, fused: bool = True) -> None:
    """Raise `UserError` unless a weight is that of a linear layer, an embedding, or perhaps of `fused` experts."""
    if is_linear_weight(model, member) or is_embedding(model, member):
        return
    if not is_of_experts(model, member):
        raise UserError(
            f"quantizer.rounding gptq and quantizer.checkpoints take linear layers, experts and embeddings only, "
            f"{member.parameter} is of a {type(holder_of(model, member)).__name__}; add it to groups.exclude"
        )
    if not fused:
        raise UserError(
            f"quantizer.checkpoints take linear layers and embeddings only, {member.parameter} holds all experts of a "
            "layer; add it to groups.exclude"
        )
