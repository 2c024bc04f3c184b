"""The blocks that a model repeats: which lists of modules hold them, and which one a layer lies in."""

from collections.abc import Sequence

from torch import nn

from hpcmpq.errors import UserError


def block_lists(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Lists of at least two modules with parameters, most parameters first."""
    found = [
        (sum(p.numel() for p in module.parameters()), name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) > 1
    ]
    return [(name, module) for size, name, module in sorted(found, key=lambda f: -f[0]) if size]


def block_numbers(model: nn.Module, names: Sequence[str]) -> list[int | None]:
    """Index of each name in the model's list of repeated blocks, or None outside it.

    The list is the container (`nn.ModuleList` or `nn.Sequential` of modules that hold the layers) that
    most of the names are in; half of them at least, so that the stages of a ResNet are none.
    """
    places: list[tuple[str, int] | None] = []
    for name in names:
        parts = name.split(".")
        at = next((i for i, part in enumerate(parts[:-1]) if part.isdecimal()), None)
        container = model.get_submodule(".".join(parts[:at])) if at is not None else None
        is_list = isinstance(container, nn.ModuleList | nn.Sequential)
        places.append((".".join(parts[:at]), int(parts[at])) if is_list and at is not None else None)
    prefixes = [place[0] for place in places if place is not None]
    main = max(prefixes, key=prefixes.count, default=None)
    if main is None or 2 * prefixes.count(main) < len(names):
        return [None] * len(names)
    return [place[1] if place is not None and place[0] == main else None for place in places]


def largest_list(model: nn.Module) -> tuple[nn.Module, ...]:
    """The blocks of the list that holds most parameters.

    Raises:
        UserError: If the model has no list of at least two blocks.
    """
    for _, blocks in block_lists(model):
        if isinstance(blocks, nn.ModuleList):
            return tuple(blocks)
    raise UserError("the model has no list of blocks to stream; set model.stream: false")


def block_bytes(model: nn.Module, blocks: Sequence[nn.Module], itemsize: int) -> tuple[int, list[int]]:
    """Bytes of the parameters outside a model's blocks, and of those of each block, at `itemsize` bytes a number."""
    sizes = [itemsize * sum(p.numel() for p in block.parameters()) for block in blocks]
    return itemsize * sum(p.numel() for p in model.parameters()) - sum(sizes), sizes
