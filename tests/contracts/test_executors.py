"""What every executor must do. Each test runs the command that a user would, on units of a toy worker.

MPI differs in one point: a killed rank aborts the job (MPI gives no choice), and the same command goes on.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from hpcmpq.executors import EXECUTORS, MAX_ATTEMPTS
from tests.executors.launch import MARKS, command_line, run
from tests.executors.toy_units import UNITS, attempts, make_toy_worker, shards

pytestmark = pytest.mark.slow

VICTIM = UNITS[2]
OTHERS = [unit for unit in UNITS if unit != VICTIM]


@dataclass(frozen=True)
class Ending:
    """How a command ended: what it said of each attempt, in order."""

    status: int
    outcomes: list[tuple[str, str | None, bool]]
    errors: str


@pytest.fixture(params=[pytest.param(name, marks=MARKS[name]) for name in EXECUTORS])
def executor(request: pytest.FixtureRequest) -> str:
    if request.param == "ray":
        request.getfixturevalue("ray_cluster")
    return request.param


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Shards of one process without an executor."""
    path = tmp_path_factory.mktemp("reference")
    work = make_toy_worker(str(path))
    for unit in UNITS:
        work(unit)
    return shards(path)


def run_toys(executor: str, path: Path) -> Ending:
    ended = run(command_line(executor, "tests.executors.run_toys", executor, path))
    lines = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("[")]
    return Ending(ended.returncode, [tuple(line) for line in lines], ended.stderr)


def test_same_shards_bit_for_bit_each_unit_once_in_the_order_given(executor, tmp_path, reference):
    ending = run_toys(executor, tmp_path)
    assert ending.status == 0, ending.errors
    assert shards(tmp_path) == reference
    assert sorted(ending.outcomes) == sorted((unit.id, None, True) for unit in UNITS)
    order = attempts(tmp_path)
    assert sorted(order) == sorted(unit.id for unit in UNITS)
    first = min(unit.size for unit in UNITS)
    assert {unit.id for unit in UNITS if unit.size == first} >= set(order[:2])
    assert not list((tmp_path / "shards").glob(".*"))


def test_unit_that_always_raises_is_reported_while_the_run_goes_on(executor, tmp_path, reference):
    (tmp_path / f"raise-{VICTIM.id}").touch()
    ending = run_toys(executor, tmp_path)
    assert ending.status == 0, ending.errors
    error = f"ArithmeticError: unit {VICTIM.id} always raises"
    told = [outcome[1:] for outcome in ending.outcomes if outcome[0] == VICTIM.id]
    assert told == [(error, False)] * (MAX_ATTEMPTS - 1) + [(error, True)]
    assert ending.errors.count("Traceback") == 1, (
        "the traceback of the last attempt, for whoever has to debug it"
    )
    assert shards(tmp_path) == {name: data for name, data in reference.items() if VICTIM.id not in name}
    assert sorted(attempts(tmp_path)) == sorted([unit.id for unit in OTHERS] + [VICTIM.id] * MAX_ATTEMPTS)


def test_killed_worker_loses_only_its_unit(executor, tmp_path, reference):
    (tmp_path / f"kill-once-{VICTIM.id}").touch()
    ending = run_toys(executor, tmp_path)
    if executor == "mpi":
        assert ending.status != 0
        ending = run_toys(executor, tmp_path)
    else:
        told = [outcome[1:] for outcome in ending.outcomes if outcome[0] == VICTIM.id]
        assert [final for _, final in told] == [False, True]
        assert told[0][0] is not None and told[1][0] is None
        assert sorted(attempts(tmp_path)) == sorted([unit.id for unit in UNITS] + [VICTIM.id])
    assert ending.status == 0, ending.errors
    assert shards(tmp_path) == reference


def test_unit_that_kills_its_workers_costs_the_others_nothing(executor, tmp_path, reference):
    if executor == "mpi":
        pytest.skip("a killed rank aborts an MPI job")
    (tmp_path / f"deadly-{VICTIM.id}").touch()
    ending = run_toys(executor, tmp_path)
    assert ending.status == 0, ending.errors
    failed = [(unit, final) for unit, error, final in ending.outcomes if error is not None]
    assert failed == [(VICTIM.id, False)] * (MAX_ATTEMPTS - 1) + [(VICTIM.id, True)]
    assert shards(tmp_path) == {name: data for name, data in reference.items() if VICTIM.id not in name}


def test_a_worker_whose_device_failed_measures_no_more(executor, tmp_path, reference):
    (tmp_path / f"device-fails-once-{UNITS[1].id}").touch()  # the first to be handed out
    ending = run_toys(executor, tmp_path)
    assert ending.status == 0, ending.errors
    failed = [outcome for outcome in ending.outcomes if outcome[1] is not None]
    assert failed == [(UNITS[1].id, "RuntimeError: CUDA error: device-side assert triggered", False)]
    assert shards(tmp_path) == reference


def test_others_go_on_without_a_worker_that_gets_no_device(executor, tmp_path, reference):
    (tmp_path / "no-device-once").touch()
    ending = run_toys(executor, tmp_path)
    assert ending.status == 0, ending.errors
    assert sorted(ending.outcomes) == sorted((unit.id, None, True) for unit in UNITS)
    assert shards(tmp_path) == reference


def test_a_run_ends_where_no_worker_gets_a_device(executor, tmp_path):
    (tmp_path / "no-device").touch()
    ending = run_toys(executor, tmp_path)
    assert ending.status == 2
    assert "RuntimeError: CUDA error: no device" in ending.errors and not ending.outcomes


@pytest.mark.parametrize(
    ("trip", "sentence"),
    [
        ("bad-model", "hpcmpq: the model is missing"),
        (f"full-{VICTIM.id}", "hpcmpq: cannot write: no space left on device"),
    ],
)
def test_what_would_stop_every_unit_ends_the_run_with_one_sentence(executor, tmp_path, trip, sentence):
    (tmp_path / trip).touch()
    ending = run_toys(executor, tmp_path)
    assert ending.status == 2
    notices = ("Abort(", "waiting for the other ranks of MPI")  # the latter where ranks take seconds to start
    assert [line for line in ending.errors.splitlines() if not line.startswith(notices)] == [sentence]


def test_worker_that_cannot_be_made_ends_the_run(executor, tmp_path):
    (tmp_path / "broken-start").touch()
    ending = run_toys(executor, tmp_path)
    assert ending.status == 2
    sentence = ending.errors.splitlines()[-1] if executor != "mpi" else ending.errors
    assert "start: ImportError: no module named 'there'" in sentence
    assert not ending.outcomes


def test_worker_that_dies_while_it_starts_ends_the_run(executor, tmp_path):
    (tmp_path / "deadly-start").touch()
    ending = run_toys(executor, tmp_path)
    assert ending.status == (9 if executor == "mpi" else 2)
    assert not ending.outcomes and not attempts(tmp_path)
    assert "lost" in ending.errors or "died" in ending.errors or executor == "mpi"
