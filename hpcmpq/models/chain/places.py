"""Where in a chain of blocks the weights and products of groups lie: the one definition of a group's block there."""

from collections.abc import Sequence

from torch import nn

from hpcmpq.models.chain.chain import Chain
from hpcmpq.space import Group

Places = list[dict[str, str]]
"""{model's name: block's own name} of a group's parameters and products, by place: outside, block 0, 1, ..."""


def places_of_groups(chain: Chain, model: nn.Module, groups: Sequence[Group]) -> list[Places]:
    """The places of every group; one that two blocks share lies in both."""
    places: dict[int, list[tuple[int, str]]] = {}
    for k, block in enumerate(chain.blocks):
        for own_name, parameter in block.named_parameters():
            places.setdefault(id(parameter), []).append((k + 1, own_name))
        for own_name, module in block.named_modules():
            places.setdefault(id(module), []).append((k + 1, own_name))
    names: list[Places] = []
    for group in groups:
        names.append([{} for _ in range(len(chain.blocks) + 1)])
        for member in group.members:
            parameter = model.get_parameter(member.parameter)
            for place, own_name in places.get(id(parameter), [(0, member.parameter)]):
                names[-1][place][member.parameter] = own_name
        for product in group.products:
            module = model.get_submodule(product.module)
            for place, own_name in places.get(id(module), [(0, product.module)]):
                names[-1][place][product.module] = own_name
    return names


def first_block(places: Places) -> int:
    """The first block that a group changes; 0 for weights of prologue or epilogue.

    Example:
        >>> first_block([{}, {}, {"layers.1.up.weight": "up.weight"}])
        1
    """
    return max(0, next(place for place, names in enumerate(places) if names) - 1)


def is_outside(places: Places) -> bool:
    """Whether a group has weights or products in prologue or epilogue."""
    return bool(places[0])
