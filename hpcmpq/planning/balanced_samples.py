"""Samples to fit rounding on that give the least used experts more tokens: `calibration.balance_experts`.

Error-compensated rounding fits an expert's codes to the tokens that it was given: few of them fit themselves. The
original's routers say which tokens each candidate brings to which expert, and samples are taken one after the other,
always the one that leaves the least Σ 1 / (1 + tokens) over layers and experts.
"""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from hpcmpq.errors import UserError
from hpcmpq.models.active_weights import num_experts
from hpcmpq.models.data.choosing import num_rounding_samples
from hpcmpq.models.data.kept_samples import ROUNDING, with_balanced
from hpcmpq.models.data.samples import Samples, Splits
from hpcmpq.plan import Plan
from hpcmpq.planning.original import Original
from hpcmpq.response.kept_choices import WHOLE, KeptChoices
from hpcmpq.rounding.pieces import ModelStates
from hpcmpq.settings import Config
from hpcmpq.space import Group

TIED = 1e-12
"""Relative difference up to which two sums are the same but for their last bits: the first candidate is taken."""

log = logging.getLogger(__name__)


def check_balance(config: Config, model: nn.Module) -> None:
    """Refuse to balance experts where there are none to count tokens of.

    Raises:
        UserError: If the key is set and the model has no experts, or layers of different numbers of them.
    """
    if config.calibration.balance_experts and not num_experts(model):
        raise UserError(
            "calibration.balance_experts counts the tokens of each expert, and the model has no layers of experts that "
            "are known, or layers with different numbers of them; leave it out"
        )


def choose_balanced(
    original: Original, splits: Splits, groups: Sequence[Group], planned: Plan | None
) -> tuple[Splits, dict[str, Any]]:
    """The splits with the samples to fit rounding on, and how they were chosen, for the plan.

    That is ``num_candidates``, ``chosen`` (which of them, ascending), and the tokens of the least used expert with
    the first candidates, as many as are chosen, ``fewest_tokens_first``, and with the chosen, ``fewest_tokens``. A run
    that was planned before keeps its choice. If it has none, none is made: it was planned where the data held no
    candidates, and rounding stays fitted on the calibration samples; or without the key, which the facts refuse then.
    Without candidates the splits are as they were. The choice is empty in all these cases.

    Args:
        original: The model, perhaps streamed.
        splits: Perhaps with candidates.
        groups: Of the search space.
        planned: The plan that is there.

    Raises:
        UserError: If no router was seen to choose among the experts.
    """
    if splits.candidates is None:
        return splits, {}
    if planned is not None:
        if not planned.balanced or ROUNDING not in planned.facts:
            return dataclasses.replace(splits, candidates=None), {}
        return with_balanced(splits, planned.balanced["chosen"]), planned.balanced
    wanted, candidates = num_rounding_samples(original.config), splits.candidates.samples
    tokens_NLE = routed_tokens(original, candidates, groups, wanted)
    chosen = balanced_choice(tokens_NLE, wanted)
    first, fewest = (int(tokens_NLE[part].sum(0).min()) for part in (slice(wanted), chosen))
    if len(candidates) <= wanted:
        log.warning(
            "calibration.balance_experts has no choice: the data hold %d samples to fit rounding on, and %d are wanted",
            len(candidates),
            wanted,
        )
    log.info(
        "calibration.balance_experts took %d of %d candidates: %d tokens for the least used expert, %d without it",
        len(chosen),
        len(candidates),
        fewest,
        first,
    )
    found = {
        "num_candidates": len(candidates),
        "chosen": chosen,
        "fewest_tokens_first": first,
        "fewest_tokens": fewest,
    }
    return with_balanced(splits, chosen), found


def balanced_choice(tokens_NLE: np.ndarray, count: int) -> list[int]:
    """Up to `count` samples, ascending, taken greedily so that Σ 1 / (1 + tokens) over layers and experts is least.

    Of candidates that leave the same the first is taken. The sum falls by at least 1 - 1/e of what the best choice
    lowers it by, since a sample lowers it the less the more are there (Nemhauser, Wolsey and Fisher 1978).

    Args:
        tokens_NLE: Of each sample by layer and expert, int [N, L, E].
        count: Samples wanted.

    Example:
        >>> balanced_choice(np.array([[[9, 0]], [[8, 0]], [[0, 2]]]), 2)
        [0, 2]
    """
    tokens_NR = tokens_NLE.reshape(len(tokens_NLE), -1).astype(np.float64)
    given_R = np.ones(tokens_NR.shape[1])
    chosen: list[int] = []
    for _ in range(min(count, len(tokens_NR))):
        left_N = (1 / (given_R + tokens_NR)).sum(axis=1)
        left_N[chosen] = np.inf
        best = int(np.argmax(left_N <= left_N.min() * (1 + TIED)))
        given_R += tokens_NR[best]
        chosen.append(best)
    return sorted(chosen)


@torch.no_grad()
def routed_tokens(original: Original, samples: Samples, groups: Sequence[Group], at_once: int) -> np.ndarray:
    """How many tokens of each sample the original's routers give each expert, int64 [N, L, E]; padding counts too.

    The samples walk from block to block, as those that rounding is fitted on do, and a streamed model reads each
    block once for `at_once` of them.

    Raises:
        UserError: If no router was seen to choose among the experts.
    """
    size, count = original.config.calibration.samples_per_pass, num_experts(original.model)
    counted = []
    states, pieces = None, []
    for part in samples.to(original.device).passes(at_once):
        batches = list(part.passes(size))
        if states is None:
            states = ModelStates(original.model, batches, tracked=False, streamed=original.streamed)
            pieces = states.pieces(groups)
        states.batches = batches
        states.restart()
        found: list[list[np.ndarray]] = [[] for _ in batches]
        for piece in pieces:
            with piece.resident():
                for i, batch in enumerate(batches):
                    choices = KeptChoices(num_experts=count)
                    with choices.kept():
                        with choices.recording(WHOLE):
                            output = piece.quantized(i, {})
                        tokens_NLE = choices.tokens(len(batch))
                    piece.advance(i, output)
                    found[i] += [] if tokens_NLE is None else [tokens_NLE]
        if not all(found):
            raise UserError(
                "calibration.balance_experts counts the tokens of each expert, and no router of the model was seen to "
                "choose among its experts; leave it out"
            )
        counted += [np.concatenate(layers, axis=1) for layers in found]
    return np.concatenate(counted)
