"""The scaling model against closed forms, bounds that every schedule obeys, and records of measured units."""

import dataclasses
import heapq

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcmpq.errors import UserError
from hpcmpq.planning.recommended import recommend
from hpcmpq.planning.scaling import (
    Prediction,
    Site,
    Workload,
    best_samples_per_unit,
    measured_workload,
    predict,
    read_seconds,
    schedule,
)
from hpcmpq.planning.search import PLANNED_WORKERS, SAMPLE_S, SPREAD
from hpcmpq.store.attempts import Attempt, CalibrateProcess
from tests.synthetic_run import synthetic_plan

UNITS = st.lists(st.floats(0.1, 100.0), min_size=1, max_size=40)
IDLE = Site(dispatch_s=0.0, create_s=0.0)


@given(UNITS, st.integers(1, 20))
def test_a_schedule_obeys_grahams_bound(seconds: list[float], num_workers: int):
    # No worker idles while a unit waits: max(mean load, longest) <= makespan <= mean load + longest.
    makespan = schedule(seconds, num_workers)
    load, longest = sum(seconds) / num_workers, max(seconds)
    assert max(load, longest) - 1e-9 <= makespan <= load + longest + 1e-9


@given(UNITS, st.integers(1, 20))
def test_a_schedule_without_costs_is_list_scheduling(seconds: list[float], num_workers: int):
    loads = [0.0] * num_workers
    for unit in seconds:
        heapq.heappush(loads, heapq.heappop(loads) + unit)
    assert schedule(seconds, num_workers) == pytest.approx(max(loads))


@pytest.mark.parametrize(("num_workers", "waves"), [(1, 12), (2, 6), (5, 3), (12, 1), (100, 1)])
def test_equal_units_run_in_waves(num_workers: int, waves: int):
    assert schedule([2.0] * 12, num_workers) == pytest.approx(2.0 * waves)


def test_the_coordinator_hands_out_one_unit_after_the_other():
    # 1,000 workers, 10,000 units of 1 s, 10 ms each: the coordinator alone takes 100 s.
    assert schedule([1.0] * 10_000, 1_000, dispatch_s=0.01) == pytest.approx(101.0)


def test_the_file_system_takes_one_shard_after_the_other():
    # All eight finish together; the last shard waits for the seven before it.
    assert schedule([1.0] * 8, 8, write_s=0.5) == pytest.approx(1.0 + 8 * 0.5)
    # One worker never waits for another's shard.
    assert schedule([1.0] * 8, 1, write_s=0.5) == pytest.approx(8 * 1.5)


def test_nodes_share_the_file_system():
    site = Site(workers_per_node=4, read_bytes_per_s=10.0, node_bytes_per_s=5.0)
    assert read_seconds(100.0, site, 4) == pytest.approx(20.0)  # one node, its own network
    assert read_seconds(100.0, site, 400) == pytest.approx(1000.0)  # a hundred share ten bytes a second


def test_nodes_that_pass_the_model_on_need_the_file_system_once():
    site = Site(workers_per_node=0.5, read_bytes_per_s=10.0, node_bytes_per_s=5.0, passes_on=True)
    assert site.num_nodes(3) == 6
    assert read_seconds(100.0, replace_per_node(site, 4), 4) == pytest.approx(20.0)  # one node
    assert read_seconds(100.0, replace_per_node(site, 4), 8) == pytest.approx(20.0)  # passes it on once
    # In a tree of two branches every node sends all of it twice, however many there are.
    assert read_seconds(100.0, replace_per_node(site, 1), 30) == pytest.approx(40.0)
    # Two nodes share a worker, and hold half of the model each.
    assert read_seconds(100.0, site, 3) == read_seconds(100.0, site, 3000) == pytest.approx(20.0)


def replace_per_node(site: Site, workers: float) -> Site:
    return dataclasses.replace(site, workers_per_node=workers)


def test_the_most_workers_are_recommended_that_are_busy():
    # 640 units of 10 s, 60 s to start: on n workers 6400 / n seconds of work, ideal / (ideal + 60) >= 0.8 up to 26.
    work = Workload(np.full(640, 10.0), startup_s=60.0)
    assert recommend(work, IDLE, 1024).num_workers == 24
    assert recommend(work, IDLE, 10).num_workers == 10
    assert recommend(Workload(np.full(640, 10.0)), IDLE, 640).num_workers == 640
    best = recommend(Workload(np.ones(2), startup_s=60.0), IDLE, 64)
    assert best.num_workers == 1, "none is busy enough"
    assert best.node_hours == pytest.approx(62.0 / 3600)
    on_nodes = recommend(work, dataclasses.replace(IDLE, workers_per_node=10), 1024)
    assert on_nodes.node_hours == pytest.approx(3 * on_nodes.makespan_s / 3600), "whole nodes are charged"


@given(UNITS, st.integers(1, 50), st.floats(0.0, 0.5))
def test_ideal_and_losses_add_up(seconds: list[float], num_workers: int, spread: float):
    work = Workload(np.array(seconds), spread, startup_s=3.0, model_bytes=1e9, shard_bytes=1e6)
    prediction = predict(work, Site(), num_workers)
    assert prediction.makespan_s == pytest.approx(prediction.ideal_s + sum(prediction.losses.values()))


