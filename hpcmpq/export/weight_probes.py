"""What every weight of a model makes of a few probes: row by row, so that one wrong scale shows in a model of any size.

Outputs alone do not show it: a row of a layer is a small part of them, and rounded inputs make steps of their own.
Probes are multiples of a quarter from −1.75 to 1.75, with a 1.75 in each, which fp8 holds exactly with a scale that is
a power of two: whoever rounds inputs gets the same numbers.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

NUM_PROBES = 4

Rows = dict[str, Tensor]
"""{parameter or layer: what each of its rows makes of the probes, float32 [rows, `NUM_PROBES`]}."""


@torch.no_grad()
def probed(model: nn.Module, layers: Iterable[str]) -> Rows:
    """Products of all floating parameters with probes, and outputs of linear layers on them, as they run.

    Args:
        model: In eval mode; a reader may keep layers without a weight of the usual kind.
        layers: Names of linear layers.
    """
    found: Rows = {}
    for name, parameter in model.named_parameters():
        if parameter.dtype in (torch.float32, torch.float64):
            found[name] = products(parameter)
    modules = dict(model.named_modules())
    for name in layers:
        module = modules.get(name)
        if module is not None and hasattr(module, "in_features"):
            bias = getattr(module, "bias", None)
            like = bias if bias is not None else next(model.parameters())
            x_PK = probes(module.in_features).T.to(
                like.device, torch.promote_types(like.dtype, torch.float32)
            )
            found[f"layer {name}"] = module(x_PK).T.float().cpu()
    return found


def products(tensor: Tensor) -> Tensor:
    """What each row of a tensor makes of the probes, float32 [rows, `NUM_PROBES`]."""
    matrix = _matrix(tensor)
    return (matrix @ probes(matrix.shape[1]).to(matrix)).float().cpu()


def largest_difference(read: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> tuple[str, float, int]:
    """Where rows differ most, by which share of their size, and how many weights were compared.

    The size of a row is at least the root mean square of all rows of its weight. NaN counts as infinite. Only what both
    sides know by name and shape is compared.
    """
    worst, share, count = "", 0.0, 0
    for name, rows in expected.items():
        if name not in read or read[name].shape != rows.shape:
            continue
        count += 1
        size = rows.norm(dim=1)
        floor = torch.maximum(size, size.square().mean().sqrt()).clamp_min(torch.finfo(rows.dtype).tiny)
        own = float(torch.nan_to_num((read[name] - rows).norm(dim=1) / floor, nan=torch.inf).max())
        if own > share or not worst:
            worst, share = name, own
    return worst, share, count


def _matrix(parameter: Tensor) -> Tensor:
    """Rows of a parameter; of experts in one tensor those of each."""
    if parameter.ndim < 2:
        return parameter.reshape(-1, 1)
    return parameter.flatten(0, 1) if parameter.ndim == 3 else parameter.flatten(1)


def probes(num_columns: int) -> Tensor:
    """[K, `NUM_PROBES`], the same for every K."""
    generator = torch.Generator().manual_seed(num_columns)
    probes_KP = torch.randint(1, 8, (num_columns, NUM_PROBES), generator=generator) / 4.0
    sign_KP = torch.randint(0, 2, (num_columns, NUM_PROBES), generator=generator) * 2 - 1
    probes_KP *= sign_KP
    probes_KP[0] = 1.75
    return probes_KP
