"""Cut nodes of a directed acyclic graph: what every path from its source to its sink goes through.

Between two consecutive cut nodes nothing else flows, so the parts of a computation between them run one after
the other and their times add up. This file knows graphs alone, not models.
"""

from collections.abc import Hashable, Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import TypeVar

Vertex = TypeVar("Vertex", bound=Hashable)


def cut_nodes(successors: Mapping[Vertex, Iterable[Vertex]], source: Vertex, sink: Vertex) -> list[Vertex]:
    """The nodes whose removal leaves no path from source to sink, in the order in which paths meet them.

    In a topological order of the nodes that lie on such a path, a node is a cut exactly when no edge jumps over
    it: an edge (a, b) that does extends to a path source → a → b → sink around it, and a path around it has one.

    Args:
        successors: {node: where its edges lead}; a node without edges may be left out.
        source: First node of every path; a cut itself.
        sink: Last node of every path; a cut itself.

    Raises:
        ValueError: If the graph has a cycle, or no path leads from source to sink.

    Example:
        >>> residual = {"in": ["a", "add"], "a": ["b"], "b": ["add"], "add": ["out"]}
        >>> cut_nodes(residual, "in", "out")
        ['in', 'add', 'out']
    """
    order = _on_paths(successors, source, sink)
    position = {node: place for place, node in enumerate(order)}
    cuts, furthest = [], 0
    for place, node in enumerate(order):
        if furthest <= place:
            cuts.append(node)
        furthest = max([furthest, *(position[b] for b in successors.get(node, ()) if b in position)])
    return cuts


def stages(
    successors: Mapping[Vertex, Iterable[Vertex]], source: Vertex, sink: Vertex
) -> list[tuple[Vertex, ...]]:
    """The nodes on paths from source to sink, cut behind every cut node: each part ends with one.

    The first part is the source alone.

    Example:
        >>> stages({"in": ["a", "add"], "a": ["add"], "add": ["out"]}, "in", "out")
        [('in',), ('a', 'add'), ('out',)]
    """
    cuts = set(cut_nodes(successors, source, sink))
    parts: list[tuple[Vertex, ...]] = []
    current: list[Vertex] = []
    for node in _on_paths(successors, source, sink):
        current.append(node)
        if node in cuts:
            parts.append(tuple(current))
            current = []
    return parts


def reachable(successors: Mapping[Vertex, Iterable[Vertex]], starts: Iterable[Vertex]) -> set[Vertex]:
    """The starts and every node that a path leads to from one of them."""
    found: set[Vertex] = set()
    stack = list(starts)
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack.extend(successors.get(node, ()))
    return found


def reversed_edges(successors: Mapping[Vertex, Iterable[Vertex]]) -> dict[Vertex, list[Vertex]]:
    """{node: where its edges come from}, with every node of the graph as a key."""
    predecessors: dict[Vertex, list[Vertex]] = {}
    for node, targets in successors.items():
        predecessors.setdefault(node, [])
        for target in targets:
            predecessors.setdefault(target, []).append(node)
    return predecessors


def _on_paths(successors: Mapping[Vertex, Iterable[Vertex]], source: Vertex, sink: Vertex) -> list[Vertex]:
    """The nodes on a path from source to sink, in topological order."""
    predecessors = reversed_edges(successors)
    inside: set[Vertex] = reachable(successors, [source])
    behind: set[Vertex] = reachable(predecessors, [sink])
    inside &= behind
    if source not in inside or sink not in inside:
        raise ValueError(f"no path leads from {source} to {sink}")
    try:
        order = TopologicalSorter(predecessors).static_order()
        return [node for node in order if node in inside]
    except CycleError as error:
        raise ValueError(f"the graph has a cycle through {error.args[1][0]}") from None
