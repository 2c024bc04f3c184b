"""The loss around an assignment: calibration from the quantized model on.

The global quadratic is expanded around the original, and far from it, at two or three bits, it is wrong. Around an
assignment x the change of the loss when some groups take other options is

    ΔL ≈ Σ_p c_p + ½ Σ_pq H_pq,      c_p = L(x with p) − L(x),      H_pq = φ_p · φ_q,  φ_p = Λ^½ (z(x with p) − z(x)),

the secant of `hpcmpq.sensitivity.secant` with the quantized model in the place of the original: L still compares with
the original, Λ is the Hessian of L in the outputs at x. All of it comes from one walk of a wavefront, at about the
cost of half a forward pass an option.

Axis letters: G groups, P options, R measured options, N samples.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from hpcmpq.models.data.samples import Samples
from hpcmpq.models.outputs import Inputs, forward
from hpcmpq.models.weights import swapped
from hpcmpq.objective import OBJECTIVES
from hpcmpq.quantized.activations import rounds_activations
from hpcmpq.quantized.variants import Variants
from hpcmpq.response.engine import ResponseEngine, make_engine
from hpcmpq.sensitivity.features import check_finite, gram
from hpcmpq.sensitivity.probes import num_probes
from hpcmpq.sensitivity.sampled_positions import find_head
from hpcmpq.sensitivity.secant import measure_pass
from hpcmpq.sensitivity.subject import Subject
from hpcmpq.settings import Config, SensitivityConfig


@dataclass(frozen=True)
class Expansion:
    """Changes of the mean loss around an assignment, of R measured options.

    Attributes:
        options_R: Their indices, int64 [R], increasing.
        linear_R: c, float64 [R], loss units; negative where an option alone lowers the loss.
        stderr_linear_R: Standard errors over samples, zero with one sample.
        quad_RR: H, float64 [R, R], symmetric, with the options' own φ · φ on the diagonal.
        stderr_quad_RR: Standard errors over samples.
        num_samples: N.
    """

    options_R: np.ndarray
    linear_R: np.ndarray
    stderr_linear_R: np.ndarray
    quad_RR: np.ndarray
    stderr_quad_RR: np.ndarray
    num_samples: int


@dataclass(frozen=True)
class ChangedAssignments:
    """An engine that runs one whole forward pass per option, each the assignment with that option in its group.

    Attributes:
        variants: The original and its options.
        assignment: {group: format} of the model in which options replace a group's.
    """

    variants: Variants
    assignment: dict[str, str]

    def respond(
        self, inputs: Inputs, options: Sequence[int]
    ) -> tuple[Tensor, Iterator[tuple[list[int], Tensor]]]:
        """See `hpcmpq.response.engine.ResponseEngine`."""

        def outputs() -> Iterator[tuple[list[int], Tensor]]:
            space = self.variants.space
            for p in options:
                own = {space.groups[space.options[p].group].name: space.options[p].format}
                yield [p], self._run(inputs, self.assignment | own)[None]

        return self._run(inputs, self.assignment), outputs()

    def _run(self, inputs: Inputs, assignment: dict[str, str]) -> Tensor:
        with self.variants.assigned(assignment):
            return forward(self.variants.model, inputs)


@torch.no_grad()
def make_subject(config: Config, variants: Variants, samples: Samples) -> Subject:
    """What expansions measure, with the settings of calibration.

    Args:
        config: Objective, probes and passes.
        variants: The original and its options.
        samples: On the model's device.
    """
    model = variants.model
    num_outputs = forward(model, samples[:1].inputs).shape[-1]
    probes = num_probes(config.sensitivity.probes, num_outputs)
    positions = config.sensitivity.loss_positions
    head = find_head(positions, num_outputs, probes, config.objective, model, samples)
    searched = [member.parameter for group in variants.space.groups for member in group.members]
    return Subject(
        model=model,
        space=variants.space,
        variants=variants,
        objective=OBJECTIVES[config.objective],
        num_probes=probes,
        samples_per_pass=config.calibration.samples_per_pass,
        seed=config.calibration.seed,
        head=None if head is None or head.is_changed_by(model, searched) else head,
        loss_positions=positions,
    )


@torch.no_grad()
def expand(
    subject: Subject,
    settings: SensitivityConfig,
    samples: Samples,
    assignment: dict[str, str],
    options_R: Sequence[int],
    on_pass: Callable[[int, int], None] = lambda done, passes: None,
) -> Expansion:
    """Measure options around an assignment.

    Args:
        subject: The original, its options and the loss.
        settings: How options run.
        samples: On the model's device.
        assignment: {group: format} of all groups.
        options_R: Indices of the options, increasing.
        on_pass: Called after each pass with the number done and of all.
    """
    model, variants, head = subject.model, subject.variants, subject.head
    in_turn = rounds_activations(subject.space)
    local = variants if in_turn else variants.from_copies()
    base = {} if in_turn else variants.weights(assignment)
    subject = replace(subject, variants=local)
    engine: ResponseEngine
    with swapped(model, base):
        if in_turn:
            engine = ChangedAssignments(variants, assignment)
        else:
            engine = make_engine(
                settings.engine,
                local,
                samples[:2].inputs,
                options_per_pass=settings.options_per_pass,
                options_per_wave=settings.options_per_wave,
            )
    options = list(options_R)
    increases, sums = list[np.ndarray](), np.zeros((2, len(options), len(options)))
    starts = range(0, len(samples), subject.samples_per_pass)
    for number, start in enumerate(starts, 1):
        batch = samples[start : start + subject.samples_per_pass]
        with nullcontext() if head is None else head.left_out():
            original = forward(model, batch.inputs)
        with swapped(model, base):
            part = measure_pass(subject, engine, batch, options, start, original)
        check_finite(part)
        increases.append(part.increase_NR)
        for phi_RF in part.phi_NRF:
            product_RR = gram(phi_RF)
            sums += product_RR, product_RR**2
        on_pass(number, len(starts))
    increase_NR = np.concatenate(increases)
    count = len(increase_NR)
    linear_R, stderr_linear_R = _mean(increase_NR.sum(0), (increase_NR**2).sum(0), count)
    quad_RR, stderr_quad_RR = _mean(sums[0], sums[1], count)
    return Expansion(np.array(options), linear_R, stderr_linear_R, quad_RR, stderr_quad_RR, count)


def _mean(total: np.ndarray, square: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean of `count` values and its standard error, from their sum and the sum of their squares."""
    mean = total / count
    variance = np.maximum(square - count * mean**2, 0.0) / max(count - 1, 1)
    return mean, np.sqrt(variance / count)
