"""What the options of a search space do to activations: the inputs of their layers, the factors of their products.

    with activations.rounded({"layers.0.q_proj": "w8a8"}):   # measured methods: the real quantizers
        forward(model, inputs)
    activations.errors(group, module, (x,))                  # derivative methods: errors frozen at the inputs x

Axis letters: Q options of one group.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from hpcmpq.errors import UserError
from hpcmpq.formats import FORMATS, Quantizer
from hpcmpq.models.layer_kinds import operand_axes
from hpcmpq.quantized.input_rounding import Rounded, record_maxima, round_operands, rounding, start_rounding
from hpcmpq.space import Member, SearchSpace
from hpcmpq.store.h5_files import read_h5, write_h5
from hpcmpq.store.run_dir import RunDir

Maxima = dict[str, tuple[float, ...]]
"""{module: largest absolute value of each of its rounded inputs}."""


@dataclass
class Activations:
    """Where the groups of a model round activations, and with which ranges.

    Attributes:
        model: As `hpcmpq.quantized.variants.Variants` prepared it.
        space: Groups and options.
        quantizer: Says whether ranges are static.
        maxima: {module: largest input of each kind} for static ranges, see `measure_maxima`.
    """

    model: nn.Module
    space: SearchSpace
    quantizer: Quantizer
    maxima: Mapping[str, tuple[float, ...]] | None = None

    @cached_property
    def places(self) -> tuple[dict[nn.Module, str], ...]:
        """For each group its layers and products, {module: name}; all layers that hold a tied weight."""
        layers: dict[int, list[tuple[str, nn.Module]]] = {}
        for name, module in self.model.named_modules():
            weight = module._parameters.get("weight")
            if weight is not None:
                layers.setdefault(id(weight), []).append((name, module))
        found = []
        for group in self.space.groups:
            own = {self.model.get_submodule(product.module): product.module for product in group.products}
            for member in group.members:
                parameter = self.model.get_parameter(member.parameter)
                own.update({module: name for name, module in layers.get(id(parameter), ())})
            found.append({module: name for module, name in own.items() if operand_axes(module)})
        return tuple(found)

    def rounds(self, group: int) -> bool:
        """Whether an option of a group rounds activations."""
        return any(FORMATS[name].activation is not None for name in self.space.formats[group])

    @contextmanager
    def rounded(self, assignment: Mapping[str, str]) -> Iterator[None]:
        """The model with the activations of {group name: format name} rounded."""
        with rounding(self._places_rounded(assignment)):
            yield

    def round_from_now_on(self, assignment: Mapping[str, str]) -> None:
        """Let the model round the activations of {group name: format name} whenever it runs."""
        start_rounding(self._places_rounded(assignment))

    def _places_rounded(self, assignment: Mapping[str, str]) -> dict[nn.Module, Rounded]:
        places: dict[nn.Module, Rounded] = {}
        for index, group in enumerate(self.space.groups):
            if group.name in assignment:
                places.update(self._rounded(index, (assignment[group.name],), None))
        return places

    @contextmanager
    def rounded_by_index(
        self, group: int, format_names: Sequence[str], index: Tensor | None
    ) -> Iterator[None]:
        """The model with the activations of one group rounded to format number `index`, a batched tensor."""
        with rounding({} if index is None else self._rounded(group, tuple(format_names), index)):
            yield

    @torch.no_grad()
    def errors(self, group: int, module: nn.Module, operands: Sequence[Tensor]) -> tuple[Tensor, ...] | None:
        """Q_f(x) − x of each operand for every option of a group, [Q, *x.shape]; None if none rounds activations."""
        if not self.rounds(group) or module not in self.places[group]:
            return None
        columns = []
        for name in self.space.formats[group]:
            activation = FORMATS[name].activation
            if activation is None:
                columns.append(tuple(torch.zeros_like(x) for x in operands))
                continue
            maxima = self._maxima_of(group, module, (activation,))
            values = round_operands(module, operands, activation, maxima, self._dynamic)
            columns.append(tuple(value - x for value, x in zip(values, operands, strict=True)))
        return tuple(torch.stack(column) for column in zip(*columns, strict=True))

    def maximum(self, member: Member) -> float:
        """The static range's end of the inputs of a weight's layer.

        Raises:
            UserError: If it was not measured.
        """
        index = next(g for g, group in enumerate(self.space.groups) if member in group.members)
        module = self.model.get_submodule(member.parameter.rpartition(".")[0])
        return self._measured(index, module)[0]

    def _rounded(
        self, group: int, format_names: tuple[str, ...], index: Tensor | None
    ) -> dict[nn.Module, Rounded]:
        formats = tuple(FORMATS[name].activation for name in format_names)
        if not any(formats):
            return {}
        return {
            module: Rounded(formats, index, self._maxima_of(group, module, formats), self._dynamic)
            for module in self.places[group]
        }

    @property
    def _dynamic(self) -> bool:
        return self.quantizer.activations == "dynamic"

    def _maxima_of(
        self, group: int, module: nn.Module, formats: Sequence[str | None]
    ) -> tuple[float, ...] | None:
        if self._dynamic and not any(name is not None and FORMATS[name].static_inputs for name in formats):
            return None
        return self._measured(group, module)

    def _measured(self, group: int, module: nn.Module) -> tuple[float, ...]:
        name = self.places[group][module]
        if self.maxima is None or name not in self.maxima:
            raise UserError(
                f"there is no static range for the inputs of {name}; plan the run again, or set "
                "quantizer.activations: dynamic and leave out nvfp4"
            )
        return self.maxima[name]


def measure_maxima(
    activations: Activations, batches: Iterable[Mapping[str, Tensor]]
) -> dict[str, tuple[float, ...]]:
    """Largest inputs of every layer and product that is searched, over some passes of the original, padding aside.

    Args:
        activations: Of the model.
        batches: Inputs of the model, of calibration samples.
    """
    named = {name: module for places in activations.places for module, name in places.items()}
    return record_maxima(activations.model, named, batches)


def rounds_activations(space: SearchSpace) -> bool:
    """Whether any option of a search space rounds activations."""
    return any(FORMATS[option.format].activation is not None for option in space.options)


def needs_ranges(space: SearchSpace, quantizer: Quantizer) -> bool:
    """Whether ranges of inputs are measured before anything else."""
    if any(FORMATS[option.format].static_inputs for option in space.options):
        return True
    return quantizer.activations == "static" and rounds_activations(space)


def write_maxima(run: RunDir, maxima: Maxima, fingerprint: str) -> None:
    """Keep static ranges in the run directory, so that all workers round with the same bits."""
    rows = [(name, place, end) for name, ends in maxima.items() for place, end in enumerate(ends)]
    names, places, ends = zip(*rows, strict=True)
    arrays = {
        "module": np.array(names, dtype=object),
        "operand": np.array(places),
        "maximum": np.array(ends, dtype=np.float64),
    }
    write_h5(run.file("activations.h5"), arrays, {"fingerprint": fingerprint})


def read_maxima(run: RunDir, fingerprint: str) -> Maxima | None:
    """The static ranges of a run, or None where it has none of this plan.

    Raises:
        CorruptShard: If the file is damaged.
    """
    if not run.file("activations.h5").exists():
        return None
    arrays, attributes = read_h5(run.file("activations.h5"), "hpcmpq plan")
    if attributes["fingerprint"] != fingerprint:
        return None
    maxima: Maxima = {}
    for name, end in zip(arrays["module"], arrays["maximum"], strict=True):
        maxima[name] = (*maxima.get(name, ()), float(end))
    return maxima
