"""Whether a model gives the same outputs each time: whatever it draws at random would be taken for rounding errors."""

import torch
from torch import Tensor, nn

from hpcmpq.errors import UserError
from hpcmpq.models.outputs import forward


@torch.no_grad()
def check_repeatable(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Refuse a model whose outputs on one sample change from pass to pass, by more than kernels' order of sums.

    Args:
        model: In eval mode.
        inputs: Of one sample, on any device.

    Returns:
        The outputs [1, T, V].

    Raises:
        UserError: If they do, or are not finite.
    """
    device = next(model.parameters()).device
    inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
    first_NTV, again_NTV = forward(model, inputs), forward(model, inputs)
    if not torch.isfinite(first_NTV).all():
        raise UserError(
            "the original model's outputs on a calibration sample are NaN or infinite; use model.dtype float32, or "
            "check the model and its inputs"
        )
    same = first_NTV.shape == again_NTV.shape
    limit = torch.finfo(first_NTV.dtype).eps ** 0.5 * float(first_NTV.abs().max())
    if not same or float((first_NTV - again_NTV).abs().max()) > limit:
        raise UserError(
            "the model's outputs on one sample differ from pass to pass although it is in eval mode; take out what it "
            "draws at random, such as functional dropout without training=self.training"
        )
    return first_NTV
