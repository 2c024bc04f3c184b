"""What one worker takes of a Ray cluster, and how many workers its nodes hold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hpcmpq.errors import UserError


@dataclass(frozen=True)
class Demand:
    """What one worker takes, from the environment: HPCMPQ_RAY_NUM_CPUS, _NUM_GPUS, _MEMORY_GB, _WAIT_S.

    Attributes:
        num_cpus: Cores.
        num_gpus: GPUs; a fraction lets workers share one. None takes 1 where the cluster has any, else 0.
        memory_gb: Memory that Ray reserves, in units of 10⁹ bytes.
        wait_s: Seconds to wait for a node that can hold a worker, before giving up.
    """

    num_cpus: float = 1.0
    num_gpus: float | None = None
    memory_gb: float = 0.0
    wait_s: float = 60.0

    def resources(self, nodes: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """{Ray's resource name: amount} of one worker on a cluster of such nodes."""
        num_gpus = (
            float(any(node.get("GPU", 0) >= 1 for node in nodes)) if self.num_gpus is None else self.num_gpus
        )
        wanted = {"CPU": self.num_cpus, "GPU": num_gpus, "memory": self.memory_gb * 1e9}
        return {name: amount for name, amount in wanted.items() if amount > 0}


def read_demand(environment: Mapping[str, str]) -> Demand:
    """The demand that environment variables state.

    Raises:
        UserError: If one is not a number, or negative.
    """
    values: dict[str, float] = {}
    for name in ("num_cpus", "num_gpus", "memory_gb", "wait_s"):
        text = environment.get(f"HPCMPQ_RAY_{name.upper()}", "").strip()
        if not text:
            continue
        try:
            values[name] = float(text)
        except ValueError:
            values[name] = -1.0
        if not 0 <= values[name] < float("inf"):
            raise UserError(f"HPCMPQ_RAY_{name.upper()}={text} is not a number of at least 0")
    return Demand(**values)


def count_places(nodes: Sequence[Mapping[str, float]], resources: Mapping[str, float]) -> int:
    """Workers that the nodes could hold if nobody else used them.

    Example:
        >>> count_places([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 4.0}], {"CPU": 1.0, "GPU": 0.5})
        4
    """
    if not resources:
        return len(nodes)
    return sum(
        min(int(node.get(name, 0) / amount + 1e-9) for name, amount in resources.items()) for node in nodes
    )
