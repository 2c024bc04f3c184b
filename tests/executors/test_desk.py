"""Which unit of several runs a worker gets, and what a run that fails leaves to the others."""

import pickle
import random
from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcmpq.errors import IncompleteCalibration, Infeasible, UserError
from hpcmpq.executors.backlog import Backlog
from hpcmpq.executors.batches import Batches, UnitBatch
from hpcmpq.executors.desk import LoneDesk, SharedDesk
from hpcmpq.plan import UnitOutcome, WorkUnit, make_units


def make_worker(name: str) -> Callable[[WorkUnit], None]:
    raise AssertionError(f"nobody measures {name} here")


def units_of(name: str, count: int) -> tuple[WorkUnit, ...]:
    return make_units(name, 1, count, groups_per_unit=1, samples_per_unit=1)


def a_run(name: str, counts: list[int], seen: list[str], error: Exception | None = None) -> Batches[None]:
    """Batches of so many units each, then perhaps an error."""
    seen.append(f"{name} begins")
    for number, count in enumerate(counts):
        yield UnitBatch(
            partial(make_worker, f"{name}{number}"),
            units_of(f"{name}{number}", count),
            lambda _: seen.append(name),
        )
    seen.append(f"{name} ends")
    if error is not None:
        raise error


def shared(
    seen: list[str],
    *counts: list[int],
    num_workers: int = 4,
    at_once: bool = True,
    errors: dict[int, str] | None = None,
) -> SharedDesk:
    told = {} if errors is None else errors
    runs = [a_run(name, each, seen) for name, each in zip("abc", counts, strict=False)]
    return SharedDesk(
        runs, lambda number, error: told.update({number: str(error)}), num_workers, at_once=at_once
    )


def name_of(backlog: Backlog) -> str:
    return pickle.loads(backlog.recipe).args[0][0]


def done(unit: WorkUnit) -> UnitOutcome:
    return UnitOutcome(unit, 1.0)


def test_neighbours_begin_with_one_run_stay_with_theirs_and_then_go_where_most_units_are_left():
    desk = shared([], [12], [3], [6], num_workers=7)  # 3 units a worker
    first = [desk.take(None) for _ in range(7)]
    assert [name_of(backlog) for backlog, _ in first] == ["a"] * 4 + ["b"] + ["c"] * 2
    backlog, unit = first[4]
    rest = []
    for _ in range(3):
        desk.seen(backlog, done(unit))
        backlog, unit = desk.take(backlog)
        rest.append(name_of(backlog))
    # Of 12 units in a each of 5 workers would have 2.4, of 6 in c each of 3 would have 2; the mean is 18/7.
    assert rest == ["b", "b", "a"]


def test_runs_one_after_the_other_begin_when_no_unit_waits():
    seen: list[str] = []
    desk = shared(seen, [1], [1], at_once=False)
    assert not seen
    first = desk.take(None)
    assert seen == ["a begins"]
    second = desk.take(None)
    assert seen == ["a begins", "b begins"] and name_of(second[0]) == "b", (
        "while a unit of the first is measured"
    )
    assert desk.take(None) is None
    desk.seen(first[0], done(first[1]))
    assert seen[2:] == ["a", "a ends"]


def test_the_next_batch_of_a_run_waits_for_the_last_unit_of_the_one_before():
    seen: list[str] = []
    desk = shared(seen, [2, 1])
    one, two = desk.take(None), desk.take(None)
    desk.seen(one[0], done(one[1]))
    assert desk.take(one[0]) is None
    desk.seen(two[0], UnitOutcome(two[1], 0.0, "boom", final=False))  # it waits again in its backlog
    assert desk.take(one[0]) is None
    desk.seen(two[0], UnitOutcome(two[1], 0.0, "boom"))
    assert pickle.loads(desk.take(one[0])[0].recipe).args == ("a1",)
    assert seen == ["a begins", "a", "a", "a"]


