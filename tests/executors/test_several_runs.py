"""Workers that serve several runs: each run has the bits that it has alone, whatever happens to the others."""

import json
import os
import shutil
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from hpcmpq.api import several
from hpcmpq.errors import UserError
from hpcmpq.executors.desk import SEVERAL
from hpcmpq.plan import plan_to_json
from hpcmpq.store.json_files import write_json
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.shards import Shard, write_shard
from tests.calling import Call
from tests.executors.background import Background, wait_until
from tests.executors.launch import MARKS, ROOT, command_line, environment, mpich_memory_freed, run
from tests.executors.tiny_model import PAUSE_S
from tests.executors.tiny_run import plan_run, result
from tests.executors.toy_units import UNITS, attempts, make_toy_worker, shards
from tests.synthetic_run import synthetic_plan

pytestmark = pytest.mark.slow

METHODS = {"a": "secant", "b": "hessian", "c": "secant"}
"""Of three runs: the second makes codes first, and the third has the same units as the first."""


@pytest.fixture(params=[pytest.param(name, marks=MARKS[name]) for name in SEVERAL])
def executor(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def planned(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> dict[str, RunDir]:
    """Three planned run directories."""
    kept = tmp_path_factory.getbasetemp() / "planned-several"
    if not kept.exists():
        for name, method in METHODS.items():
            plan_run(kept / name, method)
    shutil.copytree(kept, tmp_path / "runs")
    return {name: RunDir(tmp_path / "runs" / name) for name in METHODS}


def command(runs: dict[str, RunDir], executor: str = "local", *options: object) -> list[str]:
    paths = [each.path for each in runs.values()]
    return command_line(executor, "hpcmpq", "calibrate", *paths, "--executor", executor, *options)


def assert_same_bits(runs: dict[str, RunDir], reference) -> None:
    for name, each in runs.items():
        assert result(each) == reference(METHODS[name]), name


@pytest.mark.parametrize(
    ("executor", "num_workers"),
    [
        ("local", 1),
        ("local", 2),
        pytest.param("mpi", 0, marks=MARKS["mpi"]),
    ],
)
def test_each_run_has_the_bits_that_it_has_alone(executor, num_workers, planned, reference):
    ended = run(command(planned, executor, "--workers", num_workers, "--json"))
    assert ended.returncode == 0, ended.stderr
    wanted = {"num_units": 9, "num_done": 9, "error": None}
    assert json.loads(ended.stdout) == {"runs": {str(each.path): wanted for each in planned.values()}}
    assert_same_bits(planned, reference)


def test_tasks_of_an_array_begin_with_different_runs_and_have_the_same_bits(planned, reference):
    tasks = [
        subprocess.Popen(
            command(planned, "local", "--workers", 1, "--part", f"{index}/2"),
            cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for index in range(2)
    ]  # fmt: skip
    for task in tasks:
        output, _ = task.communicate(timeout=240)
        assert task.returncode == 0, output
    assert_same_bits(planned, reference)


def test_a_damaged_run_is_named_and_the_others_go_on(planned, reference):
    plan = planned["a"].plan_path
    plan.write_text(plan.read_text()[:-40])
    ended = run(command(planned, "local", "--workers", 2, "--json"))
    assert ended.returncode == 2
    (sentence,) = [line for line in ended.stderr.splitlines() if line.startswith("hpcmpq: ")]
    assert sentence.startswith(f"hpcmpq: 1 of 3 runs failed, {planned['a'].path}: {plan} is damaged")
    found = json.loads(ended.stdout)["runs"]
    assert [found[str(each.path)]["num_done"] for each in planned.values()] == [None, 9, 9]
    assert found[str(planned["a"].path)]["error"] in sentence
    assert_same_bits({name: planned[name] for name in "bc"}, reference)


def test_a_signal_ends_all_with_75_kill_loses_nothing_and_the_same_command_goes_on(planned, reference):
    def num_shards() -> int:
        return sum(len(list(each.shards_path.glob("*.h5"))) for each in planned.values())

    for name, wanted in (("SIGTERM", 1), ("SIGKILL", 7)):
        with Background(command(planned, "local", "--workers", 2), **{PAUSE_S: "0.3"}) as started:
            wait_until(lambda wanted=wanted: num_shards() >= wanted, f"{wanted} shards are there")
            os.kill(started.process.pid, signal.Signals[name])
            status, output = started.end()
        told = [line for line in output.splitlines() if line.startswith("hpcmpq: ")]
        if name == "SIGTERM":
            assert (status, told) == (75, ["hpcmpq: interrupted (SIGTERM); run the same command to go on"])
        assert num_shards() < 27
    ended = run(command(planned, "local", "--workers", 2))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert_same_bits(planned, reference)


@pytest.mark.mpi
@MARKS["mpi"][1]
def test_a_signal_to_an_mpi_job_of_several_runs(planned):
    with mpich_memory_freed(), Background(command(planned, "mpi"), **{PAUSE_S: "0.3"}) as started:
        wait_until(lambda: any(planned["a"].path.glob("shards/*.h5")), "a shard is there")
        os.kill(started.process.pid, signal.SIGTERM)
        status, output = started.end()
    assert status == 75, output
    assert "hpcmpq: interrupted (SIGTERM); run the same command to go on" in output


@pytest.fixture
def toys(tmp_path: Path) -> dict[str, Path]:
    for name in "abc":
        (tmp_path / name).mkdir()
    return {name: tmp_path / name for name in "abc"}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Shards of a toy run that one process makes without an executor."""
    path = tmp_path_factory.mktemp("alone")
    work = make_toy_worker(str(path))
    for unit in UNITS:
        work(unit)
    return shards(path)


def run_toys(executor: str, toys: dict[str, Path]) -> tuple[list[list], str]:
    """What was said of every unit and run, and standard error, of a command that ended well."""
    ended = run(command_line(executor, "tests.executors.run_several_toys", executor, *toys.values()))
    assert ended.returncode == 0, ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("[")], ended.stderr


def test_two_workers_start_once_and_measure_every_unit_of_three_runs_once(executor, toys, alone):
    said, _ = run_toys(executor, toys)
    assert sorted(said) == sorted([name, unit.id, None, True] for name in toys for unit in UNITS)
    starts = [set((path / "starts").read_text().split()) for path in toys.values()]
    assert len(set().union(*starts)) == 2, "workers are processes"
    for path in toys.values():
        assert shards(path) == alone and sorted(attempts(path)) == sorted(unit.id for unit in UNITS)


@pytest.mark.parametrize(
    ("trip", "error"),
    [
        ("bad-model", "the model is missing"),
        ("broken-start", "start: ImportError: no module named 'there'"),
        (f"full-{UNITS[1].id}", "cannot write: no space left on device"),
    ],
)
def test_what_stops_one_run_is_said_and_the_others_go_on(executor, toys, alone, trip, error):
    (toys["b"] / trip).touch()
    said, errors = run_toys(executor, toys)
    ((name, _, told, _),) = [line for line in said if line[1] == "over"]
    assert name == "b" and error in told
    assert not [line for line in said if line[2] is not None and line[1] != "over"]
    assert shards(toys["a"]) == alone and shards(toys["c"]) == alone
    assert errors.count("Traceback") <= 2 and ("Traceback" in errors) == (trip == "broken-start")


def test_what_happens_to_units_of_one_run_costs_the_others_nothing(executor, toys, alone):
    (toys["a"] / f"raise-{UNITS[2].id}").touch()
    (toys["b"] / f"device-fails-once-{UNITS[1].id}").touch()
    if executor == "local":  # a killed rank aborts an MPI job
        (toys["c"] / f"kill-once-{UNITS[3].id}").touch()
    said, _ = run_toys(executor, toys)
    failed = {(name, unit) for name, unit, error, final in said if error is not None and final}
    assert failed == {("a", UNITS[2].id)}
    assert shards(toys["b"]) == alone and shards(toys["c"]) == alone
    assert shards(toys["a"]) == {name: data for name, data in alone.items() if UNITS[2].id not in name}


def test_runs_that_cannot_share_workers_are_refused_before_anything_starts(planned, call: Call, tmp_path):
    paths = [each.path for each in planned.values()]
    for given, sentence in (
        ([*paths, paths[0]], "is given twice; give each run directory once"),
        ([*paths, "--executor", "ray"], "--executor ray serves one run at a time; give one RUN"),
    ):
        ended = call("calibrate", *given)
        assert ended.status == 2 and sentence in ended.err and not ended.out
    text = planned["b"].plan_path.read_text()
    assert text.count(str(ROOT)) >= 1
    other = tmp_path / "other"
    other.mkdir()
    moved = plan_in(other, planned["b"])
    ended = call("calibrate", paths[0], moved)
    assert ended.status == 2 and not ended.out
    assert "functions that are imported from different directories" in ended.err
    assert not [*planned["a"].path.glob("shards/*"), *planned["a"].path.glob("attempts/*")]


def test_a_copy_of_one_model_is_none_of_another(monkeypatch, tmp_path):
    plans = {}
    for name, model in (("a", "/models/first"), ("b", "/models/second"), ("c", "/models/first")):
        plan = synthetic_plan()
        config = replace(plan.config, model=replace(plan.config.model, path=model, factory=None))
        plans[tmp_path / name] = replace(plan, config=config)
    monkeypatch.setattr(several, "read_plan", lambda run, **_: plans[run.path])
    runs = [RunDir(path) for path in plans]
    several.check_together(runs)
    monkeypatch.setenv("HPCMPQ_MODEL_DIR", "/tmp/copy")
    several.check_together([runs[0], runs[2]])
    with pytest.raises(
        UserError, match="HPCMPQ_MODEL_DIR is a copy of one model, and the runs have 2; unset it"
    ):
        several.check_together(runs)


def test_a_model_of_a_function_has_no_copy(monkeypatch, tmp_path):
    plans = {}
    for name, model in (
        ("a", {"path": "/models/first", "factory": None}),
        ("b", {"factory": "m:f", "path": None}),
    ):
        plan = synthetic_plan()
        config = replace(plan.config, model=replace(plan.config.model, **model))
        plans[tmp_path / name] = replace(plan, config=config)
    monkeypatch.setattr(several, "read_plan", lambda run, **_: plans[run.path])
    monkeypatch.setenv("HPCMPQ_MODEL_DIR", "/tmp/copy")
    several.check_together([RunDir(path) for path in plans])


def test_what_has_nothing_to_measure_is_said_and_what_fails_is_not_said_to_be_done(call: Call, tmp_path):
    whole, missing = RunDir(tmp_path / "whole"), tmp_path / "missing"
    plan = synthetic_plan()
    write_json(whole.plan_path, plan_to_json(plan))
    for unit in plan.units:
        write_shard(whole, Shard("sums", unit.id, plan.fingerprint, 1, 1, {}))
    for paths, done in (((whole.path, missing), [whole.path]), ((missing, tmp_path / "other"), [])):
        ended = call("calibrate", *paths, "--workers", 1)
        lines = ended.out.splitlines()
        assert ended.status == 2 and f"{missing / 'plan.json'} is missing" in ended.err
        assert [line for line in lines if "is done" in line] == [
            f"{path}: every unit is done already" for path in done
        ]


def plan_in(import_path: Path, like: RunDir) -> Path:
    """A run directory of the same config whose functions may come from one more directory."""
    from hpcmpq.config import read_config
    from hpcmpq.planning.stage import prepare

    path = import_path / "run"
    prepare(read_config(like.path / "config.yaml"), RunDir(path), (str(ROOT), str(import_path)))
    return path


def test_each_run_reads_its_own_copy_of_its_model(monkeypatch):
    from hpcmpq.calibrate.opened import staged
    from hpcmpq.settings import ModelConfig

    models = [ModelConfig(path=path) for path in ("/models/a b", "/models/c", "/models/d")]
    monkeypatch.setenv("HPCMPQ_MODEL_COPIES", "/models/a b\t/tmp/copy 1\n/models/c\t/tmp/copy2\n")
    assert [staged(model).path for model in models] == ["/tmp/copy 1", "/tmp/copy2", "/models/d"]
    assert staged(ModelConfig(factory="m:f")).path is None
