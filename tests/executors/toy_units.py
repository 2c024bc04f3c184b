"""A worker without a model: shards are a fixed function of the unit; files in the run directory trip it."""

import os
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np

from hpcmpq.errors import UserError
from hpcmpq.executors import Worker
from hpcmpq.plan import WorkUnit, make_units
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.shards import Shard, write_shard

UNITS = make_units("toy", 3, 12, groups_per_unit=2, samples_per_unit=4)
"""Six units: three of two groups, three of one."""


def recipe(path: Path):
    """A picklable `make_worker` for a run directory."""
    return partial(make_toy_worker, str(path))


def make_toy_worker(path: str) -> Worker:
    run = RunDir(Path(path))
    _note(path, "starts", str(os.getpid()))
    if (run.path / "bad-model").exists():
        raise UserError("the model is missing")
    if (run.path / "broken-start").exists():
        raise ImportError("no module named 'there'")
    if (run.path / "deadly-start").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    if (run.path / "no-device").exists() or _removed(run.path / "no-device-once"):
        raise RuntimeError("CUDA error: no device")
    device_failed = False

    def work(unit: WorkUnit) -> None:
        nonlocal device_failed
        _note(path, "attempts", unit.id)
        device_failed |= _removed(run.path / f"device-fails-once-{unit.id}")
        if device_failed:
            raise RuntimeError("CUDA error: device-side assert triggered\nand more")
        if (run.path / f"raise-{unit.id}").exists():
            raise ArithmeticError(f"unit {unit.id} always raises\nsecond line")
        if (run.path / f"full-{unit.id}").exists():
            raise UserError("cannot write: no space left on device")
        if (run.path / f"deadly-{unit.id}").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        if _removed(run.path / f"kill-once-{unit.id}"):
            (run.path / f".{unit.id}.partial").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        pause = run.path / "seconds"
        time.sleep(float(pause.read_text()) if pause.exists() else 0)
        generator = np.random.default_rng(int(unit.id, 16))
        matrix = generator.standard_normal((40, 40))
        arrays = {"product": matrix @ matrix.T, "loss": np.array(matrix.sum())}
        write_shard(run, Shard("toy", unit.id, "toy", unit.sample_stop - unit.sample_start, 1, arrays))

    return work


def attempts(path: Path) -> list[str]:
    """Unit ids in the order in which workers began them, over all processes."""
    log = path / "attempts"
    return log.read_text().split() if log.exists() else []


def shards(path: Path) -> dict[str, bytes]:
    """{file name: bytes} of all finished shards."""
    return {file.name: file.read_bytes() for file in (path / "shards").glob("*.h5")}


def _note(path: str, log: str, text: str) -> None:
    descriptor = os.open(Path(path) / log, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.write(descriptor, f"{text}\n".encode())
    os.close(descriptor)


def _removed(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True