def test_a_run_that_fails_for_all_its_units_leaves_the_others_alone():
    seen: list[str] = []
    errors: dict[int, str] = {}
    desk = shared(seen, [3], [2], errors=errors)
    backlog, unit = desk.take(None)
    other = desk.take(backlog)
    assert name_of(backlog) == "a"
    desk.refuse(backlog, UserError("the model is missing"))
    desk.refuse(backlog, UserError("the model is missing"))  # another worker finds it too
    assert errors == {0: "the model is missing"}
    backlog.put_back(other[1])
    desk.seen(backlog, done(unit))
    assert [name_of(desk.take(backlog)[0]) for _ in range(2)] == ["b", "b"]
    assert desk.take(backlog) is None and "a" not in seen and "a ends" not in seen


@pytest.mark.parametrize("error", [IncompleteCalibration("1 unit failed"), Infeasible("no assignment")])
def test_what_a_run_says_at_its_end_or_before_its_first_unit_is_told(error):
    for counts in ([1], []):
        errors: dict[int, str] = {}
        runs = [a_run("a", counts, [], error), a_run("b", [1], [])]
        desk = SharedDesk(
            runs, lambda number, error, told=errors: told.update({number: str(error)}), 1, at_once=False
        )
        for _ in range(len(counts) + 1):
            backlog, unit = desk.take(None)
            desk.seen(backlog, done(unit))
        assert errors == {0: str(error)} and name_of(backlog) == "b"


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            PermissionError(13, "Permission denied", "runs/a/attempts/1.jsonl"),
            "make room or permission there",
        ),
        (OSError(5, "Input/output error", "runs/a/shards/1.h5"), "the file system failed there"),
        (MemoryError(), "there is not enough memory"),
    ],
)
def test_what_lacks_where_one_run_lies_ends_that_run_alone(error: Exception, sentence: str):
    errors: dict[int, str] = {}
    runs = [a_run("a", [], [], error), a_run("b", [1], [])]
    desk = SharedDesk(runs, lambda number, error: errors.update({number: str(error)}), 1, at_once=True)
    assert list(errors) == [0] and sentence in errors[0]
    assert name_of(desk.take(None)[0]) == "b"


def test_a_bug_in_a_run_is_no_reason_to_go_on():
    desk = SharedDesk([a_run("a", [1], [], KeyError("bug")), a_run("b", [1], [])], print, 1, at_once=True)
    backlog, unit = desk.take(None)
    with pytest.raises(KeyError):
        desk.seen(backlog, done(unit))


def test_alone_what_stops_every_unit_is_raised():
    desk = LoneDesk(Backlog(units_of("a", 1)))
    with pytest.raises(UserError, match="the model is missing"):
        desk.refuse(desk.backlog, UserError("the model is missing"))


@given(
    st.lists(st.lists(st.integers(1, 5), max_size=3), min_size=1, max_size=3),
    st.integers(1, 6),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_every_unit_is_handed_out_once_however_workers_end(
    counts: list[list[int]], num_workers: int, at_once: bool, chance: random.Random
):
    seen: list[str] = []
    desk = shared(seen, *counts, num_workers=num_workers, at_once=at_once)
    held: list[Backlog | None] = [None] * num_workers
    busy: dict[int, tuple[Backlog, WorkUnit]] = {}
    handed_out: Counter[str] = Counter()
    while True:
        for worker in set(range(num_workers)) - busy.keys():
            if (handed := desk.take(held[worker])) is not None:
                waits = held[worker] is not None and len(held[worker]) > 0 and handed[0] is not held[worker]
                assert not waits, "a worker leaves its run only where none of its units waits"
                busy[worker] = handed
                held[worker] = handed[0]
                handed_out[handed[1].id] += 1
        if not busy:
            break
        backlog, unit = busy.pop(chance.choice(sorted(busy)))
        desk.seen(backlog, done(unit))
    assert set(handed_out.values()) <= {1} and handed_out.total() == sum(map(sum, counts))
    assert [name for name in seen if name.endswith("ends")] and sorted(
        name for name in seen if name.endswith("ends")
    ) == [f"{name} ends" for name, _ in zip("abc", counts, strict=False)]
