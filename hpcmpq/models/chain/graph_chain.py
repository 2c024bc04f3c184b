"""Chains in plain modules such as CNNs: the traced graph, cut wherever a single tensor carries everything on."""

from collections.abc import Iterator

from torch import fx, nn

from hpcmpq.models.chain.chain import Call, Chain
from hpcmpq.models.layer_kinds import is_layer
from hpcmpq.models.outputs import Inputs, outputs_NTV


def find_graph_chain(model: nn.Module, inputs: Inputs) -> tuple[Chain | None, str]:
    """The chain of a module with one input that `torch.fx` can trace, unverified; or None and why not.

    A block starts at a module with parameters whose input is all that the rest of the graph needs.
    """
    if len(inputs) != 1:
        return None, "it has several inputs"
    try:
        graph = _LayersWhole().trace(model)
        traced = fx.GraphModule(model, graph)
    except Exception as error:  # tracing runs the model's own code on proxies: it may fail in any way
        return None, f"its graph cannot be traced ({type(error).__name__})"
    used = [n for n in traced.graph.nodes if n.op == "placeholder" and n.users]
    if len(used) != 1:
        return None, "its graph has several inputs"
    pieces = list(_pieces(traced, used[0]))
    if len(pieces) < 2:
        return None, "its graph has no place to cut"
    blocks = tuple(pieces)
    return (
        Chain(
            blocks,
            enter=lambda inputs: (next(iter(inputs.values())), (Call(),) * len(blocks)),
            leave=lambda _, hidden: outputs_NTV(hidden),
        ),
        "",
    )


class _LayersWhole(fx.Tracer):
    """Calls every layer that can be searched, of any class, so that hooks on it see its inputs."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is called and not looked into."""
        return is_layer(m) or super().is_leaf_module(m, module_qualified_name)


def _pieces(traced: fx.GraphModule, entry: fx.Node) -> Iterator[fx.GraphModule]:
    nodes = [n for n in traced.graph.nodes if n.op not in ("placeholder", "output", "get_attr")]
    result = next(n for n in traced.graph.nodes if n.op == "output").args[0]
    start, place = entry, 0
    for i, node in enumerate(nodes):
        last = i + 1 == len(nodes)
        if last or (_starts_block(traced, nodes[i + 1]) and _carries_all(nodes[: i + 1], entry, node)):
            if last and node is not result:
                return
            yield _piece(traced, start, nodes[place : i + 1])
            start, place = node, i + 1


def _starts_block(traced: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and any(True for _ in traced.get_submodule(str(node.target)).parameters())


def _carries_all(done: list[fx.Node], entry: fx.Node, last: fx.Node) -> bool:
    """Whether of all that has been computed only `last` is used later."""
    inside = {*done, entry}
    return all(n is last or all(user in inside for user in n.users) for n in inside)


def _piece(traced: fx.GraphModule, start: fx.Node, nodes: list[fx.Node]) -> fx.GraphModule:
    graph = fx.Graph()
    copies = {start: graph.placeholder("hidden")}

    def copy_of(node: fx.Node) -> fx.Node:
        if node not in copies:  # a constant or a parameter that the forward method reads itself
            copies[node] = graph.node_copy(node, copy_of)
        return copies[node]

    for node in nodes:
        copies[node] = graph.node_copy(node, copy_of)
    graph.output(copies[nodes[-1]])
    return fx.GraphModule(traced, graph).eval()
