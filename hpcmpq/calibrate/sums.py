"""What a shard holds: sums over the samples of a work unit, or its features."""

from collections.abc import Iterable, Iterator
from itertools import chain

import numpy as np

from hpcmpq.sensitivity.features import Features, gram, to_columns
from hpcmpq.sensitivity.subject import Contribution


def contents(
    parts: Iterable[Contribution | Features], all_groups: bool
) -> tuple[str, dict[str, np.ndarray], int, int]:
    """Kind, arrays, samples and batches of a unit's shard: sums, or the columns of a unit of some groups."""
    iterator = iter(parts)
    first = next(iterator)
    if isinstance(first, Contribution):
        return "sums", *add_up(chain([first], iterator))  # type: ignore[list-item, arg-type]
    if all_groups:
        return "sums", *add_up(products(chain([first], iterator)))  # type: ignore[list-item, arg-type]
    arrays = to_columns(chain([first], iterator))  # type: ignore[list-item, arg-type]
    return "features", arrays, len(arrays["loss"]), len(arrays["loss"])


def products(parts: Iterable[Features]) -> Iterator[Contribution]:
    """The contribution of every sample."""
    for part in parts:
        for n in range(len(part.loss_N)):
            kept_R = None if part.kept_NR is None else part.kept_NR[n]
            loss, increase_R = float(part.loss_N[n]), part.increase_NR[n]
            tokens_LE = None if part.tokens_NLE is None else part.tokens_NLE[n]
            yield Contribution(1, loss, increase_R, gram(part.phi_NRF[n]), kept_R=kept_R, tokens_LE=tokens_LE)


def add_up(contributions: Iterable[Contribution]) -> tuple[dict[str, np.ndarray], int, int]:
    """Sums over batches, and of squares over batch sizes, from which `reduce` gets means and standard errors.

    Returns:
        Arrays `loss` [], `linear`, `linear_square` [R], `quad`, `quad_square` [R, P], and `task_loss_square` [] and
        `kept` [R] and `tokens` [L, E] where the method gives them; samples; batches.

    Raises:
        ValueError: If a contribution is not finite.
    """
    arrays: dict[str, np.ndarray] = {}
    num_samples = num_batches = 0
    for part in contributions:
        if not (
            np.isfinite(part.linear_R).all() and np.isfinite(part.quad_RP).all() and np.isfinite(part.loss)
        ):
            raise ValueError(
                "the model's outputs are not finite for some option; use model.dtype float32 or drop its format"
            )
        terms = {
            "loss": np.array(part.loss),
            "linear": part.linear_R,
            "linear_square": part.linear_R**2 / part.num_samples,
            "quad": part.quad_RP,
            "quad_square": part.quad_RP**2 / part.num_samples,
        }
        if part.task_loss_square is not None:
            terms["task_loss_square"] = np.array(part.task_loss_square)
        if part.kept_R is not None:
            terms["kept"] = part.kept_R
        if part.tokens_LE is not None:
            terms["tokens"] = part.tokens_LE
        for name, term in terms.items():
            arrays[name] = arrays[name] + term if name in arrays else term.astype(np.float64)
        num_samples += part.num_samples
        num_batches += 1
    return arrays, num_samples, num_batches
