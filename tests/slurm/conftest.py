"""The one-host Slurm cluster, whose nodes are hosts of their own where this machine lets us make some."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "slurm" / "one_host_cluster.sh"
EXIT_UNAVAILABLE = 69


NO_HOSTS = "log/no_hosts"
"""File of the cluster's directory that says why its nodes are no hosts of their own."""


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment in which Slurm's commands talk to a cluster of three nodes that ends with the tests.

    Each node has a name, an address, a /tmp and a /dev/shm of its own, unless that is not allowed here.
    """
    directory = tempfile.mkdtemp(prefix="hpcmpq-slurm-")
    environment = cluster_environment(
        Path(directory), [tmp_path_factory.getbasetemp(), ROOT, Path(sys.prefix)]
    )
    done = one_host_cluster(environment, "up", "--hosts")
    if done.returncode == EXIT_UNAVAILABLE:
        why, done = done.stderr.strip(), one_host_cluster(environment, "up")
        Path(directory, NO_HOSTS).write_text(why)
    if done.returncode == EXIT_UNAVAILABLE:
        shutil.rmtree(directory)
        pytest.skip(done.stderr.strip())
    try:
        assert done.returncode == 0, done.stderr
        yield environment
    finally:
        assert one_host_cluster(environment, "down").returncode == 0
        shutil.rmtree(directory)


def cluster_environment(directory: Path, shared: Sequence[Path]) -> dict[str, str]:
    """That of a cluster in a directory whose hosts share other directories too."""
    return {
        **{
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SLURM", "SBATCH", "HPCMPQ"))
        },
        "HPCMPQ_CLUSTER_DIR": str(directory),
        "HPCMPQ_CLUSTER_PORT": str(free_ports(4)),
        "HPCMPQ_CLUSTER_SHARED": ":".join(map(str, shared)),
        "RAY_AUTH_MODE": "disabled",
        "SLURM_CONF": f"{directory}/etc/slurm.conf",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }


@pytest.fixture(scope="session")
def hosts(cluster: dict[str, str]) -> dict[str, str]:
    """The cluster, if its nodes are hosts of their own."""
    if refusal(cluster):
        pytest.skip(refusal(cluster))
    return cluster


def refusal(cluster: dict[str, str]) -> str:
    """Why the nodes are no hosts of their own; nothing where they are."""
    path = Path(cluster["HPCMPQ_CLUSTER_DIR"], NO_HOSTS)
    return path.read_text() if path.exists() else ""


def one_host_cluster(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    """A command of the script that starts and ends the cluster."""
    return subprocess.run(
        [str(SCRIPT), *words], env=environment, capture_output=True, text=True, timeout=280, check=False
    )


def free_ports(number: int) -> int:
    """The first of `number` ports in a row that nobody listens on."""
    for first in range(21000, 32000, number):
        try:
            for port in range(first, first + number):
                with socket.socket() as probe:
                    probe.bind(("", port))
        except OSError:
            continue
        return first
    raise RuntimeError("no free ports")
