"""The reduce stage: add up the shards of a plan into `quadratic.h5`."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from hpcmpq.errors import CorruptShard, IncompleteCalibration
from hpcmpq.plan import Plan, WorkUnit
from hpcmpq.quadratic import QuadraticModel, flip_terms
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.quadratic_file import write_quadratic
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.shards import Shard, read_shard_of

MAX_BATCHES = 8
"""Calibration batches kept apart, for solving against the spread between them."""

MAX_BATCH_BYTES = 2**31
"""Memory that they may take; fewer are kept, or none, where there are many options."""


@dataclass(frozen=True)
class Reduction:
    """The quadratic model and what its shards said about themselves.

    Attributes:
        model: The quadratic model.
        diagonal_P: H_pp, float64 [P]; they never act, but compare methods and precisions.
        asymmetry: max |H − Hᵀ| / max |H| over the blocks that were measured from both sides.
    """

    model: QuadraticModel
    diagonal_P: np.ndarray
    asymmetry: float


def reduce(run: RunDir) -> Reduction:
    """Add up all shards in plan order and write `quadratic.h5`.

    Raises:
        IncompleteCalibration: If units are missing, naming the first.
        CorruptShard: If a shard is damaged or disagrees with another.
    """
    plan = read_plan(run)
    missing = [unit for unit in plan.units if not run.shard_path(unit.id).exists()]
    if missing:
        raise IncompleteCalibration(
            f"{len(missing)} of {len(plan.units)} units are missing, first {missing[0]}; "
            f"run `hpcmpq calibrate {run.path}` again"
        )
    reduction = add_shards(plan, _shards(plan, run))
    write_quadratic(run.quadratic_path, reduction.model, reduction.diagonal_P, plan.fingerprint)
    return reduction


def add_shards(plan: Plan, shards: Iterator[tuple[WorkUnit, Shard]]) -> Reduction:
    """The reduction of all (unit, shard) pairs of a plan, in any order of units that is the same each time."""
    space = plan.space
    num_options = space.num_options
    ranges = sample_ranges(plan.units)
    num_batches = batches_kept(len(ranges), num_options)
    batch_of = {samples: place * num_batches // len(ranges) for place, samples in enumerate(ranges)}
    linear, linear_square = np.zeros(num_options), np.zeros(num_options)
    quad, quad_square = np.zeros((num_options, num_options)), np.zeros((num_options, num_options))
    batch_linear = np.zeros((num_batches, num_options))
    batch_quad = np.zeros((num_batches, num_options, num_options))
    batch_samples = np.zeros(num_batches)
    kept = np.zeros(num_options)
    keeps = False
    losses: dict[tuple[int, int], tuple[float, int, int]] = {}
    loss_squares: list[float] = []
    tokens: list[np.ndarray] = []
    for unit, shard in shards:
        samples = (unit.sample_start, unit.sample_stop)
        rows = plan.rows_of(unit)
        arrays = shard.arrays
        linear[rows] += arrays["linear"]
        linear_square[rows] += arrays["linear_square"]
        quad[rows] += arrays["quad"]
        keeps = keeps or "kept" in arrays
        kept[rows] += arrays.get("kept", 0.0)
        quad_square[rows] += arrays["quad_square"]
        if num_batches:
            batch_linear[batch_of[samples], rows] += arrays["linear"]
            batch_quad[batch_of[samples], rows] += arrays["quad"]
        loss = float(arrays["loss"])
        if samples not in losses:
            losses[samples] = (loss, shard.num_samples, shard.num_batches)
            tokens += [arrays["tokens"]] if "tokens" in arrays else []
            loss_squares += [float(arrays[name]) for name in ("task_loss_square",) if name in arrays]
            if num_batches:
                batch_samples[batch_of[samples]] += shard.num_samples
        elif abs(losses[samples][0] - loss) > 1e-5 * max(abs(loss), 1e-12):
            raise CorruptShard(
                f"shard {unit} measured another loss of the original ({loss:.9g}) than its neighbours "
                f"({losses[samples][0]:.9g}): not the same model or data; delete it and run `hpcmpq calibrate`"
            )
    num_samples = sum(part[1] for part in losses.values())
    num_parts = sum(part[2] for part in losses.values())
    group_P = space.group_P
    own_PP = group_P[:, None] == group_P[None, :]
    asymmetry = float(np.abs(np.where(own_PP, quad - quad.T, 0.0)).max() / max(np.abs(quad).max(), 1e-300))
    batch_weight = np.maximum(batch_samples, 1.0)
    flips_P = np.maximum(linear - kept, 0.0) / num_samples if keeps else None
    flips_PP = 0.0 if flips_P is None else flip_terms(flips_P, group_P)
    model = QuadraticModel(
        option_group=tuple(space.groups[option.group].name for option in space.options),
        option_format=tuple(option.format for option in space.options),
        linear_P=linear / num_samples,
        quad_PP=mirror(quad, group_P) / num_samples + flips_PP,
        stderr_linear_P=standard_error(linear, linear_square, num_samples, num_parts),
        stderr_quad_PP=mirror(standard_error(quad, quad_square, num_samples, num_parts), group_P),
        loss0=sum(part[0] for part in losses.values()) / num_samples,
        objective=plan.config.objective,
        method=plan.config.sensitivity.method,
        num_samples=num_samples,
        batch_linear_BP=batch_linear / batch_weight[:, None],
        batch_quad_BPP=np.stack([mirror(part, group_P) for part in batch_quad]) / batch_weight[:, None, None]
        + flips_PP
        if num_batches
        else batch_quad,
        task_loss_mean_square=sum(loss_squares) / num_samples if loss_squares else None,
        flips_P=flips_P,
        tokens_LE=np.sum(tokens, axis=0) if tokens else None,
    )
    return Reduction(model, np.diagonal(quad).copy() / num_samples, asymmetry)


def batches_kept(num_ranges: int, num_options: int) -> int:
    """Calibration batches whose cross terms are kept apart, of so many sample ranges; 0 rather than one."""
    num_batches = min(MAX_BATCHES, num_ranges, MAX_BATCH_BYTES // (8 * num_options**2))
    return num_batches if num_batches > 1 else 0


def mirror(quad_PP: np.ndarray, group_P: np.ndarray) -> np.ndarray:
    """The symmetric matrix of the entries whose column belongs to a later group; zero inside groups."""
    upper_PP = np.where(group_P[:, None] < group_P[None, :], quad_PP, 0.0)
    return upper_PP + upper_PP.T


def standard_error(total: np.ndarray, square: np.ndarray, num_samples: int, num_batches: int) -> np.ndarray:
    """Standard error of a mean over samples from batch sums y_b of m_b samples each.

    With S = Σ y_b, Q = Σ y_b²/m_b, N = Σ m_b and B batches, (Q − S²/N)/(B − 1) estimates the variance of one
    sample without bias; the mean's standard error is its root over √N. Zero where B < 2: not estimated.

    Example:
        >>> values = np.array([1.0, 2.0, 3.0, 4.0])
        >>> float(standard_error(values.sum(), (values**2).sum(), 4, 4).round(6))
        0.645497
    """
    if num_batches < 2:
        return np.zeros_like(total)
    variance = (square - total**2 / num_samples) / (num_batches - 1)
    return np.sqrt(np.maximum(variance, 0.0) / num_samples)


def _shards(plan: Plan, run: RunDir) -> Iterator[tuple[WorkUnit, Shard]]:
    for unit in plan.units:
        shard = read_shard_of(plan, run, unit)
        yield unit, _multiplied(plan, run, unit, shard) if shard.kind == "features" else shard


def _multiplied(plan: Plan, run: RunDir, unit: WorkUnit, shard: Shard) -> Shard:
    """Sums from the columns of a unit and of the units of later groups on the same samples, two at a time.

    Units of a run in rounds may have some options of a group each, so all of them are multiplied.
    """
    from hpcmpq.sensitivity.features import multiply  # loads torch, which reading sums does without

    space, columns = plan.space, shard.arrays
    quad = np.zeros((len(columns["phi"]), space.num_options))
    quad_square = np.zeros_like(quad)
    for other in plan.units:
        same_samples = (other.sample_start, other.sample_stop) == (unit.sample_start, unit.sample_stop)
        if same_samples and (plan.rounds or other.group_start >= unit.group_start):
            part = plan.rows_of(other)
            phi_CNF = None if other == unit else read_shard_of(plan, run, other).arrays["phi"]
            quad[:, part], quad_square[:, part] = multiply(columns, phi_CNF)
    arrays = {
        "loss": np.array(columns["loss"].sum()),
        "linear": columns["increase"].sum(1),
        "linear_square": (columns["increase"] ** 2).sum(1),
        "quad": quad,
        "quad_square": quad_square,
        **({"kept": columns["kept"].sum(1)} if "kept" in columns else {}),
        **({"tokens": columns["tokens"]} if "tokens" in columns else {}),
    }
    return Shard("sums", shard.unit_id, shard.fingerprint, shard.num_samples, shard.num_batches, arrays)


def sample_ranges(units: Iterable[WorkUnit]) -> list[tuple[int, int]]:
    """Distinct sample ranges of the units, in order."""
    return sorted({(unit.sample_start, unit.sample_stop) for unit in units})
