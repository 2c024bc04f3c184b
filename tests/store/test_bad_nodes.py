"""Which nodes are bad, by what processes saw of them."""

import json
from pathlib import Path

from hpcmpq.plan import UnitOutcome
from hpcmpq.store.attempts import Attempt, CalibrateProcess, read_processes, recording
from hpcmpq.store.bad_nodes import bad_nodes, failed_often
from hpcmpq.store.run_dir import RunDir
from tests.synthetic_run import synthetic_plan


def process(
    host: str, *attempts: tuple[str, bool, str], job: str = "7", started: float = 0.0
) -> CalibrateProcess:
    """Of (unit, whether it failed, node or an empty string), a second each."""
    told = tuple(
        Attempt(unit, 1.0, started + i, "no" if failed else None, True, node)
        for i, (unit, failed, node) in enumerate(attempts, 1)
    )
    return CalibrateProcess(host, job, started, told)


def test_units_that_fail_twice_on_one_node_and_on_no_other_speak_against_it():
    seen = [
        process("n1", ("a", True, ""), ("b", True, ""), ("b", True, ""), ("d", True, ""), ("d", True, "")),
        process("n1", ("a", True, "")),
        process("n2", ("a", False, ""), ("c", True, ""), ("d", True, ""), ("d", True, "")),
    ]
    assert failed_often(seen) == {"a": {"n1"}, "b": {"n1"}, "d": {"n1", "n2"}}
    assert bad_nodes(seen) == {"n1": 2}, "c failed once, and d everywhere"


def test_a_unit_that_failed_once_elsewhere_too_speaks_against_itself():
    """A pool tries it twice on a node and then on another, for the last time."""
    seen = [process("n1", ("a", True, "n1"), ("a", True, "n1"), ("a", True, "n2"))]
    assert failed_often(seen) == {"a": {"n1"}} and bad_nodes(seen) == {}


def test_it_is_the_node_of_the_worker_that_counts():
    assert bad_nodes([process("n1", ("a", True, "n2"), ("a", True, "n2"))]) == {"n2": 1}


def test_a_node_is_bad_only_where_another_took_part_that_is_not():
    twice = ("a", True, ""), ("a", True, "")
    for job in ("", "7"):
        assert bad_nodes([process("n1", *twice, job=job)]) == {}
        assert bad_nodes([process("n1", *twice, job=job), process("n2", job=job)]) == {"n1": 1}
    assert bad_nodes([process("n1", *twice, ("b", False, "n2"))]) == {"n1": 1}
    assert bad_nodes([process("n1", *twice), process("n2", ("b", True, ""), ("b", True, ""))]) == {}


def test_what_succeeds_on_a_node_later_speaks_for_it_again():
    failed, other = ("a", True, ""), process("n2", ("a", False, ""))
    seen = [other, process("n1", failed, failed, failed)]
    assert bad_nodes(seen) == {"n1": 1}
    assert bad_nodes([*seen, process("n1", ("a", False, ""), started=2.5)]) == {}
    assert bad_nodes([other, process("n1", failed, failed, failed, ("a", False, ""))]) == {}


def test_a_node_that_works_for_a_process_that_began_later_was_mended():
    failed, done = ("a", True, ""), ("b", False, "")
    seen = [process("n2", ("a", False, "")), process("n1", failed, failed)]
    assert bad_nodes([*seen, process("n1", done, started=1.5)]) == {"n1": 1}, (
        "it began while the other worked"
    )
    assert bad_nodes([*seen, process("n1", done, started=9.0)]) == {}
    assert bad_nodes([*seen, process("n1", done, failed, failed, started=9.0)]) == {"n1": 1}


def test_records_hold_the_node_and_older_ones_are_read_without(tmp_path: Path):
    run, unit = RunDir(tmp_path), synthetic_plan().units[0]
    with recording(run, "n1") as record:
        record(UnitOutcome(unit, 0.0, "no", False, "n2"))
    [path] = run.attempts_path.iterdir()
    [seen] = read_processes(run)
    assert (seen.host, seen.attempts[0].node) == ("n1", "n2")
    first, line = map(json.loads, path.read_text().splitlines())
    del line["node"]
    path.write_text(f"{json.dumps(first)}\n{json.dumps(line)}\n")
    [seen] = read_processes(run)
    assert (seen.attempts[0].unit_id, seen.attempts[0].node) == (unit.id, "")
