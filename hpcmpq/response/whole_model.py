"""Responses by one whole forward pass per option: any model, any option, alone or in a whole assignment."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from torch import Tensor, nn

from hpcmpq.models.load import forward
from hpcmpq.models.outputs import Inputs
from hpcmpq.models.weights import swapped
from hpcmpq.quantized.variants import Variants
from hpcmpq.response.kept_choices import WHOLE, KeptChoices
from hpcmpq.response.low_precision import LowPrecisionLayers
from hpcmpq.space import SearchSpace


@dataclass(frozen=True)
class WholeModel:
    """The engine for any model: one forward pass per option.

    Attributes:
        model: In eval mode.
        variants: Quantized weights.
        products: Low-precision matrix products with compensated differences, or None.
        choices: Of experts, which options keep where they are active.
    """

    model: nn.Module
    variants: Variants
    products: LowPrecisionLayers | None = None
    choices: KeptChoices = field(default_factory=KeptChoices)

    def respond(
        self, inputs: Inputs, options: Sequence[int]
    ) -> tuple[Tensor, Iterator[tuple[list[int], Tensor]]]:
        """The original's outputs z0 [N, T, V], and ([p], z [1, N, T, V]) of all `options` in order."""
        if self.products is None:
            with self.choices.recording(WHOLE):
                z0_NTV = forward(self.model, inputs)
            return z0_NTV, self._outputs(inputs, options)
        with self.products.recording("model"), self.choices.recording(WHOLE):
            z0_NTV = forward(self.model, inputs)
        return z0_NTV, self._compensated(inputs, options, self.products)

    def _outputs(self, inputs: Inputs, options: Sequence[int]) -> Iterator[tuple[list[int], Tensor]]:
        for p in options:
            with swapped(self.model, self._quantized(p)), self._rounded(p), self.choices.replaying(WHOLE):
                z_NTV = forward(self.model, inputs)
            yield [p], z_NTV[None]

    def _compensated(
        self, inputs: Inputs, options: Sequence[int], products: LowPrecisionLayers
    ) -> Iterator[tuple[list[int], Tensor]]:
        for p in options:
            tensors, deltas = products.split("model", self.model, self._quantized(p))
            with (
                swapped(self.model, tensors),
                products.replaying("model", deltas),
                self._rounded(p),
                self.choices.replaying(WHOLE),
            ):
                z_NTV = forward(self.model, inputs)
            yield [p], z_NTV[None]

    def _quantized(self, option: int) -> dict[str, Tensor]:
        space = self.variants.space
        chosen = space.options[option]
        return self.variants.quantized(space.groups[chosen.group], chosen.format)

    def _rounded(self, option: int) -> AbstractContextManager[None]:
        chosen = self.variants.space.options[option]
        name = self.variants.space.groups[chosen.group].name
        return self.variants.activations.rounded({name: chosen.format})


@dataclass(frozen=True)
class ChangedAssignments:
    """The engine whose every pass is a whole assignment with one option in its group.

    Attributes:
        variants: The original and all its options.
        space: The options that are run.
        assignment: {group: format} of the model in which options replace a group's.
        choices: Of experts, which options keep where they are active.
    """

    variants: Variants
    space: SearchSpace
    assignment: Mapping[str, str]
    choices: KeptChoices = field(default_factory=KeptChoices)

    def respond(
        self, inputs: Inputs, options: Sequence[int]
    ) -> tuple[Tensor, Iterator[tuple[list[int], Tensor]]]:
        """The assignment's outputs, and ([p], z [1, N, T, V]) of all `options` in order."""

        def outputs() -> Iterator[tuple[list[int], Tensor]]:
            for p in options:
                own = {self.space.groups[self.space.options[p].group].name: self.space.options[p].format}
                with self.choices.replaying(WHOLE):
                    z_NTV = self._run(inputs, {**self.assignment, **own})
                yield [p], z_NTV[None]

        with self.choices.recording(WHOLE):
            z0_NTV = self._run(inputs, self.assignment)
        return z0_NTV, outputs()

    def _run(self, inputs: Inputs, assignment: Mapping[str, str]) -> Tensor:
        with self.variants.assigned(assignment):
            return forward(self.variants.model, inputs)
