"""What a sensitivity method is given and what it gives."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
from torch import nn

from hpcmpq.models.data.samples import Samples
from hpcmpq.models.linear_head import LinearHead
from hpcmpq.objective import Objective
from hpcmpq.quantized.variants import Variants
from hpcmpq.response.engine import ResponseEngine
from hpcmpq.response.kept_choices import KeptChoices
from hpcmpq.sensitivity.features import Features
from hpcmpq.sensitivity.sampled_positions import LossPositions
from hpcmpq.space import SearchSpace


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        model: The original model in evaluation mode.
        space: Groups and options.
        variants: Their quantized weights.
        objective: The loss.
        num_probes: Random output projections per token, or None for exact outputs.
        samples_per_pass: Samples of one forward pass.
        seed: Of the probes.
        engine: Runs options, or None for one whole forward pass each.
        head: A linear head before which options are projected, or None to compute all their logits.
        loss_positions: Positions of a sample whose logits are computed nevertheless, or None for a share of them.
        base: Makes contexts in which the model is the quantized one that options change; None where it is the original.
        choices: Of experts, which the engine keeps; None where the model chooses none.
    """

    model: nn.Module
    space: SearchSpace
    variants: Variants
    objective: Objective
    num_probes: int | None
    samples_per_pass: int
    seed: int
    engine: ResponseEngine | None = None
    head: LinearHead | None = None
    loss_positions: LossPositions = None
    base: Callable[[], AbstractContextManager[None]] | None = None
    choices: KeptChoices | None = None


@dataclass(frozen=True)
class Contribution:
    """Sums over one batch of samples for the options of the measured groups (R rows).

    Attributes:
        num_samples: Samples m of the batch.
        loss: Sum of the original's loss.
        linear_R: Sum of the loss increase of each option alone, float64 [R].
        quad_RP: Sum of second derivatives, float64 [R, P]; only columns of the same or a later group count.
        task_loss_square: Sum of the squared task loss, where the method is about loss mean-squared error.
        kept_R: As `linear_R`, with the original's choices of experts, where second derivatives are of these.
        tokens_LE: Tokens that each expert is given, int64 [L routers, E], where that is counted.
    """

    num_samples: int
    loss: float
    linear_R: np.ndarray
    quad_RP: np.ndarray
    task_loss_square: float | None = None
    kept_R: np.ndarray | None = None
    tokens_LE: np.ndarray | None = None


Measure = Callable[[Subject, Samples, range, int], Iterator[Contribution] | Iterator[Features]]
"""measure(subject, samples, groups, first_sample): `first_sample` is the samples' place in the calibration set.

Methods of the form H = ΦᵀΦ / N give the `Features` of the options of `groups`, others `Contribution`s."""
