"""What tells, beside its weights, whether a model is still the one that was planned for: settings and outputs.

Equal weights run through other code, or under another `config.json`, make another model. A plan keeps the settings
as transformers resolves them, and a few of the outputs on the first calibration sample. Outputs differ by rounding
between machines, thread counts and kernels, so they are compared within it.
"""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hpcmpq.errors import PlanMismatch
from hpcmpq.plan import Plan

POSITIONS, OUTPUTS = 16, 4
"""Values that are kept: outputs of so many positions, evenly spread, and so many of each."""

SAME_ARITHMETIC = {"float64": 1e-8, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
"""How far each value may lie from the planned one, as a share of the outputs' spread, by the dtype planned in."""

ON_A_DEVICE = 1e-2
"""The same in float32 and float64 where one of both ran on a GPU, whose convolutions round to fewer bits."""

FLIPPED = 0.25
"""Share of the values that may lie further off except on CPUs in float32: rounding flips close choices of routers."""

_WITHOUT_EFFECT = {
    *("architectures", "attn_implementation", "dtype", "id2label", "initializer_range", "label2id", "name_or_path"),
    *("output_attentions", "output_hidden_states", "problem_type", "return_dict", "task_specific_params"),
    *("torch_dtype", "transformers_version", "use_cache"),
}  # fmt: skip
"""Settings that reach no output here: loading sets some of them, and weights are given."""


def original_marks(model: nn.Module, inputs: Mapping[str, Tensor], outputs_NTV: Tensor) -> dict[str, Any]:
    """Plain values for `Plan.original`: the settings, and some outputs on one sample with their spread.

    Args:
        model: The original.
        inputs: Of the sample.
        outputs_NTV: What it gives for them.
    """
    z_TV = _counted(inputs, outputs_NTV)
    spread = max(float(z_TV.std(correction=0)), 0.1 * float(z_TV.square().mean().sqrt()))
    return {
        "settings": settings_of(model),
        "outputs": _some(z_TV).tolist(),
        "spread": spread,
        "device": outputs_NTV.device.type,
    }


def settings_of(model: nn.Module) -> dict[str, Any]:
    """{dotted name: value} of a transformers model's settings that may reach its outputs; empty for other modules."""
    to_dict = getattr(getattr(model, "config", None), "to_dict", None)
    if not callable(to_dict):
        return {}
    found: dict[str, Any] = {}

    def add(values: Mapping[str, Any], prefix: str) -> None:
        for key, value in values.items():
            if key.startswith("_") or key in _WITHOUT_EFFECT or key.endswith("token_id"):
                continue
            if isinstance(value, dict):
                add(value, f"{prefix}{key}.")
            else:
                found[prefix + key] = value

    # Limits may be infinite, which the plan's JSON has no number for.
    add(json.loads(json.dumps(to_dict(), default=str), parse_constant=str), "")
    return found


def check_same_settings(model: nn.Module, plan: Plan) -> None:
    """Refuse a model with other settings than it was planned with; those that only one of both knows do not count.

    Raises:
        PlanMismatch: Naming the first that differs.
    """
    planned, now = plan.original.get("settings", {}), settings_of(model)
    differ = [key for key, value in planned.items() if key in now and now[key] != value]
    if differ:
        first = differ[0]
        others = f" (also different: {', '.join(differ[1:5])})" if len(differ) > 1 else ""
        raise PlanMismatch(
            f"the run was planned with {first}={planned[first]!r} in the config.json of {_source(plan)}, now it is "
            f"{now[first]!r}{others}; restore it, or use a new run directory"
        )


def check_same_outputs(plan: Plan, inputs: Mapping[str, Tensor], outputs_NTV: Tensor) -> None:
    """Refuse a model whose outputs on the first calibration sample are not those it was planned with, but for rounding.

    Args:
        plan: May be of a version that kept no outputs.
        inputs: Of the sample.
        outputs_NTV: What the original gives for them, by whatever engine.

    Raises:
        PlanMismatch: If they are not.
    """
    if "outputs" not in plan.original:
        return
    planned, spread = torch.tensor(plan.original["outputs"]), plan.original["spread"]
    now = _some(_counted(inputs, outputs_NTV))
    dtype = plan.config.model.dtype
    limit, share = SAME_ARITHMETIC[dtype], FLIPPED
    if dtype in ("float32", "float64"):
        if outputs_NTV.device.type == plan.original["device"] == "cpu":
            share = 0.0
        else:
            limit = ON_A_DEVICE
    if planned.shape == now.shape:
        off = (planned - now).abs() / spread
        if float((off > limit).float().mean()) <= share:
            return
        by = f"by {float(off.median()):.2g} of their spread in the middle, {float(off.max()):.2g} at most"
    else:
        by = f"{now.numel()} values for {planned.numel()}"
    before = plan.environment.get("transformers", "unknown")
    raise PlanMismatch(
        f"{_source(plan)} gives other outputs on the first calibration sample than when the run was planned ({by}), "
        f"with the same weights: its code or settings have changed, or a library (transformers was {before}); restore "
        "them, or use a new run directory"
    )


def _counted(inputs: Mapping[str, Tensor], outputs_NTV: Tensor) -> Tensor:
    """Outputs of the first sample that no mask takes out, float64 [T, V] on the CPU."""
    z_TV = outputs_NTV[0].detach().double().cpu()
    mask = inputs.get("attention_mask")
    if mask is not None and mask.shape[1:] == z_TV.shape[:1] and bool(mask[0].bool().any()):
        z_TV = z_TV[mask[0].bool().cpu()]
    return z_TV


def _some(z_TV: Tensor) -> Tensor:
    num_positions, num_outputs = z_TV.shape
    places = torch.linspace(0, num_positions - 1, min(POSITIONS, num_positions)).round().long()
    count = min(OUTPUTS, num_outputs)
    steps = torch.arange(count) * num_outputs // count
    columns = (steps[None, :] + 7919 * torch.arange(len(places))[:, None]) % num_outputs
    return z_TV[places[:, None], columns].flatten().float()


def _source(plan: Plan) -> str:
    return str(plan.config.model.path or plan.config.model.factory)
