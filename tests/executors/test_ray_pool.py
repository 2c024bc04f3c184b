"""Ray nodes that leave, join, or are too small."""

import json
import os
import signal
from pathlib import Path

import pytest

from hpcmpq.errors import UserError
from hpcmpq.executors.ray_demand import Demand, count_places, read_demand
from tests.executors.background import Background, wait_until
from tests.executors.launch import MARKS, command_line, run
from tests.executors.toy_units import UNITS, attempts, make_toy_worker, shards
from tests.ray_cluster import set_num_nodes

on_ray = [pytest.mark.usefixtures("ray_cluster"), *MARKS["ray"]]


def applied(marks):
    def apply(test):
        for mark in marks:
            test = mark(test)
        return test

    return apply


def expected(path) -> dict[str, bytes]:
    work = make_toy_worker(str(path))
    for unit in UNITS:
        work(unit)
    return shards(path)


@applied(on_ray)
def test_lost_node_costs_one_attempt_and_a_new_one_is_used(ray_cluster, tmp_path):
    (tmp_path / "lost").mkdir()
    (tmp_path / "lost" / "seconds").write_text("3")
    (tmp_path / "whole").mkdir()
    with Background(command_line("ray", "tests.executors.run_toys", "ray", tmp_path / "lost", 0)) as command:
        wait_until(lambda: len(attempts(tmp_path / "lost")) >= 2, "both nodes measure")
        set_num_nodes(ray_cluster, 1)
        set_num_nodes(ray_cluster, 2)
        status, output = command.end()
    assert status == 0, output
    outcomes = [json.loads(line) for line in output.splitlines() if line.startswith("[")]
    lost = [unit for unit, error, _ in outcomes if error is not None]
    assert len(lost) == 1 and "lost" in output
    assert sorted(attempts(tmp_path / "lost")) == sorted([unit.id for unit in UNITS] + lost)
    assert shards(tmp_path / "lost") == expected(tmp_path / "whole")


@applied(on_ray)
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR2"])
def test_signal_ends_with_75_and_leaves_the_cluster_running(name, ray_cluster, tmp_path):
    (tmp_path / "seconds").write_text("60")
    with Background(command_line("ray", "tests.executors.run_toys", "ray", tmp_path, 0)) as command:
        wait_until(lambda: len(attempts(tmp_path)) >= 1, "a unit is being measured")
        os.kill(command.process.pid, signal.Signals[name])
        status, output = command.end()
    assert status == 75, output
    assert output.splitlines()[-1] == f"hpcmpq: interrupted ({name}); run the same command to go on"
    assert all(node.remaining_processes_alive() for node in ray_cluster.list_all_nodes())


@applied(MARKS["ray"])
def test_a_ray_of_its_own_needs_no_folder_that_is_there_and_leaves_none(tmp_path, monkeypatch):
    """Also under a batch system's TMPDIR, below which the names of Ray's sockets would be too long."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    scratch = tmp_path / ("job-1234567." + 60 * "x")
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    with Background(command_line("ray", "tests.executors.run_toys", "ray", tmp_path)) as command:
        status, output = command.end()
    assert status == 0, output
    assert sorted(attempts(tmp_path)) == sorted(unit.id for unit in UNITS)
    assert not list(Path("/tmp").glob(f"hpcmpq-{command.process.pid}-*")) and not list(scratch.glob("ray*"))


@applied(on_ray)
def test_demand_that_no_node_meets_is_refused(ray_cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("HPCMPQ_RAY_NUM_GPUS", "1")
    monkeypatch.setenv("HPCMPQ_RAY_WAIT_S", "0")
    ended = run(command_line("ray", "tests.executors.run_toys", "ray", tmp_path))
    assert ended.returncode == 2, ended.stderr
    assert "no node of the Ray cluster can hold a worker that needs {'CPU': 1.0, 'GPU': 1.0}" in ended.stderr
    assert not attempts(tmp_path)


def test_worker_takes_a_gpu_where_there_are_any():
    with_gpus, without = [{"CPU": 8.0, "GPU": 4.0}, {"CPU": 8.0}], [{"CPU": 8.0}]
    assert Demand().resources(with_gpus) == {"CPU": 1.0, "GPU": 1.0}
    assert Demand().resources(without) == {"CPU": 1.0}
    assert Demand(num_gpus=0).resources(with_gpus) == {"CPU": 1.0}


def test_places_are_counted_by_the_scarcest_resource():
    nodes = [{"CPU": 8.0, "GPU": 4.0, "memory": 16e9}, {"CPU": 2.0, "GPU": 4.0, "memory": 64e9}]
    assert count_places(nodes, {"CPU": 1.0}) == 10
    assert count_places(nodes, {"CPU": 1.0, "GPU": 1.0}) == 6
    assert count_places(nodes, {"CPU": 1.0, "GPU": 0.25, "memory": 8e9}) == 4
    assert count_places(nodes, {"CPU": 16.0}) == 0
    assert count_places([{"GPU": 1.0}], {"GPU": 0.1}) == 10


def test_demand_is_read_from_the_environment():
    variables = {"HPCMPQ_RAY_NUM_GPUS": "0.5", "HPCMPQ_RAY_MEMORY_GB": " 24 ", "HPCMPQ_RAY_NUM_CPUS": ""}
    assert read_demand(variables) == Demand(num_cpus=1.0, num_gpus=0.5, memory_gb=24.0)


@pytest.mark.parametrize("text", ["many", "-1", "nan", "inf"])
def test_demand_that_is_no_amount_is_refused(text):
    with pytest.raises(UserError, match=f"HPCMPQ_RAY_NUM_GPUS={text} is not a number of at least 0"):
        read_demand({"HPCMPQ_RAY_NUM_GPUS": text})
