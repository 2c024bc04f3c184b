"""The one-host Slurm cluster."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "slurm" / "one_host_cluster.sh"
EXIT_UNAVAILABLE = 69


@pytest.fixture(scope="session")
def cluster() -> Iterator[dict[str, str]]:
    """Environment in which Slurm's commands talk to a cluster of three nodes that ends with the tests."""
    directory = tempfile.mkdtemp(prefix="hpcmpq-slurm-")
    environment = {
        **{
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SLURM", "SBATCH", "HPCMPQ"))
        },
        "HPCMPQ_CLUSTER_DIR": directory,
        "HPCMPQ_CLUSTER_PORT": str(free_ports(4)),
        "RAY_AUTH_MODE": "disabled",
        "SLURM_CONF": f"{directory}/etc/slurm.conf",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        [str(SCRIPT), "up"], env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    if done.returncode == EXIT_UNAVAILABLE:
        shutil.rmtree(directory)
        pytest.skip(done.stderr.strip())
    try:
        assert done.returncode == 0, done.stderr
        yield environment
    finally:
        subprocess.run([str(SCRIPT), "down"], env=environment, timeout=60, check=True)
        shutil.rmtree(directory)


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