@given(UNITS, st.floats(0.0, 1.0))
def test_one_worker_loses_nothing_to_stragglers(seconds: list[float], spread: float):
    prediction = predict(Workload(np.array(seconds), spread), IDLE, 1)
    assert prediction.makespan_s == pytest.approx(sum(seconds))


@pytest.mark.parametrize(
    ("bound_by", "work", "site", "num_workers"),
    [
        ("work", Workload(np.full(4096, 60.0)), IDLE, 64),
        ("too few units", Workload(np.full(128, 60.0)), IDLE, 1024),
        ("stragglers", Workload(np.full(256, 60.0), spread=1.5), IDLE, 256),
        ("coordinator", Workload(np.full(4096, 0.1)), Site(dispatch_s=0.1), 256),
        ("writing shards", Workload(np.full(4096, 1.0), shard_bytes=1e9), Site(write_bytes_per_s=1e9), 256),
        ("starting", Workload(np.full(1024, 1.0), startup_s=60.0), IDLE, 256),
        ("reading the model", Workload(np.full(1024, 1.0), model_bytes=140e9), Site(), 256),
    ],
)
def test_what_bounds_it_is_named(bound_by: str, work: Workload, site: Site, num_workers: int):
    assert predict(work, site, num_workers).bound_by == bound_by


def test_what_workers_share_takes_each_a_part_of_it():
    # 6400 s of units and 600 s that are shared: 100 + 9.4 s on 64 workers.
    work = Workload(np.full(640, 10.0), shared_s=600.0)
    made = predict(work, IDLE, 64)
    assert made.losses["choosing ranges"] == pytest.approx(600.0 / 64)
    assert made.makespan_s == pytest.approx(100.0 + 600.0 / 64)
    assert recommend(work, IDLE, 640).num_workers == 640, "shared work alone bounds no number of workers"


def test_efficiency_is_the_share_of_time_in_units():
    assert Prediction(2, 100.0, 80.0, {"starting": 20.0}).efficiency == pytest.approx(0.8)


def test_a_workload_is_read_from_what_was_measured():
    plan = synthetic_plan()
    first, second, *others = plan.units
    size = (first.group_stop - first.group_start) * (first.sample_stop - first.sample_start)
    attempts = (
        Attempt(first.id, 10.0, finished=115.0, error=None, final=True),
        Attempt(second.id, 0.0, finished=116.0, error="OSError: gone", final=False),
        Attempt(second.id, 12.0, finished=128.0, error=None, final=True),
    )
    # Another process found both done: almost no time, and no second counting.
    echo = tuple(dataclasses.replace(attempt, seconds=1e-4, finished=140.0) for attempt in attempts[::2])
    processes = [CalibrateProcess("a", "", 100.0, attempts), CalibrateProcess("b", "", 135.0, echo)]
    work = measured_workload(plan, processes, others)
    expected = [
        11.0 * (unit.group_stop - unit.group_start) * (unit.sample_stop - unit.sample_start) / size
        for unit in others
    ]
    assert work.seconds_U == pytest.approx(expected)
    assert work.startup_s == pytest.approx(5.0, abs=0.1)
    assert work.spread == pytest.approx(np.std(np.log([10.0, 12.0]), ddof=1))


def test_a_clock_that_was_set_back_makes_no_start_take_less_than_nothing():
    unit, *others = synthetic_plan().units
    attempt = Attempt(unit.id, 10.0, finished=1000.0, error=None, final=True)
    set_back = CalibrateProcess("a", "", 4600.0, (attempt,))
    work = measured_workload(synthetic_plan(), [set_back], others)
    assert work.startup_s == 0.0


def test_without_a_measured_unit_it_says_how_to_measure_one():
    plan = synthetic_plan()
    with pytest.raises(UserError, match="calibrate RUN --at-most 2"):
        measured_workload(plan, [], plan.units)


@pytest.mark.parametrize(
    ("num_workers", "startup_s", "expected"),
    [
        (1, 0.0, 128),  # one worker: one file
        (32, 0.0, 4),  # a unit each
        (1024, 0.0, 4),  # no unit is smaller than a pass
    ],
)
def test_units_are_as_large_as_they_may_be(num_workers: int, startup_s: float, expected: int):
    per_unit = Workload(np.array([]), startup_s=startup_s)
    assert best_samples_per_unit(10.0, 128, 4, num_workers, per_unit, IDLE) == expected


def test_units_shrink_where_workers_vary():
    steady, varying = (Workload(np.array([]), spread=spread) for spread in (0.0, 0.5))
    large = best_samples_per_unit(1.0, 4096, 4, 16, steady, IDLE)
    small = best_samples_per_unit(1.0, 4096, 4, 16, varying, IDLE)
    assert small < large


def test_every_worker_that_is_planned_for_gets_several_units_where_samples_allow():
    work, site = Workload(np.array([]), SPREAD), Site()
    assert (
        best_samples_per_unit(SAMPLE_S, 128, 4, PLANNED_WORKERS, work, site) == 4
    )  # 32 units: all there are
    samples = best_samples_per_unit(SAMPLE_S, 16384, 4, PLANNED_WORKERS, work, site)
    assert 2 <= 16384 / samples / PLANNED_WORKERS <= 64  # neither one each nor thousands of files
