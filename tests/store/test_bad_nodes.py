"""Which nodes are bad, by what processes saw of them."""

import json
from pathlib import Path

from hpcmpq.plan import UnitOutcome
from hpcmpq.store.attempts import Attempt, CalibrateProcess, read_processes, recording
from hpcmpq.store.bad_nodes import bad_nodes, failed_often
from hpcmpq.store.run_dir import RunDir
from tests.synthetic_run import synthetic_plan


def process(host: str, *attempts: tuple[str, bool, str], job: str = "7") -> CalibrateProcess:
    """Of (unit, whether it failed, node or an empty string)."""
    told = tuple(
        Attempt(unit, 1.0, 0.0, "no" if failed else None, True, node) for unit, failed, node in attempts
    )
    return CalibrateProcess(host, job, 0.0, told)


def test_units_that_fail_twice_on_one_node_and_on_no_other_speak_against_it():
    seen = [
        process("n1", ("a", True, ""), ("b", True, ""), ("b", True, ""), ("d", True, ""), ("d", True, "")),
        process("n1", ("a", True, "")),
        process("n2", ("a", False, ""), ("c", True, ""), ("d", True, ""), ("d", True, "")),
    ]
    assert failed_often(seen) == {"a": {"n1"}, "b": {"n1"}, "d": {"n1", "n2"}}
    assert bad_nodes(seen) == {"n1": 2}, "c failed once, and d everywhere"


def test_it_is_the_node_of_the_worker_that_counts():
    assert bad_nodes([process("n1", ("a", True, "n2"), ("a", True, "n2"))]) == {"n2": 1}


def test_a_machine_alone_is_never_bad_but_the_node_of_a_job_may_be():
    twice = ("a", True, ""), ("a", True, "")
    assert bad_nodes([process("laptop", *twice, job="")]) == {}
    assert bad_nodes([process("n1", *twice, job="7")]) == {"n1": 1}
    assert bad_nodes([process("n1", *twice, job=""), process("n2", job="")]) == {"n1": 1}


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
