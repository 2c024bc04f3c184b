"""Planned run directories of the tiny model, and what uninterrupted calibration makes of them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from hpcmpq.api.run import Run
from hpcmpq.calibrate.reduce import reduce
from hpcmpq.config import read_config
from hpcmpq.planning.stage import prepare
from hpcmpq.store.h5_files import read_number
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir
from tests.executors.launch import ROOT, command_line, run
from tests.executors.tiny_model import write_config
from tests.executors.toy_units import shards

METHODS = ("secant", "hessian")


def plan_run(path: Path, method: str = "secant") -> RunDir:
    """A planned run directory in which nothing is measured yet."""
    path.mkdir(parents=True, exist_ok=True)
    prepare(read_config(write_config(path / "config.yaml", method)), RunDir(path), (str(ROOT),))
    return RunDir(path)


def calibrate(run_dir: RunDir, executor: str = "local", num_workers: int = 1, status: int = 0) -> str:
    """`hpcmpq calibrate` in a process of its own (three for MPI), to its end; what it printed."""
    ended = run(
        command_line(
            executor, "hpcmpq", "calibrate", run_dir.path, "--executor", executor, "--workers", num_workers
        )
    )
    assert ended.returncode == status, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def calibrate_all(run_dirs: list[RunDir], executor: str, num_workers: int) -> None:
    """Calibrate several runs with one executor, each rank of MPI or driver of Ray started once."""
    paths = [run_dir.path for run_dir in run_dirs]
    ended = run(command_line(executor, "tests.executors.calibrate_runs", executor, num_workers, *paths))
    assert ended.returncode == 0, ended.stdout + ended.stderr


def result(run_dir: RunDir) -> tuple[dict[str, bytes], bytes]:
    """Bytes of all shards and stored codes, and of `quadratic.h5`; nothing is left over."""
    assert not [*run_dir.shards_path.glob(".*"), *run_dir.path.glob("rounded/.*")]
    assert len(shards(run_dir.path)) == len(read_plan(run_dir).units)
    reduce(run_dir)
    codes = {f"rounded/{path.name}": path.read_bytes() for path in run_dir.path.glob("rounded/*")}
    num_inputs = [read_number(run_dir.path / name, "num_inputs") for name in codes]
    assert num_inputs == ([48] * 3 if read_plan(run_dir).config.quantizer.rounding == "gptq" else [])
    return shards(run_dir.path) | codes, run_dir.quadratic_path.read_bytes()


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[dict[str, bytes], bytes]]:
    """Function from a method to the `result` of this process, which nobody interrupts."""
    known: dict[str, tuple[dict[str, bytes], bytes]] = {}

    def of(method: str) -> tuple[dict[str, bytes], bytes]:
        if method not in known:
            run_dir = plan_run(tmp_path_factory.mktemp("reference") / method, method)
            Run(run_dir.path).calibrate()
            known[method] = result(run_dir)
        return known[method]

    return of
