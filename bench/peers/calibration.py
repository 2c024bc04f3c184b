"""A model's calibration by this package's own stages, in this process, one directory for each configuration."""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from bench.workload import CACHE, IMPORT_PATHS
from hpcmpq.calibrate.reduce import reduce
from hpcmpq.calibrate.stage import calibrate
from hpcmpq.executors import Worker
from hpcmpq.plan import Plan, UnitOutcome, WorkUnit, content_hash
from hpcmpq.planning.stage import prepare
from hpcmpq.quadratic import QuadraticModel
from hpcmpq.rounding.option_units import round_options
from hpcmpq.settings import Config, to_values
from hpcmpq.store.json_files import read_json, write_json
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.quadratic_file import read_quadratic
from hpcmpq.store.run_dir import RunDir


@dataclass(frozen=True)
class Calibrated:
    """A reduced run.

    Attributes:
        config: What was planned.
        run: Its directory.
        plan: Its plan.
        quadratic: Its cross terms are as measured.
        kept: Where this bench keeps what it finds about the run.
    """

    config: Config
    run: RunDir
    plan: Plan
    quadratic: QuadraticModel
    kept: RunDir


class ThisProcess:
    """An executor of the calling process, so that a bench runs in no other."""

    def run(
        self, make_worker: Callable[[], Worker], units: Sequence[WorkUnit], keep: bool = False
    ) -> Generator[UnitOutcome, None, None]:
        """See `hpcmpq.executors.Executor.run`; a failing unit raises."""
        worker = make_worker()
        for unit in units:
            start = time.process_time()
            worker(unit)
            yield UnitOutcome(unit, time.process_time() - start)


def calibrated(name: str, config: Config) -> Calibrated:
    """Plan, calibrate and reduce whatever is missing of a run of the bench's own."""
    run = RunDir(CACHE / "peers" / f"{name}-{content_hash(to_values(config))[:8]}")
    with cpu_seconds(run, "plan"):
        prepare(config, run, IMPORT_PATHS)
    if config.quantizer.stores_codes:
        with cpu_seconds(run, "round"):
            round_options(run, ThisProcess(), _say)
    if not run.quadratic_path.exists():
        with cpu_seconds(run, "calibrate"):
            calibrate(run, ThisProcess(), _say)
    return opened(run, run)


def opened(run: RunDir, kept: RunDir | None = None) -> Calibrated:
    """A calibrated run, such as one of `hpcmpq run`; only `quadratic.h5` is written into it, if it is missing."""
    plan = read_plan(run)
    if not run.quadratic_path.exists():
        reduce(run)
    folder = RunDir(CACHE / "peers" / f"{run.path.name}-{plan.fingerprint[:8]}")
    quadratic = read_quadratic(run.quadratic_path)
    return Calibrated(plan.config, run, plan, quadratic, kept or folder)


@contextmanager
def cpu_seconds(run: RunDir, part: str) -> Iterator[None]:
    """Add the CPU seconds of a block to those of `part` in the run's cpu_seconds.json, failures included."""
    start = time.process_time()
    try:
        yield
    finally:
        add_seconds(run, part, time.process_time() - start)


def add_seconds(run: RunDir, part: str, seconds: float) -> None:
    """Add to what a part has taken."""
    known = seconds_of(run)
    write_json(run.file("cpu_seconds.json"), {**known, part: known.get(part, 0.0) + seconds})


def seconds_of(run: RunDir) -> dict[str, float]:
    """CPU seconds of every part so far."""
    path = run.file("cpu_seconds.json")
    return read_json(path, "python -m bench.peers") if path.exists() else {}


def _say(outcome: UnitOutcome, done: int, total: int) -> None:
    print(f"unit {done} of {total}, {outcome.seconds:.0f} CPU s", flush=True)
