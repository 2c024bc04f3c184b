"""Two Ray nodes on this host, each with one worker's place, for all tests that need a cluster."""

import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.side_by_side import the_only

ROOT = Path(__file__).resolve().parents[1]

QUICK_NODE_LOSS = {  # a dead node refuses at once; a live one on a busy machine may take seconds to reply
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "10000",
    "RAY_health_check_failure_threshold": "5",
}
ENVIRONMENT = {
    **QUICK_NODE_LOSS,
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),  # where its workers import the tests' own modules from
}


@pytest.fixture(scope="session")
def ray_cluster(pytestconfig: pytest.Config) -> Iterator:
    """A `ray.cluster_utils.Cluster` of two nodes; RAY_ADDRESS and what its clients need is in os.environ."""
    if find_spec("ray") is None:
        pytest.skip("ray is not installed")
    import ray._private.services
    from ray.cluster_utils import Cluster

    # A short name: a socket's has at most 107 bytes. And all of Ray's files below it, with RAY_TMPDIR rather than the
    # nodes' `temp_dir`, past which the cluster's address goes to /tmp/ray: nobody makes that, or it is another Ray's.
    with (
        the_only(pytestconfig, "ray"),
        tempfile.TemporaryDirectory(prefix="hq", dir="/tmp", ignore_cleanup_errors=True) as temporary,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr("ray._private.services.get_node", patient(ray._private.services.get_node))
        for name, value in {**ENVIRONMENT, "RAY_TMPDIR": temporary}.items():
            patch.setenv(name, value)
        head = {**node(), "include_dashboard": True, "dashboard_port": free_port()}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            cluster.add_node(**node())
            cluster.wait_for_nodes()
            patch.setenv("RAY_ADDRESS", cluster.address)
            yield cluster
        finally:
            cluster.shutdown()


def patient(look_up: Callable[..., Any]) -> Callable[..., Any]:
    """Wait for a node that starts for two minutes: Ray's 30 seconds are fixed, and pass on a busy machine."""

    def wait(*arguments: object) -> Any:
        limit_s = time.monotonic() + 120
        while True:
            try:
                return look_up(*arguments)
            except RuntimeError:
                if time.monotonic() > limit_s:
                    raise
                time.sleep(0.5)

    return wait


def node() -> dict[str, int]:
    """Parameters of a node with one worker's place."""
    return {"num_cpus": 1, "object_store_memory": 80 << 20, "dashboard_agent_listen_port": free_port()}


def free_port() -> int:
    """A port for the dashboard, which takes jobs; its usual one may be another Ray's."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def set_num_nodes(cluster, count: int) -> None:
    """Bring the cluster (back) to `count` nodes, the head among them."""
    while len(cluster.worker_nodes) > count - 1:
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    while len(cluster.worker_nodes) < count - 1:
        cluster.add_node(**node())
    assert os.environ["RAY_ADDRESS"] == cluster.address
