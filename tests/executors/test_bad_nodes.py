"""Units that failed twice on a node go to another, and workers that lost their GPU get none: nodes are only names."""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpcmpq.errors import UserError
from hpcmpq.executors import MAX_ATTEMPTS, Worker, mpi_pool, reply
from hpcmpq.executors.backlog import Backlog
from hpcmpq.executors.batches import Batches, UnitBatch
from hpcmpq.executors.desk import SharedDesk
from hpcmpq.executors.in_process import InProcess
from hpcmpq.executors.mpi_pool import MpiPool
from hpcmpq.executors.ray_demand import Demand
from hpcmpq.executors.ray_pool import RayPool, _Actor, _Crew
from hpcmpq.executors.reply import Reply, device_failed
from hpcmpq.plan import NODE_ATTEMPTS, Plan, WorkUnit
from hpcmpq.store.attempts import recording
from hpcmpq.store.run_dir import RunDir
from hpcmpq.units import run_missing
from tests.executors.toy_units import UNITS
from tests.synthetic_run import synthetic_plan

UNIT = UNITS[0]
HERE = [""]
"""The node that runs now."""


def fails_on_a() -> Callable[[WorkUnit], None]:
    def work(unit: WorkUnit) -> None:
        if HERE[0] == "a":
            raise ArithmeticError("wrong")

    return work


def fails() -> Callable[[WorkUnit], None]:
    def work(unit: WorkUnit) -> None:
        raise ArithmeticError("wrong")

    return work


def works() -> Callable[[WorkUnit], None]:
    return lambda _: None


SEEN: list[WorkUnit] = []


def notes(run: RunDir) -> Callable[[WorkUnit], None]:
    return SEEN.append


class InTurn:
    """Ranks that take tasks in turn, each on the node of its name."""

    def __init__(self, nodes: str) -> None:
        self.nodes = itertools.cycle(nodes)

    def submit(self, function: Callable[..., Any], *arguments: object) -> Future[Any]:
        HERE[0], done = next(self.nodes), Future[Any]()
        done.set_result(function(*arguments))
        return done


@pytest.fixture(autouse=True)
def named_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (mpi_pool, reply):
        monkeypatch.setattr(module, "node_name", lambda: HERE[0])
    monkeypatch.setattr(mpi_pool, "LEAVE_S", 0.0)
    monkeypatch.setattr(mpi_pool, "_made", None)
    monkeypatch.setattr(mpi_pool, "_broken", False)


@pytest.mark.parametrize("nodes", ["ab", "aab", "aaaab"])
def test_mpi_ranks_leave_a_unit_that_failed_twice_to_another_node(nodes: str):
    outcomes = list(MpiPool(InTurn(nodes), len(nodes), frozenset(nodes)).run(fails_on_a, UNITS))
    assert sorted(outcome.unit.id for outcome in outcomes if outcome.error is None) == sorted(
        u.id for u in UNITS
    )
    failures = Counter(outcome.unit.id for outcome in outcomes if outcome.error is not None)
    assert failures and max(failures.values()) <= NODE_ATTEMPTS
    assert {outcome.node for outcome in outcomes if outcome.error is not None} == {"a"}
    assert {outcome.node for outcome in outcomes if outcome.error is None} == {"b"}


@pytest.mark.parametrize("nodes", ["ab", "aab", "abb"])
def test_a_rank_that_leaves_a_unit_of_one_run_measures_those_of_another(nodes: str):
    """The unit waits until the other node has nothing else; no rank waits with it."""

    def batches(make_worker: Callable[[], Worker], units: Sequence[WorkUnit]) -> Batches[None]:
        yield UnitBatch(make_worker, units, lambda _: None)

    ids = [f"other-{number}" for number in range(24)]
    others = [replace(UNIT, id=name) for name in ids]
    runs = [batches(fails_on_a, [UNIT]), batches(works, others)]
    desk = SharedDesk(runs, lambda *told: pytest.fail(str(told)), len(nodes), at_once=False)
    done: dict[str, str] = {}
    for backlog, outcome in MpiPool(InTurn(nodes), len(nodes), frozenset(nodes)).hand_out(desk, keep=True):
        desk.seen(backlog, outcome)
        if outcome.error is None:
            assert outcome.unit.id not in done
            done[outcome.unit.id] = outcome.node
    assert sorted(done) == sorted([UNIT.id, *ids]) and done[UNIT.id] == "b"
    by_a = sum(done[name] == "a" for name in ids)
    # Its share, less what it tried of the unit and a turn of each rank in which it rested.
    assert by_a >= len(ids) * nodes.count("a") // len(nodes) - NODE_ATTEMPTS - len(nodes)


@pytest.mark.parametrize("nodes", ["a", "aa", "ab"])
def test_a_unit_that_always_fails_ends_wherever_it_runs(nodes: str):
    outcomes = list(MpiPool(InTurn(nodes), len(nodes), frozenset(nodes)).run(fails, UNITS[:2]))
    assert Counter(outcome.unit.id for outcome in outcomes) == {unit.id: MAX_ATTEMPTS for unit in UNITS[:2]}
    assert sum(outcome.final for outcome in outcomes) == 2


def test_the_backlog_gives_a_node_what_did_not_fail_there_if_another_may_take_the_rest():
    backlog = Backlog(UNITS[:2])
    for unit in UNITS[:2]:
        assert backlog.take_for("a", {"b"}) == unit
    for _ in range(NODE_ATTEMPTS):
        backlog.failed(UNIT, "no", node="a")
        assert backlog.take() == UNIT
    backlog.put_back(UNIT)
    backlog.put_back(UNITS[1])
    assert backlog.take_for("a", {"b"}) == UNITS[1]
    assert backlog.take_for("a", {"a", "b"}) is None and len(backlog) == 1
    assert backlog.take_for("a", {"a"}) == UNIT, "nobody else is there"


