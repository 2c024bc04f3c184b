"""A model's forward pass as a graph of operations, and which of them belong to which group."""

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from hpcmpq.errors import UserError
from hpcmpq.models.factories import describe
from hpcmpq.models.load import quiet_transformers
from hpcmpq.models.outputs import forward
from hpcmpq.space import Group, Member, Product


@dataclass(frozen=True)
class Trace:
    """The operations of one forward pass.

    Attributes:
        module: Holds the parameters that `get_attr` nodes name; the model's own, not copies.
        inputs: The node of every input, by name, of those that the outputs depend on.
        nodes: Every operation that the outputs depend on, in an order in which they can run.
        output: The node that makes the outputs z.
        uses: For every operation with a searched weight or product, its group's index and which one it is.
    """

    module: fx.GraphModule
    inputs: dict[str, fx.Node]
    nodes: tuple[fx.Node, ...]
    output: fx.Node
    uses: dict[fx.Node, tuple[int, Member | Product]]

    def constant(self, node: fx.Node) -> Tensor:
        """The tensor behind a `get_attr` node."""
        return operator.attrgetter(str(node.target))(self.module)

    def successors(self) -> dict[fx.Node, list[fx.Node]]:
        """{node: operations that read its value}, inputs included and parameters left out."""
        edges: dict[fx.Node, list[fx.Node]] = {node: [] for node in (*self.inputs.values(), *self.nodes)}
        for node in self.nodes:
            for argument in node.all_input_nodes:
                if argument in edges:
                    edges[argument].append(node)
        return edges


@torch.no_grad()
def trace_model(model: nn.Module, groups: tuple[Group, ...], inputs: dict[str, Tensor]) -> Trace:
    """The graph of a forward pass on these inputs, by `torch.export`.

    Raises:
        UserError: If the model cannot be traced, or a group's weight is used nowhere in the graph.
    """
    whole = _PositionalInputs(model, tuple(inputs)).eval()
    try:
        with quiet_transformers():
            exported = torch.export.export(whole, tuple(inputs.values()), strict=False).module()
    except Exception as error:  # tracing runs the model's own code on fake tensors: it may fail in any way
        raise UserError(
            f"{type(model).__name__} cannot be traced into a graph ({describe(error)}); times need a forward "
            "pass without branches that depend on values"
        ) from None
    assert isinstance(exported, fx.GraphModule)
    _skip_idle(exported)
    output = next(node for node in exported.graph.nodes if node.op == "output").all_input_nodes[0]
    needed: set[fx.Node] = set()
    stack = [output]
    while stack:
        node = stack.pop()
        if node not in needed:
            needed.add(node)
            stack.extend(node.all_input_nodes)
    placeholders = [node for node in exported.graph.nodes if node.op == "placeholder"]
    named = dict(zip(inputs, placeholders, strict=True))
    nodes = tuple(n for n in exported.graph.nodes if n in needed and n.op not in ("placeholder", "get_attr"))
    trace = Trace(exported, {k: n for k, n in named.items() if n in needed}, nodes, output, {})
    trace.uses.update(_uses(model, groups, trace))
    for index, group in enumerate(groups):
        if index not in {found for found, _ in trace.uses.values()}:
            raise UserError(
                f"group {group.name} was found in no operation of the traced graph; exclude it from the search"
            )
    return trace


def _skip_idle(module: fx.GraphModule) -> None:
    """Let every reader of an operation that does nothing at inference read its input instead."""
    for node in module.graph.nodes:
        if node.op != "call_function" or not node.all_input_nodes:
            continue
        name, before = str(node.target), node.all_input_nodes[0]
        cast = name.startswith("aten.to.") and _kind(node) == _kind(before)
        if cast or name in ("aten.dropout.default", "aten.alias.default"):
            node.replace_all_uses_with(before)


def _kind(node: fx.Node) -> tuple[torch.dtype, torch.device] | None:
    value = node.meta.get("val")
    return (value.dtype, value.device) if isinstance(value, Tensor) else None


class _PositionalInputs(nn.Module):
    """The model with its inputs as positional arguments and its outputs z as the only result."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors: Tensor) -> Tensor:
        return forward(self.model, dict(zip(self.names, tensors, strict=True)))


def _uses(
    model: nn.Module, groups: tuple[Group, ...], trace: Trace
) -> dict[fx.Node, tuple[int, Member | Product]]:
    """The operations that read a group's weight, or multiply inside a group's module.

    What is made of a weight alone, such as the transpose of fused experts, is still the weight: its readers count.
    """
    weight_of: dict[tuple[int, tuple[int, ...]], tuple[int, Member | Product]] = {}
    product_of: dict[str, tuple[int, Member | Product]] = {}
    for index, group in enumerate(groups):
        for member in group.members:
            weight_of[_identity(model.get_parameter(member.parameter))] = (index, member)
        for product in group.products:
            product_of[f"model.{product.module}"] = (index, product)
    uses: dict[fx.Node, tuple[int, Member | Product]] = {}
    still_weight: dict[fx.Node, tuple[int, Member | Product]] = {}
    for node in trace.nodes:
        for argument in node.all_input_nodes:
            found = still_weight.get(argument)
            if argument.op == "get_attr":
                found = weight_of.get(_identity(trace.constant(argument)))
            if found is None:
                continue
            if all(a.op == "get_attr" or a in still_weight for a in node.all_input_nodes):
                still_weight[node] = found
            else:
                uses[node] = found
        place = _innermost_module(node)
        if place in product_of and "matmul" in str(node.target):
            uses[node] = product_of[place]
    return uses


def _identity(tensor: Tensor) -> tuple[int, tuple[int, ...]]:
    return tensor.data_ptr(), tuple(tensor.shape)


def _innermost_module(node: fx.Node) -> str:
    stack: dict[str, Any] = node.meta.get("nn_module_stack") or {}
    return "" if not stack else str(list(stack.values())[-1][0])
