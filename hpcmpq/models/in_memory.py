"""Modules that are given in memory, as factories that a config can name.

A config names ``hpcmpq.models.in_memory:model_<digest>``. This process finds the module behind it; another one is told
what to do. The digest is that of the weights, so that giving the same module again gives the same name.
"""

import copy
from collections.abc import Callable

from torch import nn

from hpcmpq.errors import UserError
from hpcmpq.models.weight_digests import weights_fingerprint

_PREFIX = "model_"

_given: dict[str, nn.Module] = {}


def give(model: nn.Module) -> str:
    """The factory's name of a module, each of whose calls returns a copy of it as it is then.

    Args:
        model: Kept, not copied, until `give` gets another with the same weights.

    Example:
        >>> from hpcmpq.models.factories import call_factory
        >>> layer = nn.Linear(2, 3)
        >>> copied = call_factory(give(layer))
        >>> copied is layer, bool((copied.weight == layer.weight).all())
        (False, True)
    """
    name = _PREFIX + weights_fingerprint(model)[:16]
    _given[name] = model
    return f"{__name__}:{name}"


def is_given(factory: str | None) -> bool:
    """Whether a factory's name is one of a module in memory, of this process or another."""
    return factory is not None and factory.startswith(f"{__name__}:{_PREFIX}")


def __getattr__(name: str) -> Callable[[], nn.Module]:
    if not name.startswith(_PREFIX):
        raise AttributeError(f"module {__name__} has no attribute {name!r}")

    def factory() -> nn.Module:
        if name not in _given:
            raise UserError(
                "the run was planned with a module in memory, which this process does not have: give it to "
                "hpcmpq.open(RUN, model=...), and calibrate without workers; or plan with a directory, or with "
                "'package.module:function' that returns the module"
            )
        return copy.deepcopy(_given[name])

    return factory
