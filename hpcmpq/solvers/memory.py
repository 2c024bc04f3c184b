"""What a solve holds at most, and how much memory this process may still take.

The relaxation holds some two dozen matrices of all lifted coordinates at once, in its certificates; the convex bound a
factor and a copy of the cross terms. Where a limit is known and the relaxation would not fit below it, the solver takes
the convex bound, and where that would not fit either, the cheap one that needs no matrix.

Axis letters: P options, G groups.
"""

import os
import resource
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

LIFTED_MATRICES = 24.0
"""float64 matrices of all lifted coordinates that a proof by the relaxation holds at most, beside the cross terms."""

CONVEX_MATRICES = 1.7
"""float64 matrices of all options that the convex bound holds at most, beside the cross terms."""

SMALL_DIMENSION, SIDE_BY_SIDE = 600, 3
"""Dimension of a relaxation under which its nodes are bounded side by side, and how many at most."""

STEPPING = 0.19
"""Share of a node's matrices that its steps hold, nine in float32; the rest are of certificates, made one at a time."""

OTHER_BYTES = 3e7
"""What a search holds beside matrices, libraries' buffers included."""

EXHAUSTION_BYTES = 6e7
"""What exhausting a node's choices holds at most (`hpcmpq.solvers.proof.enumerate`)."""

UNLIMITED = 2**60
"""Limits from here on are none; the kernel writes the largest multiple of a page that it can count."""


class Room(NamedTuple):
    """Bytes that may still be taken, and what says so."""

    bytes: float
    limit: str


def lifted_bytes(num_groups: int, width: int) -> float:
    """Most bytes of a proof by the relaxation, with groups of at most `width` options, beside the cross terms."""
    partial_bytes = 16.0 * num_groups * width
    exhaustion = min(EXHAUSTION_BYTES, partial_bytes * float(width) ** min(num_groups, 40))
    return nodes_bytes(num_groups, width) + exhaustion + OTHER_BYTES


def nodes_bytes(num_groups: int, width: int) -> float:
    """Most bytes of the matrices of all nodes that are bounded side by side, of a problem with such groups."""
    nodes = SIDE_BY_SIDE if 1 + num_groups * (width - 1) < SMALL_DIMENSION else 1
    return matrices_bytes(1 + num_groups * width, nodes)


def matrices_bytes(size: int, nodes: int) -> float:
    """Most bytes of the matrices with which so many nodes are bounded side by side, of so many lifted coordinates."""
    return (1.0 + STEPPING * (nodes - 1)) * LIFTED_MATRICES * 8.0 * size**2


def convex_bytes(num_options: int) -> float:
    """Most bytes of the convex bound, beside the cross terms."""
    return CONVEX_MATRICES * 8.0 * num_options**2 + OTHER_BYTES


def room(
    proc: Path = Path("/proc"),
    cgroups: Path = Path("/sys/fs/cgroup"),
    environment: Mapping[str, str] = os.environ,
) -> Room:
    """The least that a limit leaves this process: the machine's free memory, a control group, Slurm or an RLIMIT.

    Args:
        proc: Where the system describes processes; where it does not, only limits count.
        cgroups: Where it describes control groups.
        environment: Of a job.
    """
    taken = _status(proc / "self" / "status")
    found = [
        Room(limit - taken.get("VmRSS", 0), name)
        for limit, name in (*_of_cgroups(proc, cgroups), *_of_slurm(environment))
    ]
    for name, kind, counted in (
        ("RLIMIT_AS", resource.RLIMIT_AS, "VmSize"),
        ("RLIMIT_DATA", resource.RLIMIT_DATA, "VmData"),
    ):
        soft = resource.getrlimit(kind)[0]
        if soft != resource.RLIM_INFINITY:
            found.append(Room(soft - taken.get(counted, 0), name))
    free = _status(proc / "meminfo").get("MemAvailable")
    if free is not None:
        found.append(Room(free, "the machine's free memory"))
    return min(found, default=Room(float("inf"), "nothing"))


def _status(path: Path) -> dict[str, int]:
    """{name: bytes} of a file with lines such as `VmRSS:  12 kB`; empty where there is none."""
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return {}
    return {words[0].rstrip(":"): 1024 * int(words[1]) for words in lines if words[-1:] == ["kB"]}


def _of_cgroups(proc: Path, cgroups: Path) -> Iterator[tuple[int, str]]:
    """Limits of the process's control groups and of those that they are in, of either version."""
    try:
        lines = (proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, below = line.split(":", 2)
        if not controllers:
            top, name = cgroups, "memory.max"
        elif "memory" in controllers.split(","):
            top, name = cgroups / "memory", "memory.limit_in_bytes"
        else:
            continue
        place = top / below.lstrip("/")
        for group in (place, *place.parents):
            try:
                text = (group / name).read_text(encoding="utf-8").strip()
            except OSError:
                text = "max"  # the topmost has none, and in a container those above are not shown
            if text.isdecimal() and int(text) < UNLIMITED:
                yield int(text), "the memory of its control group"
            if group == top:
                break


def _of_slurm(environment: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    """What a Slurm job asked for on this node, which not every site enforces; 0 is all there is."""
    node, cpu = (environment.get(f"SLURM_MEM_PER_{unit}", "") for unit in ("NODE", "CPU"))
    cpus = environment.get("SLURM_CPUS_ON_NODE", "1")
    if node.isdecimal() and int(node):
        yield int(node) * 2**20, "the memory of its Slurm job"
    elif cpu.isdecimal() and int(cpu) and cpus.isdecimal():
        yield int(cpu) * int(cpus) * 2**20, "the memory of its Slurm job"
