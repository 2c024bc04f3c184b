"""Uses of the searched weights in a forward pass, each a map y = W(x) that is linear in W and in x; and products.

Derivatives in a weight's error δ need the gradient of y and the input x alone, sample by sample, and no
gradient of the weight's own size: ⟨∂L/∂W, δ⟩ = ⟨∂L/∂y, δ(x)⟩. `taps` finds the uses and their gradients.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import vjp

from hpcmpq.errors import UserError
from hpcmpq.models.data.samples import Samples
from hpcmpq.models.layer_kinds import apply, is_linear
from hpcmpq.sensitivity.subject import Subject


@dataclass(frozen=True)
class Use:
    """One call of a layer that holds a searched weight, or of a product of activations.

    Attributes:
        group: Index of the weight's group.
        parameter: The weight's name, or the product's.
        module: The layer.
        turn: Which of the layer's calls in one forward pass.
        shapes: Of a product, the shapes of its factors without the first axis. They count as one input, side by side.
    """

    group: int
    parameter: str
    module: nn.Module
    turn: int
    shapes: tuple[torch.Size, ...] = ()


@dataclass(frozen=True)
class Layers:
    """All uses of the searched weights.

    Attributes:
        uses: In order of execution.
        direct: {name: group} of weights that are not used through their layers alone.
        per_sample: Whether the first axis of every layer's input is the samples. Not so inside experts of a list, whose
            inputs are the tokens that they are given: samples then run one by one.
    """

    uses: tuple[Use, ...]
    direct: dict[str, int]
    per_sample: bool

    def uses_of(self, group: int) -> list[int]:
        """Indices of the uses of a group's weights."""
        return [index for index, use in enumerate(self.uses) if use.group == group]

    def direct_of(self, group: int) -> list[str]:
        """Names of a group's direct weights."""
        return [name for name, index in self.direct.items() if index == group]

    def sharing_input(self, groups: range, inputs: list[Tensor]) -> list[range]:
        """Runs of neighbouring groups that are each used once, on the same input: their options share a pass."""
        runs: list[range] = []
        before = None
        for group in groups:
            uses = self.uses_of(group)
            alone = len(uses) == 1 and not self.direct_of(group)
            source = inputs[uses[0]].data_ptr() if alone else None
            if source is not None and source == before:
                runs[-1] = range(runs[-1].start, group + 1)
            else:
                runs.append(range(group, group + 1))
            before = source
        return runs

    def passes(self, subject: Subject, samples: Samples) -> Iterator[tuple[int, Samples]]:
        """(place of the first, samples) of each pass: one by one where samples cannot be told apart."""
        step = subject.samples_per_pass if self.per_sample and not self.direct else 1
        for start in range(0, len(samples), step):
            yield start, samples[start : start + step]


def idle_input(use: Use, num_samples: int) -> Tensor:
    """An input of zeros, [N, K], that stands for that of a use which does not run, as of an expert without a token.

    The gradient of its output is zero, and so is all that follows from it.
    """
    check_idle([use])
    weight: Tensor = use.module.weight  # type: ignore[assignment]
    if isinstance(use.module, nn.Embedding):
        return torch.zeros(num_samples, dtype=torch.int64, device=weight.device)
    return weight.new_zeros(num_samples, weight.shape[1 if isinstance(use.module, nn.Linear) else 0])


def has_idle_input(use: Use) -> bool:
    """Whether there is such an input: a convolution's shape is known only from one that it was given."""
    return isinstance(use.module, nn.Embedding) or is_linear(use.module)


def check_idle(uses: Iterable[Use]) -> None:
    """Refuse uses that do not run and have no idle input.

    Raises:
        UserError: If there is one.
    """
    for use in uses:
        if not has_idle_input(use):
            raise UserError(
                f"{use.parameter} plays no part in the outputs for some samples, and derivatives of convolutions need "
                "one; exclude it, or use secant"
            )


def pull(use: Use, x: Tensor, grad_y: Tensor) -> Tensor:
    """The gradient in a use's weight, of the weight's shape, from the gradient in its output."""
    weight: Tensor = use.module.weight  # type: ignore[assignment]
    return vjp(lambda w: apply(use.module, w, x), weight.detach())[1](grad_y)[0]
