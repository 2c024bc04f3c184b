"""The sequential sub-graphs of a model: parts that run one after the other, so that their times add up.

The graph is cut where a single value carries everything on (`hpcmpq.timing.subgraphs.cuts`), at as many places as leave
every part with a group. Residual branches, layers that share an input (queries, keys and values) and parallel
branches fall inside one part. What every part may read but no group changes, such as attention masks and rotary
angles, is computed before the first part and is no path.
"""

from dataclasses import dataclass

from torch import fx

from hpcmpq.timing.subgraphs.cuts import cut_nodes, reachable, reversed_edges, stages
from hpcmpq.timing.subgraphs.graph import Trace

_SOURCE = "source"


@dataclass(frozen=True)
class SubGraph:
    """Consecutive operations.

    Attributes:
        nodes: In an order in which they can run.
        groups: Indices of the groups among them, in model order; none in front of the first group and behind
            the last, where only what every assignment shares is computed.
    """

    nodes: tuple[fx.Node, ...]
    groups: tuple[int, ...]

    @property
    def result(self) -> fx.Node:
        """The one value that later parts read (of the first part, the last of several)."""
        return self.nodes[-1]


def partition(trace: Trace) -> tuple[SubGraph, ...]:
    """All operations of a trace as consecutive parts, those of the first with everything that they share.

    Every part but the first hands on one value; every part with groups is a sequential sub-graph.
    """
    edges = trace.successors()
    main = _main_path(trace, edges)
    entry = _entry(trace, edges, main)
    inside = reachable(edges, [entry] if entry is not None else [*main]) - {entry}
    graph: dict[fx.Node | str, list[fx.Node | str]] = {n: list(edges[n]) for n in inside}
    # Only what comes from the entry is a path: a mask that joins on the way was there before.
    read = {target for node in inside for target in edges[node]}
    starts = edges[entry] if entry is not None else [node for node in inside if node not in read]
    graph[_SOURCE] = list(starts)
    order = {node: place for place, node in enumerate(trace.nodes)}
    parts: list[list[fx.Node]] = []
    for stage in stages(graph, _SOURCE, trace.output)[1:]:
        nodes = [node for node in stage if isinstance(node, fx.Node) and node in order]
        parts.append(sorted(nodes, key=order.__getitem__))
    taken = {node for part in parts for node in part}
    shared = [node for node in trace.nodes if node not in taken]
    return tuple(_part(trace, nodes) for nodes in [shared, *_joined(trace, parts)])


def _part(trace: Trace, nodes: list[fx.Node]) -> SubGraph:
    return SubGraph(tuple(nodes), tuple(sorted({trace.uses[n][0] for n in nodes if n in trace.uses})))


def _joined(trace: Trace, stages: list[list[fx.Node]]) -> list[list[fx.Node]]:
    """Stages joined so that every part but a last one has a group; stages without one go to the part before."""
    parts: list[list[fx.Node]] = []
    ahead: list[fx.Node] = []
    has_group = [any(node in trace.uses for node in stage) for stage in stages]
    last = max((place for place, has in enumerate(has_group) if has), default=-1)
    for place, stage in enumerate(stages):
        if has_group[place]:
            parts.append([*ahead, *stage])
            ahead = []
        elif not parts:
            ahead += stage
        elif place == last + 1:
            parts.append(list(stage))
        else:
            parts[-1] += stage
    return parts + ([ahead] if ahead else [])


def _main_path(trace: Trace, edges: dict[fx.Node, list[fx.Node]]) -> set[fx.Node]:
    """What the inputs of the first groups are computed from: the way of the data, not of masks or angles."""
    changed = reachable(edges, trace.uses)
    first = [n for n in trace.uses if not any(a in changed for a in n.all_input_nodes)]
    back = reversed_edges(edges)
    return reachable(back, [a for n in first for a in n.all_input_nodes if a in edges])


def _entry(trace: Trace, edges: dict[fx.Node, list[fx.Node]], main: set[fx.Node]) -> fx.Node | None:
    """The last value in front of every group through which all data comes, or None if there is none."""
    kept = main | reachable(edges, trace.uses)
    graph: dict[fx.Node | str, list[fx.Node | str]] = {n: [t for t in edges[n] if t in kept] for n in kept}
    targets = {target for node in graph.values() for target in node}
    graph[_SOURCE] = [node for node in kept if node not in targets]
    entry = None
    behind = reachable(edges, trace.uses)
    for node in cut_nodes(graph, _SOURCE, trace.output):
        if isinstance(node, fx.Node):
            if node in behind:
                break
            entry = node
    return entry
