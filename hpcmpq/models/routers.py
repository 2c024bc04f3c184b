"""Which layers choose experts: routers and gates, by what their outputs do and not by what they are called.

A layer is one if its output, without another product in between, is what `topk` or `argmax` choose by; or if it lies
beside experts and has an output for each of them (experts that are mixed without a choice), or a single one (the gate
of a shared expert).
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from hpcmpq.models.layer_kinds import are_experts

_CHOICES = ("topk", "argmax")


class TracedChoices(TorchFunctionMode):
    """While active, follows what the products with each matrix of weights come to, and sees who chooses by them.

    Attributes:
        chosen_by: Identities of the parameters whose product alone was chosen by.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.chosen_by: set[int] = set()
        self._weights = WeakTensorKeyDictionary()  # {a matrix of weights, or a view or cast of it: whose}
        self._products = (
            WeakTensorKeyDictionary()
        )  # {what was computed: from which weights, last product alone}
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                self._weights[parameter] = frozenset((id(parameter),))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of torch and note what its result comes from."""
        result = func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        weights = frozenset[int]().union(*(self._weights.get(tensor, ()) for tensor in given))
        products = frozenset[int]().union(*(self._products.get(tensor, ()) for tensor in given))
        if getattr(func, "__name__", "") in _CHOICES and len(products) == 1:
            self.chosen_by |= products
        known, value = self._products, weights or products
        if weights and all(tensor in self._weights for tensor in given):
            known = self._weights
        if value:
            for tensor in tree_leaves(result):
                if isinstance(tensor, Tensor) and tensor not in self._weights:
                    known[tensor] = value
        return result


class TopkSizes(TorchFunctionMode):
    """While active, sees among how many things `topk` chooses.

    Attributes:
        sizes: All that were seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sizes: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of torch and note what it chooses among."""
        if is_topk(func):
            value, axis = value_and_axis(*args, **(kwargs or {}))
            self.sizes.add(value.shape[axis])
        return func(*args, **(kwargs or {}))


def is_topk(func: Any) -> bool:
    """Whether a function of torch is the one that routers choose by."""
    return getattr(func, "__name__", "") == "topk"


def value_and_axis(input: Tensor, k: int, dim: int = -1, *_: Any, **__: Any) -> tuple[Tensor, int]:
    """Of the arguments of `topk`, what it chooses from and along which axis."""
    return input, dim


def choosing_weights(
    model: nn.Module, outputs_of: Mapping[nn.Parameter, tuple[str, int]], chosen_by: set[int]
) -> set[int]:
    """Identities of the weights of layers that choose or weigh experts.

    Args:
        model: Any module.
        outputs_of: {weight of a layer: (name of its module, number of outputs)}.
        chosen_by: From `TracedChoices`.
    """
    found = {id(weight) for weight in outputs_of if id(weight) in chosen_by}
    for scope, experts, num_experts in mixtures(model):
        inside = [
            weight
            for weight, (name, _) in outputs_of.items()
            if _within(name, scope) and not _within(name, experts)
        ]
        routed = any(
            id(parameter) in chosen_by and not _within(name, experts)
            for name, parameter in model.named_parameters(remove_duplicate=False)
            if _within(name, scope)
        )
        sizes = {1} if routed else {1, num_experts}
        found |= {id(weight) for weight in inside if outputs_of[weight][1] in sizes}
    return found


def mixtures(model: nn.Module) -> Iterable[tuple[str, str, int]]:
    """(module around experts and what routes to them, the experts, how many)."""
    for name, module in model.named_modules():
        scope, _, last = name.rpartition(".")
        if are_experts(module):
            sizes = [len(weight) for weight in module.parameters(recurse=False) if weight.ndim == 3]
            if sizes:
                yield scope, name, sizes[0]
        elif isinstance(module, nn.ModuleList | nn.ModuleDict) and len(module) > 1:
            kinds = {type(child).__name__ for child in module.children()}
            if len(kinds) == 1 and "expert" in (last + kinds.pop()).lower():
                yield scope, name, len(module)


def experts_in_lists(model: nn.Module) -> set[nn.Module]:
    """Every module inside an expert of a list: which of them run, and on how many tokens, depends on the samples."""
    lists = [experts for _, experts, _ in mixtures(model)]
    return {
        module
        for name, module in model.named_modules()
        if any(own_name(experts, name) is not None for experts in lists)
    }


def own_name(experts: str, name: str) -> str | None:
    """What something in a list of experts is called inside its expert; None of what is not in the list.

    Example:
        >>> own_name("mlp.experts", "mlp.experts.3.up_proj"), own_name("mlp.experts", "mlp.gate")
        ('up_proj', None)
    """
    inside = name.removeprefix(f"{experts}.")
    return None if inside == name else inside.partition(".")[2]


def _within(name: str, prefix: str) -> bool:
    return not prefix or name == prefix or name.startswith(prefix + ".")
