"""A part of a traced model as a module of its own, with other kernels in place of its groups' operations."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import fx, nn

from hpcmpq.timing.subgraphs.graph import Trace
from hpcmpq.timing.subgraphs.partition import SubGraph


class Kernel(Protocol):
    """What computes an operation in some number format.

    Attributes:
        conversion: Turns one input into what `product` reads; operations with the same input and an equal
            `conversion_name` share it. None where inputs are read as they are.
        conversion_name: Says what `conversion` does.
        product: Takes the converted inputs, returns the operation's result.
    """

    @property
    def conversion(self) -> nn.Module | None: ...  # noqa: D102
    @property
    def conversion_name(self) -> str: ...  # noqa: D102
    @property
    def product(self) -> nn.Module: ...  # noqa: D102


@dataclass(frozen=True)
class Piece:
    """A runnable part.

    Attributes:
        module: Takes the values of `reads` and returns those of `makes`, as a tuple.
        reads: Nodes whose values it needs.
        makes: Nodes whose values others need.
    """

    module: fx.GraphModule
    reads: tuple[fx.Node, ...]
    makes: tuple[fx.Node, ...]

    def run(self, values: dict[fx.Node, Any]) -> None:
        """Compute what it makes from `values` and add it to them."""
        results = self.module.forward(*(values[node] for node in self.reads))
        values.update(zip(self.makes, results, strict=True))


def build_piece(trace: Trace, nodes: Sequence[fx.Node], kernels: Mapping[fx.Node, Kernel]) -> Piece:
    """The module that runs some operations of a trace.

    Args:
        trace: Where the operations are from; parameters are shared with it.
        nodes: In an order in which they can run.
        kernels: What runs instead of an operation; its activation inputs must be its first arguments.
    """
    reads, makes = boundary(trace, nodes)
    graph, root = fx.Graph(), nn.Module()
    copies: dict[fx.Node, fx.Node] = {node: graph.placeholder(f"read_{k}") for k, node in enumerate(reads)}
    converted: dict[tuple[fx.Node, str], fx.Node] = {}

    def add(name: str, module: nn.Module, arguments: tuple[fx.Node, ...]) -> fx.Node:
        root.add_module(name, module)
        return graph.call_module(name, arguments)

    def copy_of(node: fx.Node) -> fx.Node:
        if node not in copies:  # a parameter or constant
            name = f"constant_{len(copies)}"
            root.register_buffer(name, trace.constant(node))
            copies[node] = graph.get_attr(name)
        return copies[node]

    for place, node in enumerate(nodes):
        kernel = kernels.get(node)
        if kernel is None:
            copies[node] = graph.node_copy(node, copy_of)
            continue
        inputs = []
        for k, source in enumerate(activations(node)):
            key = (copy_of(source), kernel.conversion_name)
            if kernel.conversion is None:
                converted[key] = key[0]
            elif key not in converted:
                converted[key] = add(f"convert_{place}_{k}", kernel.conversion, (key[0],))
            inputs.append(converted[key])
        copies[node] = add(f"product_{place}", kernel.product, tuple(inputs))
    graph.output(tuple(copies[node] for node in makes))
    return Piece(fx.GraphModule(root, graph).eval(), reads, makes)


def activations(node: fx.Node) -> tuple[fx.Node, ...]:
    """The inputs of an operation that are computed, in order, without its parameters."""
    return tuple(argument for argument in node.all_input_nodes if argument.op != "get_attr")


def boundary(trace: Trace, nodes: Collection[fx.Node]) -> tuple[tuple[fx.Node, ...], tuple[fx.Node, ...]]:
    """What some operations read from others, and which of their values others (or the model's caller) read."""
    inside = set(nodes)
    reads = dict.fromkeys(a for node in nodes for a in activations(node) if a not in inside)
    needed = {*trace.nodes} - inside
    makes = [n for n in nodes if n is trace.output or any(user in needed for user in n.users)]
    return tuple(reads), tuple(makes)


def signature(trace: Trace, part: SubGraph) -> str:
    """A digest that parts share which do the same operations on the same shapes, with other weights.

    The part's groups are numbered in model order, so that formats of one part's groups mean those of another's.
    """
    names: dict[fx.Node, str] = {}
    lines = []
    place_of = {group: place for place, group in enumerate(part.groups)}

    def shown(node: fx.Node) -> str:
        if node not in names:
            names[node] = f"{'w' if node.op == 'get_attr' else 'x'}{len(names)}:{_shape(trace, node)}"
        return names[node]

    for node in part.nodes:
        arguments = fx.node.map_arg((node.args, tuple(sorted(node.kwargs.items()))), shown)
        group = place_of[trace.uses[node][0]] if node in trace.uses else ""
        lines.append(f"{shown(node)} = {node.target}({arguments}) {group}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def _shape(trace: Trace, node: fx.Node) -> str:
    value = trace.constant(node) if node.op == "get_attr" else node.meta.get("val")
    return f"{getattr(value, 'dtype', '')}{list(getattr(value, 'shape', ()))}"
