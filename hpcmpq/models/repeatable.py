"""Whether a model gives the same outputs each time: whatever it draws at random would be taken for rounding errors."""

import torch
from torch import Tensor, nn

from hpcmpq.errors import UserError
from hpcmpq.models.finite import check_finite_outputs
from hpcmpq.models.outputs import tried_forward


@torch.no_grad()
def check_repeatable(model: nn.Module, inputs: dict[str, Tensor]) -> None:
    """Refuse a model that fails on a batch, or whose outputs change from pass to pass by more than kernels round.

    Args:
        model: In eval mode.
        inputs: Of a batch as calibration runs it, on any device.

    Raises:
        UserError: If it does, or its outputs are not finite.
    """
    device = next(model.parameters()).device
    inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
    first_NTV, again_NTV = tried_forward(model, inputs), tried_forward(model, inputs)
    check_finite_outputs(first_NTV)
    same = first_NTV.shape == again_NTV.shape
    limit = torch.finfo(first_NTV.dtype).eps ** 0.5 * float(first_NTV.abs().max())
    if not same or float((first_NTV - again_NTV).abs().max()) > limit:
        raise UserError(
            "the model's outputs on the same samples differ from pass to pass although it is in eval mode; take out "
            "what it draws at random, such as functional dropout without training=self.training"
        )