def test_what_a_gpu_says_is_its_own_fault_also_where_something_else_came_of_it():
    assert not device_failed(ArithmeticError("wrong"))
    for words in ("CUDA error: unspecified launch failure", "HIP error: invalid device function"):
        assert device_failed(RuntimeError(words))
    try:
        try:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        except RuntimeError as cause:
            raise KeyError("layer") from cause
    except KeyError as error:
        assert device_failed(error)


def loses_its_gpu() -> Callable[[WorkUnit], None]:
    def work(unit: WorkUnit) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    return work


def test_a_run_in_this_process_ends_with_its_gpu():
    outcomes = InProcess().run(loses_its_gpu, UNITS)
    assert next(outcomes).error == "RuntimeError: CUDA error: device-side assert triggered"
    with pytest.raises(UserError, match="this process has lost its GPU"):
        next(outcomes)


def test_a_run_of_ranks_ends_with_the_last_gpu():
    outcomes = MpiPool(InTurn("a"), 1, frozenset("a")).run(loses_its_gpu, UNITS)
    assert next(outcomes).error == "RuntimeError: CUDA error: device-side assert triggered"
    with pytest.raises(UserError, match="all ranks have lost their GPUs, the last one by RuntimeError: CUDA"):
        next(outcomes)


def test_ray_actors_go_on_beside_one_without_a_gpu():
    crew = _Crew(b"", Backlog([UNIT]), 2, Demand())
    lost = Reply(error="RuntimeError: CUDA error: no device", start=True, broken=True)
    crew.actors["busy"] = _Actor(Handle(), UNITS[1], node="a")
    for _ in range(MAX_ATTEMPTS + 1):
        crew.check_start(lost)
    assert crew.num_broken == MAX_ATTEMPTS + 1 and lost.useless
    del crew.actors["busy"]
    with pytest.raises(UserError, match="no Ray worker can start: RuntimeError: CUDA error: no device"):
        for _ in range(MAX_ATTEMPTS):
            crew.check_start(lost)


class Handle:
    """An actor that only says what it is asked for."""

    def __getattr__(self, name: str) -> Any:
        handle = type("Method", (), {})()
        handle.remote = lambda *arguments: (name, id(self), *arguments)
        return handle


def failed_on(node: str) -> Backlog:
    """A unit that waits after it has failed often on a node."""
    backlog = Backlog([UNIT])
    backlog.take()
    for _ in range(NODE_ATTEMPTS):
        backlog.failed(UNIT, "no", node=node)
        backlog.take()
    backlog.put_back(UNIT)
    return backlog


def test_ray_actors_rest_while_only_another_nodes_units_wait():
    crew = _Crew(b"", failed_on("a"), 2, Demand())
    first, second = _Actor(Handle(), node="a"), _Actor(Handle(), node="b")
    crew.actors["elsewhere"] = second
    crew.go_on(first, alive=True)
    assert first.unit is None and [task[0] for task in crew.actors] == ["e", "rest"] and crew.has_work()
    del crew.actors["elsewhere"]
    crew.go_on(second, alive=True)
    assert second.unit == UNIT


def test_ray_actors_that_are_kept_get_the_units_of_the_next_run(monkeypatch: pytest.MonkeyPatch):
    ended: list[str] = []
    monkeypatch.setattr("hpcmpq.executors.ray_pool._kill", lambda actor: ended.append(actor.node))
    pool = RayPool(2, Demand())
    idle = _Actor(Handle(), node="a")
    _Crew(b"", Backlog([]), 2, Demand(), pool._kept).go_on(idle, alive=True)
    crew = _Crew(b"", Backlog([UNIT]), 2, Demand(), pool._kept)
    crew.next_look_s = float("inf")  # no look at a cluster
    crew.grow()
    assert idle.unit == UNIT and list(crew.actors.values()) == [idle] and not pool._kept and not ended
    crew.go_on(idle, alive=True)
    assert idle.unit is None and pool._kept == [idle] and not crew.backlog
    assert list(pool.run(_no_worker, [], keep=True)) == [] and ended == ["a"]  # for another recipe


def _no_worker() -> Worker:
    raise AssertionError("no unit was given")


def test_no_ray_actor_rests_for_one_that_waits_for_room():
    crew = _Crew(b"", failed_on("a"), 3, Demand())
    crew.actors["starts"] = _Actor(Handle())  # which Ray has given no node
    first, crew.actors["busy"] = _Actor(Handle(), node="a"), _Actor(Handle(), UNITS[1], node="a")
    crew.go_on(first, alive=True)
    assert first.unit == UNIT


def test_what_failed_twice_on_this_node_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plan: Plan = synthetic_plan()
    run, bad = RunDir(tmp_path), plan.units[2]
    monkeypatch.setattr("hpcmpq.units.node_name", lambda: "a")
    with recording(run, "a") as record:
        backlog = Backlog([])
        for _ in range(NODE_ATTEMPTS):
            record(backlog.failed(bad, "no", node="a"))
    SEEN.clear()
    run_missing(run, plan, notes, InProcess(), lambda *_: None)
    assert len(SEEN) == len(plan.units) and SEEN[-1] == bad
    assert SEEN[:-1] == sorted((u for u in plan.units if u != bad), key=lambda u: -u.size)
