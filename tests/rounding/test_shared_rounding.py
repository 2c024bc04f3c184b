"""Rounding again by several workers: the bits of one process, wherever steps run and whoever dies meanwhile."""

import os
import shutil
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hpcmpq.errors import UserError
from hpcmpq.executors.in_process import InProcess
from hpcmpq.plan import WorkUnit
from hpcmpq.quantized.applied import quantized_model
from hpcmpq.rounding import METHODS, attempt, pieces, taking
from hpcmpq.rounding import stage as reround_stage
from hpcmpq.rounding.again import RoundingAgain
from hpcmpq.rounding.again_units import SharedRounding
from hpcmpq.rounding.again_worker import make_worker
from hpcmpq.rounding.cuts import Cuts
from hpcmpq.rounding.stage import reround
from hpcmpq.space import Member
from hpcmpq.store.json_files import read_json
from hpcmpq.store.run_dir import RunDir
from tests.executors.background import Background, wait_until
from tests.executors.launch import MARKS, command_line
from tests.executors.launch import run as run_command
from tests.export.planned import llama, plan_run, solve_by_turns
from tests.rounding.reround_runs import SMALL
from tests.rounding.test_reround import NAMES, stream, unseen

pytestmark = pytest.mark.slow

MODULE = "tests.rounding.reround_runs"


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run, plan = plan_run(
        tmp_path_factory.mktemp("shared"), llama(), torch.float32, formats=NAMES,
        quantizer={"rounding": "gptq", "group_size": 64},
    )  # fmt: skip
    solve_by_turns(run, plan)
    return run


@pytest.fixture(autouse=True)
def small_cuts_all_kept(monkeypatch):
    """In this process, whose losses decide; `SMALL` goes to workers with the attempt."""
    monkeypatch.setattr(reround_stage, "CUTS", SMALL)
    monkeypatch.setattr(reround_stage, "is_better", lambda *_: True)


def copy_of(planned: RunDir, path: Path) -> RunDir:
    shutil.copytree(planned.path, path)
    return RunDir(path)


def result(run: RunDir) -> tuple[dict[str, bytes], dict[str, Any]]:
    """{file: bytes} of the codes, and what the solution says of the attempt, but for its time."""
    found = read_json(run.solution_path, "")["reround"]
    codes = {path.name: path.read_bytes() for path in (run.path / "rerounded" / found["codes"]).iterdir()}
    assert len(codes) == 11
    last = {name: value for name, value in found["history"][-1].items() if name != "seconds"}
    return codes, {**found, "history": [*found["history"][:-1], last]}


