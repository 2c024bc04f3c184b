"""The order in which units are handed out."""

from hpcmpq.executors import MAX_ATTEMPTS
from hpcmpq.executors.backlog import Backlog
from tests.executors.toy_units import UNITS


def taken(backlog: Backlog) -> list[str]:
    return [backlog.take().id for _ in range(len(backlog))]


def test_units_of_any_size_come_in_the_order_given():
    assert [unit.size for unit in UNITS] == [8, 4] * 3
    for units in (UNITS, UNITS[::-1]):
        assert taken(Backlog(units)) == [unit.id for unit in units]


def test_failed_unit_goes_to_the_end_until_its_last_attempt():
    backlog = Backlog(UNITS)
    unit = backlog.take()
    for attempt in range(1, MAX_ATTEMPTS + 1):
        outcome = backlog.failed(unit, "boom")
        assert outcome.final == (attempt == MAX_ATTEMPTS) and outcome.error == "boom"
        waiting = taken(Backlog(UNITS))[1:]
        assert len(backlog) == len(waiting) + (not outcome.final)
        if not outcome.final:
            while backlog.take() != unit:
                pass
            backlog = _refilled(backlog)


def _refilled(backlog: Backlog) -> Backlog:
    for unit in reversed(UNITS[1:]):
        backlog.put_back(unit)
    return backlog


def test_unit_that_nobody_looked_at_comes_next_and_is_no_attempt():
    backlog = Backlog(UNITS)
    unit = backlog.take()
    for _ in range(2 * MAX_ATTEMPTS):
        backlog.put_back(unit)
        assert backlog.take() == unit
    assert not backlog.failed(unit, "boom").final
