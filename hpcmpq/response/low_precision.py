"""Low-precision matrix products with compensated differences: right for displacements far below rounding.

A linear layer's output at x0 + u with weight W + δ is y0 + uW + (x0 + u)δ, with y0 its output at x0. Taking the
two small products in bfloat16 costs 2⁻⁹ of the *displacement*; rounding x0 + u and W + δ themselves would cost
2⁻⁹ of the values, more than an 8-bit format changes them. Everything between the products stays in float32.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch._C._functorch import is_batchedtensor

from hpcmpq.models.layer_kinds import Multiply, is_convolution, only_multiplies, product_of
from hpcmpq.models.weights import Tensors


@dataclass
class LowPrecisionLayers:
    """The matrix products of a model's linear and convolution layers, run in a low precision.

    A parameter that only such layers hold is left as it is under an option, and its layer adds the product with the
    error. One that other modules hold too, as an embedding does that a head is tied to, is replaced as well.

    Attributes:
        layers: {parameter: layers that multiply by it}, by every name that it has.
        shared: Parameters, and layers of them, that more than one module holds.
        dtype: The low precision.
        exact_original: Whether the original runs its products in the precision of its weights. Otherwise it runs
            them in the low precision too, as the model itself would.
    """

    layers: Mapping[str, tuple[str, ...]]
    shared: frozenset[str]
    dtype: torch.dtype
    exact_original: bool = False
    _records: dict[str, dict[str, list[tuple[Tensor, Tensor]]]] = field(default_factory=dict)
    _recording: str | None = None
    _replaying: str | None = None
    _deltas: dict[str, Tensor] = field(default_factory=dict)
    _places: dict[str, int] = field(default_factory=dict)
    _low_weights: dict[str, Tensor] = field(default_factory=dict)
    _last: tuple[Tensor, Tensor] | None = None

    @contextmanager
    def recording(self, scope: str) -> Iterator[None]:
        """Inside, layers run on the original and remember input and output; an older record is forgotten."""
        self._records[scope] = {}
        self._low_weights = {}
        self._recording = scope
        try:
            yield
        finally:
            self._recording = None

    @contextmanager
    def replaying(self, scope: str, deltas: dict[str, Tensor]) -> Iterator[None]:
        """Inside, layers run relative to the record, with `deltas` {name: δ} added to their weights.

        Their inputs may be those of several options, one after another along the first axis.
        """
        self._replaying, self._deltas, self._places = scope, deltas, {}
        try:
            yield
        finally:
            self._replaying, self._deltas, self._places, self._last = None, {}, {}, None

    def adding(self, scope: str, parameter: str) -> tuple[list[str], bool]:
        """The layers that ran in a scope's record and add an option's error of a parameter themselves, and whether
        the parameter has to be replaced too: code may use a weight without calling its layer.
        """
        ran = [layer for layer in self.layers.get(parameter, ()) if layer in self._records[scope]]
        return ran, not ran or parameter in self.shared

    def split(self, scope: str, model: nn.Module, tensors: Tensors) -> tuple[Tensors, Tensors]:
        """An option's weights as those to replace and the errors that layers add, see `adding`."""
        replaced, deltas = Tensors(), Tensors()
        for parameter, tensor in tensors.items():
            ran, replace = self.adding(scope, parameter)
            if replace:
                replaced[parameter] = tensor
            if ran:
                deltas |= dict.fromkeys(ran, tensor - model.get_parameter(parameter))
        return replaced, deltas

    def run(self, name: str, x: Tensor, weight: Tensor, bias: Tensor | None, product: Multiply) -> Tensor:
        """The output of a layer in the mode that is on."""
        if self._replaying is None:
            y = product(x, weight) if self.exact_original else self._low(product, x, weight).to(x.dtype)
            y = y if bias is None else y + bias
            if self._recording is not None:
                self._records[self._recording].setdefault(name, []).append((x, y))
            return y
        place, ran = self._places.get(name, 0), self._records[self._replaying].get(name, [])
        self._places[name] = place + 1
        if place >= len(ran) or not _follows(x, ran[place][0]):
            return self._apart(name, x, weight, bias, product, bool(ran))
        x0, y0 = ran[place]
        y = y0
        if not _same(x, x0):
            y = _plus(y0, product(self._displacement(x, x0), self._low_weight(name, weight)))
        return y + self._low(product, x, self._deltas[name]) if name in self._deltas else y

    def _apart(
        self, name: str, x: Tensor, weight: Tensor, bias: Tensor | None, product: Multiply, ran: bool
    ) -> Tensor:
        """The output where the record has none of such a shape, as of an expert that an option gives other tokens."""
        low = ran and not self.exact_original
        y = self._low(product, x, weight).to(x.dtype) if low else product(x, weight)
        y = y if bias is None else y + bias
        added = name in self._deltas and name not in self.shared
        return y + product(x, self._deltas[name]) if added else y

    def _low_weight(self, name: str, weight: Tensor) -> Tensor:
        """The original's weight in the low precision, once where no option has replaced it."""
        if name in self.shared and name in self._deltas:
            return (weight - self._deltas[name]).to(self.dtype)
        if name not in self._low_weights:
            self._low_weights[name] = weight.to(self.dtype)
        return self._low_weights[name]

    def _displacement(self, x: Tensor, x0: Tensor) -> Tensor:
        """x − x0 in the low precision, once for all layers with the same input."""
        if self._last is None or self._last[0] is not x:
            self._last = x, _minus(x, x0).to(self.dtype)
        return self._last[1]

    def _low(self, product: Multiply, x: Tensor, weight: Tensor) -> Tensor:
        return product(x.to(self.dtype), weight.to(self.dtype))


