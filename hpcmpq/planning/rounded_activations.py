"""What planning does for formats that round activations too: refusals, and static ranges measured once."""

import logging
from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from hpcmpq.errors import DamagedFile, UserError
from hpcmpq.formats import FORMATS
from hpcmpq.models.data.samples import Samples
from hpcmpq.models.layer_kinds import operand_axes
from hpcmpq.models.routers import mixtures, own_name
from hpcmpq.models.weights import holder_of
from hpcmpq.plan import Plan
from hpcmpq.quantized.activations import measure_maxima, read_maxima, rounds_activations, write_maxima
from hpcmpq.quantized.variants import Variants
from hpcmpq.sensitivity import find_method
from hpcmpq.settings import Config
from hpcmpq.space import SearchSpace
from hpcmpq.store.run_dir import RunDir

log = logging.getLogger(__name__)


def check_activations(config: Config, model: nn.Module, space: SearchSpace) -> None:
    """Refuse what a method cannot see and what cannot be rounded."""
    weights_alone = find_method(config.sensitivity.method).weights_alone
    if config.groups.attention_products and weights_alone:
        raise UserError(
            f"sensitivity {config.sensitivity.method} looks at weights alone and cannot tell formats of attention "
            "products apart; leave out groups.attention_products, or use secant or first_order"
        )
    if not rounds_activations(space):
        if config.groups.attention_products:
            raise UserError(
                "groups.attention_products needs a format that rounds activations, such as w8a8, fp8_e4m3 or bf16; "
                f"formats has only {', '.join(config.formats)}"
            )
        return
    if weights_alone:
        log.warning(
            "%s looks at weights alone: rounded activations cost it nothing", config.sensitivity.method
        )
    rounded = [
        group
        for group, names in zip(space.groups, space.formats, strict=True)
        if any(FORMATS[name].activation is not None for name in names)
    ]
    _check_blocks(model, space)
    for member in (m for group in rounded for m in group.members):
        unseen = member.macs == 0 and not isinstance(holder_of(model, member), nn.Embedding)
        if unseen or not member.is_layer_weight:
            raise UserError(
                f"{member.parameter} is used without calling its layer, so the layer's inputs cannot be rounded; "
                "exclude it, or use formats that round weights alone"
            )


def _check_blocks(model: nn.Module, space: SearchSpace) -> None:
    """Refuse formats with blocks of inputs for what sums over several axes, which calibration could not round."""
    for group, names in zip(space.groups, space.formats, strict=True):
        inputs = {name: FORMATS[name].activation for name in names}
        blocked = [name for name, own in inputs.items() if own is not None and FORMATS[own].block is not None]
        for member in group.members if blocked else ():
            if any(len(axes) > 1 for axes in operand_axes(holder_of(model, member))):
                raise UserError(
                    f"{member.parameter} is of a convolution, whose inputs {blocked[0]} cannot round: its blocks are "
                    "of the inputs of linear layers; add it to groups.exclude, or take formats without blocks"
                )


def keep_ranges(
    run: RunDir, plan: Plan, config: Config, model: nn.Module, batches: Iterable[Samples]
) -> None:
    """Measure static ranges once, on batches where the model is; a run that is planned again keeps its own."""
    try:
        if read_maxima(run, plan.fingerprint) is not None:
            return
    except DamagedFile:
        log.warning("%s is damaged; measuring the ranges anew", run.file("activations.h5"))
    activations = Variants(model, plan.space, config.quantizer).activations
    maxima = measure_maxima(activations, (batch.inputs for batch in batches))
    names = [name for places in activations.places for name in places.values()]
    write_maxima(run, maxima | of_idle_experts(model, names, maxima), plan.fingerprint)


def of_idle_experts(
    model: nn.Module, names: Sequence[str], maxima: Mapping[str, tuple[float, ...]]
) -> dict[str, tuple[float, ...]]:
    """Ranges of layers in lists of experts that no sample reached: the largest among those of the list's others.

    Args:
        model: Which has the lists.
        names: All layers whose inputs are rounded.
        maxima: {layer: largest inputs} of those that ran.
    """
    found: dict[str, tuple[float, ...]] = {}
    for _, experts, _ in mixtures(model):
        largest: dict[str, tuple[float, ...]] = {}
        for name, values in maxima.items():
            if (own := own_name(experts, name)) is not None:
                largest[own] = tuple(map(max, values, largest.get(own, values)))
        idle = {name: own_name(experts, name) for name in names if name not in maxima}
        found |= {name: largest[own] for name, own in idle.items() if own is not None and own in largest}
    return found
