"""Digests of weights, by which stages after the plan tell whether the model is still the planned one.

The fingerprint of a plan holds a digest of all bytes, which takes as long to make as the model takes to read. A model
that was trained on, replaced or copied half differs in many weights: of a large one, the ends of each weight's first
and last rows say enough.
"""

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from hpcmpq.errors import PlanMismatch
from hpcmpq.plan import Plan

END = 64
"""Values from the start of the first row and from the end of the last."""

WHOLE = 2**26
"""Up to so many values in all, every one of them counts."""

Rows = Callable[[str, int, int], Tensor]
"""(parameter, start, stop) → that range of its first axis."""


def weight_marks(model: nn.Module, dtype: str, rows: Rows | None = None) -> dict[str, str]:
    """{parameter: digest of its shape and of its values, or a few of them}.

    Args:
        model: The original.
        dtype: Of the config: some methods load in float32 what it rounds, and round it then.
        rows: Where the values of parameters without any come from; without it these are left out.
    """
    marks = {}
    end = None if sum(parameter.numel() for parameter in model.parameters()) <= WHOLE else END
    for name, parameter in model.named_parameters():
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


def check_same_weights(model: nn.Module, plan: Plan, rows: Rows | None = None) -> None:
    """Refuse a model that has changed since it was planned for.

    Raises:
        PlanMismatch: Naming the first weight that differs.
    """
    settings = plan.config["model"]
    marks = weight_marks(model, settings["dtype"], rows)
    differ = [name for name, mark in marks.items() if plan.weights.get(name, mark) != mark]
    if differ:
        raise PlanMismatch(
            f"{settings['path'] or settings['factory']} has other weights than the run was planned with "
            f"({len(differ)} of {len(marks)} differ, first {differ[0]}); restore the model, or use a new run directory"
        )
