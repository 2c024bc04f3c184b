"""Which positions' losses are computed from all logits, where a large vocabulary makes them dear.

The loss of an option is the sum over positions of a cheap estimate plus the difference to the exact one, whose sum
is estimated from a few positions drawn at random (control variates): without bias, whatever the estimate.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from hpcmpq.errors import UserError
from hpcmpq.models.data.samples import Samples
from hpcmpq.models.linear_head import LinearHead, find_linear_head

EXACT_VOCABULARY = 4096
"""Outputs up to which the loss is exact on all positions by default."""

ONE_IN, FEWEST = 16, 8
"""Of so many positions of a sample one is drawn by default, and at least so many."""

LossPositions = Literal["all"] | int | None


def samples_positions(
    loss_positions: LossPositions, num_outputs: int, probes: int | None, objective: str
) -> bool:
    """Whether losses come from some positions' logits alone, where the head allows it.

    Args:
        loss_positions: As configured.
        num_outputs: V.
        probes: Random output projections per token, or None.
        objective: ``mse`` is computed from all outputs in any case.

    Raises:
        UserError: If a number of positions is configured and cannot be used.
    """
    if isinstance(loss_positions, int):
        if probes is None or objective == "mse":
            raise UserError(
                "sensitivity.loss_positions as a number needs objective kl or ce and a number of "
                "sensitivity.probes; set them, or leave it out"
            )
        return True
    large = num_outputs > EXACT_VOCABULARY and probes is not None
    return loss_positions is None and large and objective != "mse"


def find_head(
    loss_positions: LossPositions,
    num_outputs: int,
    probes: int | None,
    objective: str,
    model: nn.Module,
    samples: Samples,
) -> LinearHead | None:
    """The head before which options are projected; None where losses are to be exact, or it is not linear."""
    if not samples_positions(loss_positions, num_outputs, probes, objective):
        return None
    return find_linear_head(model, samples[:1].inputs)


def num_drawn(loss_positions: LossPositions, num_counting: int) -> int:
    """Positions that are drawn of those of a sample that count.

    Example:
        >>> num_drawn(None, 512), num_drawn(None, 100), num_drawn(100, 64)
        (32, 8, 64)
    """
    if loss_positions == "all":
        return num_counting
    return min(num_counting, loss_positions or max(FEWEST, -(-num_counting // ONE_IN)))


def draw_positions(
    weight_NT: Tensor, loss_positions: LossPositions, *, seed: int, first_sample: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Samples and positions drawn without replacement among those that count, and what each draw weighs.

    They depend on `seed` and a sample's place in the calibration set alone, so all options, units and workers see
    the same ones.

    Args:
        weight_NT: Share of every position in its sample's mean, float64.
        loss_positions: Positions of a sample; None for a sixteenth, 8 at least.
        seed: Of the draw.
        first_sample: Place of the first sample in the calibration set.

    Returns:
        n [I], t [I], and the weights [I] with which values at these positions estimate Σ_t weight · value.
    """
    samples, positions, factors = [], [], []
    for n, weight_T in enumerate(weight_NT):
        counting = weight_T.nonzero()[:, 0].cpu()
        count = num_drawn(loss_positions, len(counting))
        generator = np.random.default_rng([seed % 2**64, first_sample + n])
        drawn = torch.from_numpy(np.sort(generator.permutation(len(counting))[:count]))
        samples.append(torch.full_like(drawn, n))
        positions.append(counting[drawn])
        factors.append(weight_T.cpu()[counting[drawn]] * (len(counting) / max(1, len(drawn))))
    device = weight_NT.device
    return torch.cat(samples).to(device), torch.cat(positions).to(device), torch.cat(factors).to(device)
