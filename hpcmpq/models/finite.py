"""Refusals of numbers that nothing can be measured with."""

import torch
from torch import Tensor

from hpcmpq.errors import UserError


def check_finite_parameter(name: str, parameter: Tensor, source: object) -> None:
    """Raise `UserError` if a parameter of the model in `source` holds NaN or infinite values."""
    if not torch.isfinite(parameter).all():
        count = int((~torch.isfinite(parameter)).sum())
        raise UserError(
            f"{count} of {parameter.numel()} values of parameter {name} of {source} are NaN or infinite; "
            "repair or copy the model again"
        )


def check_finite_outputs(outputs_NTV: Tensor) -> None:
    """Raise `UserError` if the original's outputs are NaN or infinite."""
    if not torch.isfinite(outputs_NTV).all():
        raise UserError(
            "the original model's outputs on calibration samples are NaN or infinite; use model.dtype float32, or "
            "check the model and its inputs"
        )
