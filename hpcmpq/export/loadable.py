"""Whether transformers loads a checkpoint of compressed weights of a model: some of its models cannot be."""

import copy
import logging
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import nn

from hpcmpq.formats import FORMATS, Quantizer
from hpcmpq.models.layer_kinds import are_experts
from hpcmpq.models.split_weights import saved_whole
from hpcmpq.models.weights import holder_of
from hpcmpq.space import Member

PossibleFormats = Mapping[Member, Collection[str]]
"""{weight: formats that it may have in a checkpoint}; one that is written has one of each."""

log = logging.getLogger(__name__)


def reason_not_loadable(model: nn.Module, layers: Iterable[str]) -> str | None:
    """Why transformers will fail to load the model with these layers compressed, or None if nothing is known.

    It initialises whatever a checkpoint does not name before it decompresses, and the `_init_weights` of some models
    reads `weight` of layers that have only `weight_packed` then. Of models with experts it is not asked, see
    `hpcmpq.export.decompressed`.

    Args:
        model: Of transformers.
        layers: Names of the layers whose weights are stored packed.
    """
    initialise = getattr(model, "_init_weights", None)
    if initialise is None:
        return None
    config = copy.deepcopy(model.config)
    config.dtype = next(model.parameters()).dtype  # some models do not build with its name alone
    with torch.device("meta"):
        bare = type(model)(config)
    for name in layers:
        del bare.get_submodule(name)._parameters["weight"]
    for module in bare.modules():
        try:
            initialise(module)
        except AttributeError as error:
            if "'weight'" in str(error):
                return f"its _init_weights reads weights that are compressed ({type(module).__name__})"
        except Exception as error:  # the model's own code, on tensors without values: says nothing
            log.debug("%s cannot be initialised without values: %s", type(module).__name__, error)
    return None


def is_unpacked_alone(model: nn.Module, quantizer: Quantizer) -> bool:
    """Whether transformers does not unpack a checkpoint of the model as a whole: compressed-tensors alone does."""
    return not quantizer.symmetric or any(are_experts(module) for module in model.modules())


def not_loaded(model: nn.Module, quantizer: Quantizer, chosen: PossibleFormats) -> str | None:
    """A sentence where transformers cannot load a checkpoint with all weights packed that may be, or None."""
    if is_unpacked_alone(model, quantizer):
        return None
    packed = [m.parameter.removesuffix(".weight") for m in _packed(chosen) if m.is_layer_weight]
    reason = reason_not_loadable(model, packed)
    return reason and f"this version of transformers cannot load it: {reason}"


def not_for_transformers(model: nn.Module, chosen: PossibleFormats) -> list[str]:
    """A clause where engines load the experts and transformers, which says nothing of it, loads other ones."""
    apart = _taken_apart_by_transformers()
    experts = {
        member: names
        for member, names in chosen.items()
        if member.tensors > 1 and type(holder_of(model, member)).__name__ not in apart
    }
    lost = [member for member in _packed(experts) if saved_whole(model, member)]
    if lost:
        return [
            "not for transformers itself, which looks for the experts of a layer in one tensor, does not find them and "
            f"loads random ones (first {lost[0].parameter}); for it export fake_quantized"
        ]
    if len({name for names in experts.values() for name in names}) < 2:
        return []
    return [
        "not for transformers itself, which unpacks the experts of all layers by one scheme, whatever theirs is; for "
        "it hold all experts to one format (solver.fixed) or export fake_quantized"
    ]


def _packed(chosen: PossibleFormats) -> list[Member]:
    """Weights that may be packed."""
    return [member for member, names in chosen.items() if any(FORMATS[name].scaled for name in names)]


def _taken_apart_by_transformers() -> Collection[str]:
    """Classes of fused experts that transformers makes a list of before it loads a packed checkpoint (Llama 4)."""
    from transformers.quantizers import base

    return getattr(base, "MODULES_TO_PATCH_FOR_QUANTIZATION", {}).keys()
