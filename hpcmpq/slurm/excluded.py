"""The nodes that a job of a run should not start on again: `python -m hpcmpq.slurm.excluded RUN [NODES]`.

Prints them, separated by commas, with NODES, which the job excludes already; nothing where there are no others. Imports
no torch: it runs while a job's last seconds pass.
"""

import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from hpcmpq.store.attempts import read_all_processes
from hpcmpq.store.bad_nodes import bad_nodes
from hpcmpq.store.run_dir import RunDir


def nodes_to_exclude(run: RunDir) -> list[str]:
    """Names of bad nodes, by what processes in Slurm jobs saw, which know nodes by Slurm's names."""
    processes = chain.from_iterable(read_all_processes(run).values())
    return sorted(bad_nodes(process for process in processes if process.job_id))


def with_others(bad: Sequence[str], excluded: str) -> str:
    """Slurm's list of both; empty where all of `bad` are in it by name.

    Example:
        >>> with_others(["n3", "n7"], "n[1-2],n3")
        'n[1-2],n3,n7'
        >>> with_others(["n3"], "n3")
        ''
    """
    more = [node for node in bad if node not in excluded.split(",")]
    return ",".join([*filter(None, [excluded]), *more]) if more else ""


if __name__ == "__main__":
    print(with_others(nodes_to_exclude(RunDir(Path(sys.argv[1]))), sys.argv[2] if len(sys.argv) > 2 else ""))
