"""Nodes on which units fail again and again that fail on no other: the fault is likely theirs."""

from collections.abc import Iterable

from hpcmpq.plan import NODE_ATTEMPTS
from hpcmpq.store.attempts import CalibrateProcess

Failures = dict[str, dict[str, list[float]]]
"""{unit: {node on which it failed: the Unix times at which it did}}."""


def failed_often(processes: Iterable[CalibrateProcess]) -> dict[str, set[str]]:
    """{unit: nodes on which it failed `NODE_ATTEMPTS` times or more}, over all processes; see `_failures`."""
    often = {
        unit: {node for node, times in nodes.items() if len(times) >= NODE_ATTEMPTS}
        for unit, nodes in _failures(processes).items()
    }
    return {unit: nodes for unit, nodes in often.items() if nodes}


def bad_nodes(processes: Iterable[CalibrateProcess]) -> dict[str, int]:
    """{node: units that failed often there and on no other}, where several nodes took part.

    A unit that fails on two nodes speaks against itself. One machine alone is never bad, and neither are all that took
    part: there would be none to go on.
    """
    processes = list(processes)
    known = {process.host for process in processes} | {
        attempt.node for process in processes for attempt in process.attempts if attempt.node
    }
    found: dict[str, int] = {}
    for nodes in _failures(processes).values():
        [(node, times), *others] = nodes.items()
        if not others and len(times) >= NODE_ATTEMPTS:
            found[node] = found.get(node, 0) + 1
    return found if known - found.keys() else {}


def _failures(processes: Iterable[CalibrateProcess]) -> Failures:
    """Failures since the unit last succeeded on that node, and since the node was last found to be well.

    It is where a process that began after its last failure finishes a unit on it: somebody may have mended the node.
    """
    found: Failures = {}
    for process in sorted(processes, key=lambda process: process.started):
        well = {_node(process, i) for i, attempt in enumerate(process.attempts) if attempt.error is None}
        for nodes in found.values():
            for node in well & nodes.keys():
                if max(nodes[node], default=0.0) <= process.started:
                    nodes[node].clear()
        for i, attempt in enumerate(process.attempts):
            times = found.setdefault(attempt.unit_id, {}).setdefault(_node(process, i), [])
            if attempt.error is None:
                times.clear()
            else:
                times.append(attempt.finished)
    failed = {unit: {node: times for node, times in nodes.items() if times} for unit, nodes in found.items()}
    return {unit: nodes for unit, nodes in failed.items() if nodes}


def _node(process: CalibrateProcess, number: int) -> str:
    """Where a process made an attempt: on its own host, unless a worker elsewhere did."""
    return process.attempts[number].node or process.host
