"""Faults of earlier versions that made what they measured of some models wrong, as facts of these models' plans.

A plan of such a model that lacks the fact was made by a version with the fault: its shards are wrong, and those of this
version would lie beside them. Plans of all other models know nothing of it. Only methods that run options through an
engine had these faults.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx, nn

from hpcmpq.errors import PlanMismatch
from hpcmpq.formats import FORMATS
from hpcmpq.models.chain.find_chain import find_chain
from hpcmpq.models.layer_kinds import multiplies, only_multiplies
from hpcmpq.models.outputs import Inputs
from hpcmpq.models.weights import holder_of
from hpcmpq.plan import Plan
from hpcmpq.quantized.stored_codes import is_stored
from hpcmpq.sensitivity import find_method
from hpcmpq.settings import Config
from hpcmpq.space import SearchSpace

TWO_NAMES = "mended.two_names"
OWN_CLASS = "mended.own_class"
OWN_FORWARD = "mended.own_forward"
FAULTS = {
    TWO_NAMES: "left rounded weights in {}, which lies under two names in its block",
    OWN_CLASS: "did not see the inputs of {}, whose class is not torch's, in a traced graph",
    OWN_FORWARD: "left out, beside products in bfloat16, the forward pass that the class of {} has of its own",
}
"""{fact: what versions before it did, with the layer that is its value}."""
TORCH = ("torch.nn", "torch.ao.nn")
"""Where classes are that torch.fx does not look into."""


def mended_facts(config: Config, model: nn.Module, space: SearchSpace, inputs: Inputs) -> dict[str, str]:
    """{fact: the first layer that the fault was in}; empty for nearly all models.

    Args:
        config: Of the run.
        model: The original, whole or streamed.
        space: Groups and formats.
        inputs: Of a sample or two; the model runs on them where a layer may be affected.
    """
    if not find_method(config.sensitivity.method).forward_only:
        return {}
    layers: dict[str, list[str]] = {}
    if config.low_precision:
        named = model.named_modules()
        layers[OWN_FORWARD] = [name for name, m in named if multiplies(m) and not only_multiplies(m)]
    if config.sensitivity.engine != "whole":
        twice, classes = _under_two_names([model], model, space), _of_own_class(config, model, space)
        chain = find_chain(model, inputs, space.groups) if twice or classes else None
        if chain is not None:
            layers[TWO_NAMES] = _under_two_names(chain.blocks, model, space)
            layers[OWN_CLASS] = classes if isinstance(chain.blocks[0], fx.GraphModule) else []
    return {fact: names[0] for fact, names in layers.items() if names}


def check_mended(planned: Mapping[str, Any], now: Mapping[str, Any], run_path: str) -> None:
    """Refuse a plan that was made by a version with a fault that this model meets.

    Which of them a model meets depends on the blocks that it is cut into, and those on libraries: a plan with any of
    these facts is of a version without the faults. The commit in its environment says nothing, since whoever plans
    again writes another.

    Args:
        planned: Facts of the plan.
        now: Facts of a plan of the model by this version, `mended_facts` among them.
        run_path: For the message.

    Raises:
        PlanMismatch: Naming the first fault.
    """
    if any(fact in planned for fact in FAULTS):
        return  # its version knew of all of them
    for fact, fault in FAULTS.items():
        if fact in now:
            raise PlanMismatch(
                f"{run_path} was planned by a version that {fault.format(now[fact])}, so what it measured is wrong; "
                "plan anew in a new run directory"
            )


def check_plan_mended(plan: Plan, model: nn.Module, inputs: Inputs, run_path: str) -> None:
    """`check_mended` of whoever measures for a plan that is there; arguments as there and in `mended_facts`."""
    space = plan.whole.space
    check_mended(plan.facts, mended_facts(plan.config, model, space, inputs), run_path)


def _under_two_names(blocks: Sequence[nn.Module], model: nn.Module, space: SearchSpace) -> list[str]:
    """Layers of searched weights that have two names in one of the modules."""
    times = [
        Counter(id(module) for _, module in block.named_modules(remove_duplicate=False)) for block in blocks
    ]
    return [name for name, layer in _layers(model, space) if any(each[id(layer)] > 1 for each in times)]


def _of_own_class(config: Config, model: nn.Module, space: SearchSpace) -> list[str]:
    """Layers of searched weights that torch.fx looks into, where inputs are rounded or codes are fitted to them."""
    chosen = [
        any(FORMATS[name].activation or is_stored(name, config.quantizer) for name in names)
        for names in space.formats
    ]
    groups = tuple(group for group, looked_at in zip(space.groups, chosen, strict=True) if looked_at)
    layers = _layers(model, SearchSpace(groups, ((),) * len(groups)))
    return [
        name for name, layer in layers if multiplies(layer) and not type(layer).__module__.startswith(TORCH)
    ]


def _layers(model: nn.Module, space: SearchSpace) -> list[tuple[str, nn.Module]]:
    """(name, module) of whatever holds a searched weight."""
    members = (member for group in space.groups for member in group.members)
    return [(m.parameter.rpartition(".")[0], holder_of(model, m)) for m in members]
