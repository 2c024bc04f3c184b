"""Calibrated runs that the benches share: measured once into a cache, in a process that is metered.

model = calibrated("configs/quickstart.yaml", method="secant").quadratic
"""

import dataclasses
import multiprocessing
import shutil
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from bench.results import ROOT
from hpcmpq.calibrate.reduce import reduce
from hpcmpq.calibrate.stage import calibrate
from hpcmpq.config import read_config
from hpcmpq.errors import PlanMismatch
from hpcmpq.executors import Worker
from hpcmpq.models.data.samples import Samples, Splits
from hpcmpq.models.data.splits import load_splits
from hpcmpq.models.load import load_model
from hpcmpq.models.memory import peak_bytes
from hpcmpq.plan import Plan, UnitOutcome, WorkUnit
from hpcmpq.planning.stage import prepare
from hpcmpq.quadratic import QuadraticModel
from hpcmpq.quantized.losses import Comparison
from hpcmpq.quantized.variants import Variants
from hpcmpq.settings import Config
from hpcmpq.solve.shrinkage import shrunk
from hpcmpq.store.json_files import read_json, write_json
from hpcmpq.store.quadratic_file import read_quadratic
from hpcmpq.store.run_dir import RunDir

CACHE = ROOT / "runs" / "bench"

IMPORT_PATHS = (str(ROOT), str(ROOT / "configs"))
"""Where factories of texts and models are found."""


@dataclass
class MeteredProcess:
    """An executor of one fresh process that reports its peak memory beside its units' seconds."""

    run_dir: RunDir
    seconds: float = 0.0
    peak_bytes: int = 0

    def run(
        self, make_worker: Callable[[], Worker], units: Sequence[WorkUnit], keep: bool = False
    ) -> Generator[UnitOutcome, None, None]:
        """See `hpcmpq.executors.Executor.run`.

        Raises:
            EOFError: If the process dies.
        """
        context = multiprocessing.get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(make_worker, tuple(units), self.run_dir, sender))
        process.start()
        sender.close()  # the process's own end is the only one left, so its death ends the wait
        for _ in units:
            outcome, peak_bytes = receiver.recv()
            self.seconds += outcome.seconds
            self.peak_bytes = max(self.peak_bytes, peak_bytes)
            yield outcome
        process.join()


@dataclass(frozen=True)
class Calibrated:
    """A reduced run and what it cost.

    Attributes:
        config: As read, with the method and objective asked for.
        plan: Its plan.
        quadratic: Its quadratic model as the solver sees it.
        seconds: CPU seconds of all units, on one thread.
        peak_bytes: Peak resident memory of the measuring process, weights and libraries included.
        run: Where it lies.
    """

    config: Config
    plan: Plan
    quadratic: QuadraticModel
    seconds: float
    peak_bytes: int
    run: RunDir


def calibrated(
    path: str, method: str, objective: str = "kl", probes: int | None = None,
    formats: tuple[str, ...] | None = None, attention_products: bool = False,
) -> Calibrated:  # fmt: skip
    """The run of a config with another method and objective, and other formats, from the cache if it is there."""
    read = read_config(ROOT / path)
    config = dataclasses.replace(
        read,
        objective=objective,
        sensitivity=dataclasses.replace(read.sensitivity, method=method, probes=probes),
        model=dataclasses.replace(read.model, device="cpu"),
        formats=formats or read.formats,
        budgets={} if formats else read.budgets,
        groups=dataclasses.replace(read.groups, attention_products=attention_products),
    )
    parts = [Path(path).stem, method, objective, *([str(probes)] if probes else []), *(formats or ())]
    name = "-".join([*parts, *(["products"] if attention_products else [])])
    run = RunDir(CACHE / name)
    try:
        plan = prepare(config, run, IMPORT_PATHS)
    except PlanMismatch:
        shutil.rmtree(run.path)
        plan = prepare(config, run, IMPORT_PATHS)
    cost_path = run.file("metered.json")
    if not (run.quadratic_path.exists() and cost_path.exists()):
        shutil.rmtree(run.shards_path, ignore_errors=True)
        process = MeteredProcess(run)
        calibrate(
            run, process, lambda outcome, done, total: print(f"{name}: unit {done} of {total}", flush=True)
        )
        reduce(run)
        write_json(cost_path, {"seconds": process.seconds, "peak_bytes": process.peak_bytes})
    cost = read_json(cost_path, "the bench")
    model = shrunk(read_quadratic(run.quadratic_path), config.solver.shrink)
    return Calibrated(config, plan, model, cost["seconds"], cost["peak_bytes"], run)


@dataclass
class Judge:
    """Measures assignments of a config's model on samples that calibration never saw."""

    config: Config
    plan: Plan

    def __post_init__(self) -> None:
        torch.set_num_threads(1)
        self.splits: Splits = load_splits(self.config, self.plan.import_paths)
        model = load_model(self.config.model, import_paths=self.plan.import_paths)
        self.variants = Variants(model, self.plan.space, self.config.quantizer)

    def losses(self, choices: Sequence[np.ndarray], samples: Samples, objective: str = "kl") -> np.ndarray:
        """Mean loss increase of each choice over the original, float64 [len(choices)]."""
        loss = [loss_N.mean() for loss_N in self.per_sample([None, *choices], samples, objective)]
        return np.array(loss[1:]) - loss[0]

    def per_sample(
        self, choices: Sequence[np.ndarray | None], samples: Samples, objective: str = "kl"
    ) -> list[np.ndarray]:
        """Loss of every sample by choice (None: the original), float64 [N] each."""
        assignments = [{} if c is None else self.plan.space.assignment(c) for c in choices]
        per_pass = self.config.calibration.samples_per_pass
        measured = Comparison(self.variants, samples, (objective,), per_pass).measure(assignments)
        return [part.values[objective] for part in measured]


def _work(
    make_worker: Callable[[], Worker], units: Sequence[WorkUnit], run_dir: RunDir, sender: Connection
) -> None:
    import time

    worker: Worker | None = None
    for unit in units:
        start, error = time.process_time(), None
        try:
            if worker is None:
                worker = make_worker()
                worker(unit)  # imports and compilations of the first call are not the method's
                run_dir.shard_path(unit.id).unlink()  # or the second call would leave it alone
            start = time.process_time()
            worker(unit)
        except Exception as failure:  # reported, and calibrate raises
            error = f"{type(failure).__name__}: {failure}"
        sender.send((UnitOutcome(unit, time.process_time() - start, error), peak_bytes(torch.device("cpu"))))
