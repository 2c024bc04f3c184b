"""Nodes on which units fail again and again that fail so on no other: the fault is likely theirs."""

from collections import Counter
from collections.abc import Iterable

from hpcmpq.plan import NODE_ATTEMPTS
from hpcmpq.store.attempts import CalibrateProcess


def failed_often(processes: Iterable[CalibrateProcess]) -> dict[str, set[str]]:
    """{unit: nodes on which it failed `NODE_ATTEMPTS` times or more}, over all processes."""
    failures = Counter(
        (attempt.unit_id, attempt.node or process.host)
        for process in processes
        for attempt in process.attempts
        if attempt.error is not None
    )
    found: dict[str, set[str]] = {}
    for (unit, node), count in failures.items():
        if count >= NODE_ATTEMPTS:
            found.setdefault(unit, set()).add(node)
    return found


def bad_nodes(processes: Iterable[CalibrateProcess]) -> dict[str, int]:
    """{node: units that failed often there and on no other}, for nodes of Slurm jobs and where several took part.

    A unit that fails often on two nodes speaks against itself. One machine alone is never bad.
    """
    processes = list(processes)
    known = {process.host for process in processes} | {
        attempt.node for process in processes for attempt in process.attempts if attempt.node
    }
    if len(known) < 2 and not any(process.job_id for process in processes):
        return {}
    return dict(
        Counter(node for nodes in failed_often(processes).values() if len(nodes) == 1 for node in nodes)
    )