@pytest.fixture(scope="module")
def expected(planned: RunDir, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """{method: result} of this process alone."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reround_stage, "CUTS", SMALL)
        patch.setattr(reround_stage, "is_better", lambda *_: True)
        for method in METHODS:
            run = copy_of(planned, tmp_path_factory.mktemp(method) / "run")
            reround(run, method, None, unseen)
            found[method] = result(run)
    return found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("streamed", [False, True])
def test_units_make_the_bits_of_one_process(method, streamed, planned, expected, tmp_path):
    run = copy_of(planned, tmp_path / "run")
    if streamed:
        stream(run)
    seen: list[tuple[int, int]] = []
    reround(run, method, None, lambda *done: seen.append(done), InProcess())
    assert result(run) == expected[method]
    assert seen[-1] == (11, 11) and not (run.path / "reround").exists()
    reround(run, method, None, unseen, InProcess())  # all is there
    assert result(run) == expected[method]


WAYS = [
    pytest.param("local", 1, id="one local process"),
    pytest.param("local", 2, id="two local processes"),
    pytest.param("mpi", 0, id="three MPI ranks", marks=MARKS["mpi"]),
    pytest.param("ray", 0, id="two Ray nodes", marks=MARKS["ray"]),
]


@pytest.mark.parametrize(("executor", "num_workers"), WAYS)
def test_same_bits_wherever_units_run(executor, num_workers, planned, expected, tmp_path, request):
    if executor == "ray":
        request.getfixturevalue("ray_cluster")
    run = copy_of(planned, tmp_path / "run")
    done = run_command(command_line(executor, MODULE, executor, num_workers, "0/1", run.path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert result(run) == expected["qep"]


@pytest.mark.parametrize("all_of_them", [True, False])
def test_killed_in_the_middle_and_resumed(all_of_them, planned, expected, tmp_path):
    """Of all processes at once, and of a worker alone, whose unit another process does."""
    run = copy_of(planned, tmp_path / "run")
    command = command_line("local", MODULE, "local", 2, "0/1", run.path)
    with Background(command) as background:
        wait_until(lambda: len(list(run.path.glob("rerounded/*/*.h5"))) >= 3, "three weights are rounded")
        doomed = background.descendants()
        if not all_of_them:
            others = {background.process.pid}
            doomed = [number for number in doomed if number not in others and is_worker(number)][:1]
        for number in doomed:
            os.kill(number, signal.SIGKILL)
        status, output = background.end()
        assert status == (-signal.SIGKILL if all_of_them else 0), output
    if all_of_them:
        made = {path: path.stat().st_mtime_ns for path in run.path.glob("rerounded/*/*.h5")}
        assert 3 <= len(made) < 11
        reround(run, "qep", None, unseen, InProcess())
        assert {path: path.stat().st_mtime_ns for path in made} == made
    assert result(run) == expected["qep"]


def is_worker(number: int) -> bool:
    """Whether a process is one that Python's multiprocessing started to work, not to clean up."""
    return b"spawn_main" in Path(f"/proc/{number}/cmdline").read_bytes()


def test_one_process_goes_on_where_workers_stopped_and_the_other_way_round(planned, expected, tmp_path):
    def stop(done: int, total: int) -> None:
        if done >= 5:
            raise KeyboardInterrupt

    for name, first, then in (("a", InProcess(), None), ("b", None, InProcess())):
        run = copy_of(planned, tmp_path / name)
        with pytest.raises(KeyboardInterrupt):
            reround(run, "qep", None, stop, first)
        made = {path: path.stat().st_mtime_ns for path in run.path.glob("rerounded/*/*.h5")}
        assert 5 <= len(made) < 11
        reround(run, "qep", None, unseen, then)
        assert {path: path.stat().st_mtime_ns for path in made} == made
        assert result(run) == expected["qep"]


@pytest.mark.parametrize("kind", ["states", "order", "outline"])
def test_a_damaged_shard_is_named_and_made_anew(kind, planned, expected, tmp_path):
    run = copy_of(planned, tmp_path / "run")

    def stop(done: int, total: int) -> None:
        if done >= 5:
            damaged = list(run.path.glob(f"reround/shards/*-{kind}*.h5"))
            for path in damaged:
                path.write_bytes(path.read_bytes()[:-100])
            if damaged:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reround(run, "qep", None, stop, InProcess())

    for _ in range(2 * SMALL.ranges):
        try:
            reround(run, "qep", None, unseen, InProcess())
            break
        except UserError as error:
            assert f"run `hpcmpq reround {run.path}` again" in str(error)
    assert result(run) == expected["qep"]


def test_processes_that_share_the_run_directory_come_to_the_same_end(planned, expected, tmp_path):
    run = copy_of(planned, tmp_path / "run")
    commands = [command_line("local", MODULE, "local", 1, f"{index}/2", run.path) for index in range(2)]
    with Background(commands[0]) as first, Background(commands[1]) as second:
        for status, output in (first.end(), second.end()):
            assert status == 0, output
    assert result(run) == expected["qep"]
    assert len(read_json(run.solution_path, "")["reround"]["history"]) == 1
    assert not (run.path / "reround" / "shards").exists()


def test_nobody_waits_for_a_process_that_never_comes(planned, expected, tmp_path, monkeypatch):
    """And one that comes when all is over changes nothing."""
    monkeypatch.setattr(taking, "LEAST_PATIENCE_S", 0.0)
    monkeypatch.setattr(taking, "PATIENCE", 0.0)
    run = copy_of(planned, tmp_path / "run")
    reround(run, "qep", None, unseen, InProcess(), (1, 3))
    assert result(run) == expected["qep"]
    solution = run.solution_path.read_bytes()
    for before in (run, planned):  # where the one that ended it was killed before it wrote the solution, too
        shutil.copy(before.solution_path, run.path / "copy")
        (run.path / "copy").replace(run.solution_path)
        reround(run, "qep", None, unseen, InProcess(), (0, 3))
        assert run.solution_path.read_bytes() == solution


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run, plan = plan_run(
        tmp_path_factory.mktemp("deep"), llama(num_hidden_layers=4), torch.float32, formats=["int2", "int3"]
    )
    solve_by_turns(run, plan)
    return run


@pytest.mark.parametrize("idle", [False, True])
def test_a_process_that_is_blocks_behind_others_goes_on_with_what_they_made(
    idle, deep, tmp_path, monkeypatch
):
    """Whose states are gone by then, and where a layer is given nothing, so that it has no codes."""
    monkeypatch.setattr(taking, "LEAST_PATIENCE_S", 0.0)
    monkeypatch.setattr(taking, "PATIENCE", 0.0)
    monkeypatch.setattr(attempt, "SEEN_S", 0.0)
    monkeypatch.setattr(reround_stage, "CUTS", replace(SMALL, positions=32))  # no worker holds all samples
    sums = RoundingAgain.sums

    def some_idle(again, piece, same, *others):
        found = sums(again, piece, same, *others)
        is_idle = idle and any(m.parameter.endswith("layers.1.mlp.down_proj.weight") for m in same.layers)
        return replace(found, num_rows=0) if is_idle else found

    monkeypatch.setattr(RoundingAgain, "sums", some_idle)
    alone, run = copy_of(deep, tmp_path / "alone"), copy_of(deep, tmp_path / "run")
    wanted = reround(alone, "qep", None, unseen)
    ahead: list[int] = []

    def stop(done: int, total: int) -> None:
        if done >= 22:  # in the last block
            ahead.append(done)
            raise KeyboardInterrupt

    class Behind(InProcess):
        def run(self, make_worker, units, keep=False):
            if not ahead and any("-1-states-" in unit.id for unit in units):
                with pytest.raises(KeyboardInterrupt):
                    reround(run, "qep", None, stop, InProcess(), (0, 2))
                assert not list(run.path.glob("reround/shards/*-1-states-*"))
            yield from super().run(make_worker, units, keep)

    found = reround(run, "qep", None, unseen, Behind(), (1, 2))
    for values in (found, wanted):
        values["reround"]["history"][0].pop("seconds")
    assert ahead and found["reround"] == wanted["reround"]
    assert len(found["reround"]["parameters"]) == 28 - idle


def test_losses_are_of_the_codes_that_were_made_or_of_none(planned, tmp_path, monkeypatch):
    """Not of the options' where another process, which ended the attempt, has removed the codes."""
    monkeypatch.setattr(attempt, "SEEN_S", 0.0)
    run, measured = copy_of(planned, tmp_path / "run"), SharedRounding.losses

    def removed_before(*given):
        for path in run.path.glob("rerounded/*/*.h5"):
            path.unlink()
        return measured(*given)

    monkeypatch.setattr(SharedRounding, "losses", removed_before)
    with pytest.raises(UserError, match="does not show on this node"):
        reround(run, "qep", None, unseen, InProcess())
    assert not list(run.path.glob("reround/shards/*-losses-after-*"))


@pytest.fixture(scope="module")
def ended(planned: RunDir, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Rounded again by one of two processes that share the run directory; the other never came."""
    run = copy_of(planned, tmp_path_factory.mktemp("ended") / "run")
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in (
            (reround_stage, "CUTS", SMALL), (reround_stage, "is_better", lambda *_: True),
            (taking, "LEAST_PATIENCE_S", 0.0), (taking, "PATIENCE", 0.0),
        ):  # fmt: skip
            patch.setattr(module, name, value)
        reround(run, "qep", None, unseen, InProcess(), (0, 2))
    return run


@pytest.mark.parametrize("part", [(0, 1), (1, 2)])
def test_damaged_codes_are_mended_whoever_made_them(part, ended, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(taking, "LEAST_PATIENCE_S", 0.0)
    monkeypatch.setattr(taking, "PATIENCE", 0.0)
    run = copy_of(ended, tmp_path / "run")
    solution = run.solution_path.read_bytes()
    first, second, *_ = sorted(run.path.glob("rerounded/*/*.h5"))
    first.write_bytes(second.read_bytes()[:-100])
    second.unlink()
    reround(run, "qep", None, unseen, InProcess(), part)
    assert result(run) == expected["qep"] and run.solution_path.read_bytes() == solution
    assert not (run.path / "reround" / ("shards" if part[1] > 1 else "")).exists()


def test_an_attempt_that_several_have_ended_is_compared_again_by_one(ended, planned, expected, tmp_path):
    """As without workers, once its codes are not the solution's."""
    run = copy_of(ended, tmp_path / "run")
    shutil.copy(planned.solution_path, run.solution_path)
    reround(run, "qep", None, unseen, InProcess())
    assert result(run) == expected["qep"]


def test_an_outcome_whose_codes_are_gone_is_none(ended, planned, expected, tmp_path, monkeypatch):
    """As after another solution was rounded again, and the first one came back."""
    monkeypatch.setattr(taking, "LEAST_PATIENCE_S", 0.0)
    monkeypatch.setattr(taking, "PATIENCE", 0.0)
    run = copy_of(ended, tmp_path / "run")
    shutil.copy(planned.solution_path, run.solution_path)
    shutil.rmtree(run.path / "rerounded")
    reround(run, "qep", None, unseen, InProcess(), (1, 2))
    assert result(run) == expected["qep"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chained", [True, False])
def test_whole_models_and_states_in_bfloat16_are_shared_too(chained, dtype, tmp_path, monkeypatch):
    if not chained:
        monkeypatch.setattr(pieces, "find_chain", lambda *_: None)
    name = str(dtype).removeprefix("torch.")
    run, plan = plan_run(
        tmp_path, llama(), formats=["int3", "int4"], reround={"method": "gptaq"},
        model={"path": str(tmp_path / "model"), "dtype": name},
    )  # fmt: skip
    solve_by_turns(run, plan)
    other = copy_of(run, tmp_path / "other")
    results = [reround(run, None, None, unseen), reround(other, None, None, unseen, InProcess())]
    for values in results:
        values["reround"]["history"][0].pop("seconds")
    assert results[0] == results[1] and results[0]["reround"]["history"][0]["num_weights"] == 14
    one, two = (quantized_model(each, results[0]["assignment"]).state_dict() for each in (run, other))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_codes_that_a_node_does_not_see_yet_are_not_taken_for_unrounded_weights(
    planned, tmp_path, monkeypatch
):
    def stop(done: int, total: int) -> None:
        if done >= 4:
            raise KeyboardInterrupt

    run = copy_of(planned, tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        reround(run, "qep", None, stop, InProcess())
    [order] = run.path.glob("reround/shards/*-1-order.h5")
    name = order.name.partition("-")[0]
    [folder] = (run.path / "rerounded").iterdir()
    folder.rename(tmp_path / "late")
    unit = WorkUnit(f"{name}-1-1-sums-0", 0, 1, 0, 1)
    work = make_worker(replace(run, measuring="reround"))
    monkeypatch.setattr(attempt, "SEEN_S", 0.3)
    with pytest.raises(UserError, match="does not show on this node what others have written there"):
        work(unit)
    monkeypatch.setattr(attempt, "SEEN_S", 60.0)
    threading.Timer(0.3, lambda: (tmp_path / "late").rename(folder)).start()
    work(unit)
    assert (run.path / "reround" / "shards" / f"{unit.id}.h5").exists()


def test_cuts_cover_all_and_do_not_depend_on_what_is_left():
    members = [Member(f"m{k}", rows, 64, rows * 64) for k, rows in enumerate((100, 30, 40, 300))]
    cuts = Cuts(row_work=64**2 * 128, fewest_rows=8)
    parts = cuts.row_parts(members, on_cpu=True)
    assert [sum(rows.stop - rows.start for _, rows in part) for part in parts] == [100, 70, 128, 128, 44]
    for member in members:
        own = [rows for part in parts for m, rows in part if m is member]
        alone = [rows for part in cuts.row_parts([member], on_cpu=True) for _, rows in part]
        assert own == alone and [r.start for r in own] == [0, *(r.stop for r in own[:-1])]
        assert own[-1].stop == member.num_rows
    assert [[m for m, _ in part] for part in cuts.row_parts(members, on_cpu=False)] == [[m] for m in members]