def _same(x: Tensor, x0: Tensor) -> bool:
    """Whether an option has not reached a layer's input yet; a batch of options under vmap always has."""
    return not is_batchedtensor(x) and x.shape == x0.shape and torch.equal(x, x0)


def _follows(x: Tensor, x0: Tensor) -> bool:
    """Whether an input is that of one option or of several in a row, as in `_minus`."""
    return x.shape[1:] == x0.shape[1:] and len(x) >= len(x0) > 0 and len(x) % len(x0) == 0


def _minus(x: Tensor, x0: Tensor) -> Tensor:
    """x − x0, also for several options one after another along the first axis of x."""
    return x - x0 if x.shape == x0.shape else (x.unflatten(0, (-1, len(x0))) - x0).flatten(0, 1)


def _plus(original: Tensor, displaced: Tensor) -> Tensor:
    """original + displaced, also for several options one after another along the first axis of `displaced`."""
    if displaced.shape == original.shape:
        return original + displaced
    return (original + displaced.unflatten(0, (-1, len(original)))).flatten(0, 1)


def run_low_precision(
    model: nn.Module, dtype: torch.dtype, exact_original: bool = False
) -> LowPrecisionLayers:
    """Run the products of all linear, convolution and transposed linear layers of a float32 model in `dtype`.

    Layers whose class has a forward pass of its own stay as they are, as whatever else uses weights.
    """
    holders, layers = dict[int, list[str]](), dict[int, list[str]]()
    for name, module in model.named_modules():
        for own, parameter in module.named_parameters(recurse=False):
            holders.setdefault(id(parameter), []).append(_joined(name, own))
        if only_multiplies(module):
            layers.setdefault(id(module.weight), []).append(_joined(name, "weight"))
    names = {n: id(p) for n, p in model.named_parameters(remove_duplicate=False) if id(p) in layers}
    shared = {name for name, own in names.items() if len(holders[own]) > 1}
    products = LowPrecisionLayers(
        {name: tuple(layers[own]) for name, own in names.items()}, frozenset(shared), dtype, exact_original
    )
    for name, module in model.named_modules():
        if only_multiplies(module):
            _patch(products, name, module)
    return products


def _joined(module: str, own: str) -> str:
    return f"{module}.{own}" if module else own


def _patch(products: LowPrecisionLayers, name: str, module: nn.Module) -> None:
    key, product = _joined(name, "weight"), product_of(module)

    def run(x: Tensor) -> Tensor:
        bias = module.bias
        if bias is not None and is_convolution(module):
            bias = bias.reshape(-1, *[1] * (module.weight.ndim - 2))  # type: ignore[operator]
        return products.run(key, x, module.weight, bias, product)  # type: ignore[arg-type]

    module.forward = run  # type: ignore[method-assign]
