"""Whether transformers loads a checkpoint of compressed weights of a model: some of its models cannot be."""

import copy
import logging
from collections.abc import Iterable

import torch
from torch import nn

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
