"""The loss around an assignment: calibration from the quantized model on.

The global quadratic is expanded around the original, and far from it, at two or three bits, it is wrong. Around an
assignment x the change of the loss when some groups take other options is

    ΔL ≈ Σ_p c_p + ½ Σ_pq H_pq,      c_p = L(x with p) − L(x),      H_pq = φ_p · φ_q,  φ_p = Λ^½ (z(x with p) − z(x)),

the secant of `hpcmpq.sensitivity.secant` with the quantized model in the place of the original: L still compares with
the original, Λ is the Hessian of L in the outputs at x. So a neighbourhood is a search space of its own, the options
beside the assignment, and everything else is what calibration does: work units, shards, and their reduction to a
quadratic. It costs about half a forward pass an option.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch

from hpcmpq.models.outputs import Inputs
from hpcmpq.quantized.activations import rounds_activations
from hpcmpq.response.engine import ResponseEngine, make_engine
from hpcmpq.response.kept_choices import KeptChoices
from hpcmpq.response.whole_model import ChangedAssignments
from hpcmpq.sensitivity.subject import Subject
from hpcmpq.settings import SensitivityConfig
from hpcmpq.space import SearchSpace


@dataclass(frozen=True)
class Neighbourhood:
    """An assignment and options beside it.

    Attributes:
        assignment: {group: format} of all groups.
        options: Their indices in the plan's search space, increasing; none is the assignment's own.
    """

    assignment: dict[str, str]
    options: tuple[int, ...]

    def space(self, space: SearchSpace) -> SearchSpace:
        """These options of a search space alone, of the groups that have some."""
        return space.among(self.options)


@torch.no_grad()
def around(
    subject: Subject,
    neighbourhood: Neighbourhood,
    settings: SensitivityConfig,
    inputs: Inputs,
    low_precision: torch.dtype | None = None,
) -> Subject:
    """The subject whose model is under the assignment and whose options are those beside it.

    Args:
        subject: Of the original and all its options.
        neighbourhood: The assignment and the options.
        settings: How options run.
        inputs: Of one sample or two, to find the model's chain of blocks with.
        low_precision: Dtype of matrix products; the model's parameters are float32 then. Where formats round
            activations, whole assignments run, and they stay in float32.
    """
    variants, head, choices = subject.variants, subject.head, subject.choices or KeptChoices()
    options = variants.among(neighbourhood.space(subject.space))
    engine: ResponseEngine
    base: Callable[[], AbstractContextManager[None]] = nullcontext
    if rounds_activations(subject.space):
        engine = ChangedAssignments(variants, options.space, neighbourhood.assignment, choices)
    else:
        base = variants.weighting(neighbourhood.assignment)
        with base():
            engine = make_engine(
                settings.engine,
                options,
                inputs,
                low_precision=low_precision,
                options_per_pass=settings.options_per_pass,
                options_per_wave=settings.options_per_wave,
                choices=choices,
            )
    searched = [member.parameter for group in subject.space.groups for member in group.members]
    return replace(
        subject,
        space=options.space,
        variants=options,
        engine=engine,
        base=base,
        head=None if head is None or head.is_changed_by(subject.model, searched) else head,
    )
