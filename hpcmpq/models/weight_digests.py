"""Digests of weights, by which stages after the plan tell whether the model is still the planned one.

The fingerprint of a plan holds a digest of all bytes, which takes as long to make as the model takes to read. A model
that was trained on, replaced or copied half differs in many weights: of a large one, the ends of each weight's first
and last rows say enough.
"""

import hashlib
from collections.abc import Hashable

import torch
from torch import Tensor, nn

from hpcmpq.errors import PlanMismatch
from hpcmpq.models.finite import check_finite_parameter
from hpcmpq.models.stored_weights import ReadRows, Weights
from hpcmpq.plan import Plan

END = 64
"""Values from the start of the first row and from the end of the last."""

WHOLE = 2**26
"""Up to so many values in all, every one of them counts."""


def weight_marks(model: nn.Module, dtype: str, rows: ReadRows | None = None) -> dict[str, str]:
    """{parameter or stored buffer: digest of its shape and of its values, or a few of them}.

    Args:
        model: The original.
        dtype: Of the config: some methods load in float32 what it rounds, and round it then.
        rows: Where the values of parameters without any come from; without it these are left out.
    """
    marks = {}
    end = None if sum(parameter.numel() for parameter in model.parameters()) <= WHOLE else END
    stored = model.state_dict().keys()
    buffers = ((name, buffer) for name, buffer in model.named_buffers() if name in stored)
    for name, parameter in (*model.named_parameters(), *buffers):
        if parameter.is_meta and rows is None:
            continue
        values = parameter.detach().reshape(1) if parameter.ndim == 0 else parameter.detach()
        stop = len(values) if end is None else 1
        first, last = values[:stop], values[-1:]
        if parameter.is_meta and rows is not None:
            first, last = rows(name, 0, stop), rows(name, len(values) - 1, len(values))
        ends = torch.cat([first.flatten()[:end], last.flatten()[-END:]])
        state = hashlib.blake2b(f"{list(parameter.shape)}".encode(), digest_size=6)
        state.update(ends.to(getattr(torch, dtype)).float().cpu().numpy().tobytes())
        marks[name] = state.hexdigest()
    return marks


def check_same_weights(model: nn.Module, plan: Plan, rows: ReadRows | None = None) -> None:
    """Refuse a model that has changed since it was planned for.

    Raises:
        PlanMismatch: Naming the first weight that differs.
    """
    settings = plan.config.model
    marks = weight_marks(model, settings.dtype, rows)
    differ = [name for name, mark in marks.items() if plan.weights.get(name, mark) != mark]
    if differ:
        raise PlanMismatch(
            f"{settings.path or settings.factory} has other weights than the run was planned with "
            f"({len(differ)} of {len(marks)} differ, first {differ[0]}); restore the model, or use a new run directory"
        )


def weights_fingerprint(model: nn.Module, weights: Weights | None = None) -> str:
    """SHA-256 over names, shapes, dtypes and bytes of the state; shared tensors are read once.

    Args:
        model: Loaded, or without the values of what `weights` reads: one tensor of those is in memory at a time.
        weights: Of a streamed model, whose every parameter is read here for the first time.

    Raises:
        UserError: If one of these holds NaN or infinite values.
    """
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    digests: dict[Hashable, str] = {}
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not isinstance(tensor, Tensor):
            total.update(f"{name} {tensor!r}\n".encode())
            continue
        stored = None if weights is None else weights.source(name)
        key = stored or (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if key not in digests:
            value = tensor
            if stored is not None and weights is not None:
                value = weights.read(name)
                if name in parameters:
                    check_finite_parameter(name, value, weights.directory)
            flat = value.detach().contiguous().reshape(-1).view(torch.uint8).cpu()
            digest = hashlib.sha256(flat.numpy().data).hexdigest()
            digests[key] = f"{list(value.shape)} {value.dtype} {digest}"
        total.update(f"{name} {digests[key]}\n".encode())
    return total.hexdigest()
