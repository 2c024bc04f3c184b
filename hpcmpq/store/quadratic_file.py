"""The quadratic model in `quadratic.h5`."""

from pathlib import Path

import numpy as np

from hpcmpq.errors import PlanMismatch, UserError
from hpcmpq.plan import Plan
from hpcmpq.quadratic import QuadraticModel
from hpcmpq.store.h5_files import Scalar, read_array, read_attribute, read_h5, write_h5


def write_quadratic(path: Path, model: QuadraticModel, diagonal_P: np.ndarray, fingerprint: str) -> None:
    """Write `quadratic.h5` atomically."""
    arrays = {
        "linear": model.linear_P,
        "quadratic": model.quad_PP,
        "stderr_linear": model.stderr_linear_P,
        "stderr_quadratic": model.stderr_quad_PP,
        "diagonal": diagonal_P,
        "batches/linear": model.batch_linear_BP,
        "batches/quadratic": model.batch_quad_BPP,
        "options/group": np.array(model.option_group, dtype=object),
        "options/format": np.array(model.option_format, dtype=object),
    }
    if model.flips_P is not None:
        arrays["flips"] = model.flips_P
    if model.tokens_LE is not None:
        arrays["tokens"] = model.tokens_LE
    attributes: dict[str, Scalar] = {
        "objective": model.objective,
        "method": model.method,
        "loss0": model.loss0,
        "num_samples": model.num_samples,
        "fingerprint": fingerprint,
    }
    if model.task_loss_mean_square is not None:
        attributes["task_loss_mean_square"] = model.task_loss_mean_square
    write_h5(path, arrays, attributes)


def read_tokens(path: Path) -> tuple[tuple[int, ...], ...]:
    """Calibration tokens that each expert was given, by layer, of `quadratic.h5`; nothing else of it is read.

    Empty where they were not counted, and where the file is missing or damaged.
    """
    tokens_LE = read_array(path, "tokens")
    return () if tokens_LE is None else tuple(tuple(int(count) for count in row) for row in tokens_LE)


def is_of_plan(path: Path, plan: Plan) -> bool:
    """Whether there is a whole `quadratic.h5` of this plan and the options that it measures."""
    if read_attribute(path, "fingerprint") != plan.fingerprint:
        return False
    found = [read_array(path, f"options/{part}") for part in ("group", "format")]
    return [None if array is None else array.tolist() for array in found] == [
        [name.encode() for name in names] for names in _option_names(plan)
    ]


def read_quadratic(path: Path, plan: Plan | None = None) -> QuadraticModel:
    """Read and verify `quadratic.h5`.

    Args:
        path: Of the file.
        plan: That it must belong to; None for any.

    Raises:
        UserError: If it is missing.
        PlanMismatch: If it belongs to another plan, or is of other options than the plan measures by now.
        CorruptShard: If it is damaged.
    """
    if not path.exists():
        raise UserError(f"{path} is missing; run `hpcmpq reduce {path.parent}` first")
    arrays, attributes = read_h5(path, f"hpcmpq reduce {path.parent}")
    if plan is not None and attributes["fingerprint"] != plan.fingerprint:
        raise PlanMismatch(
            f"{path} belongs to another plan than plan.json; run `hpcmpq calibrate` and `hpcmpq reduce` for this one, "
            "or use a new run directory"
        )
    groups, formats = tuple(arrays["options/group"].tolist()), tuple(arrays["options/format"].tolist())
    if plan is not None and (groups, formats) != _option_names(plan):
        raise PlanMismatch(
            f"{path} is of other options than the {plan.space.num_options} that are measured by now; run "
            f"`hpcmpq reduce {path.parent}` again"
        )
    return QuadraticModel(
        option_group=groups,
        option_format=formats,
        linear_P=arrays["linear"],
        quad_PP=arrays["quadratic"],
        stderr_linear_P=arrays["stderr_linear"],
        stderr_quad_PP=arrays["stderr_quadratic"],
        loss0=float(attributes["loss0"]),
        objective=str(attributes["objective"]),
        method=str(attributes["method"]),
        num_samples=int(attributes["num_samples"]),
        batch_linear_BP=arrays["batches/linear"],
        batch_quad_BPP=arrays["batches/quadratic"],
        task_loss_mean_square=attributes.get("task_loss_mean_square"),
        flips_P=arrays.get("flips"),
        tokens_LE=arrays.get("tokens"),
    )


def _option_names(plan: Plan) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Group and format of each of a plan's options."""
    space = plan.space
    groups = tuple(space.groups[option.group].name for option in space.options)
    return groups, tuple(option.format for option in space.options)
