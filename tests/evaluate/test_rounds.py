"""Chunks over ranks, interruption and resumption, without DeepSpeed: ranks are threads with one barrier."""

import threading
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpcmpq.errors import Interrupted
from hpcmpq.evaluate import rounds
from hpcmpq.evaluate.parts import DataPart
from hpcmpq.evaluate.results import MeasuredChunk, Results
from hpcmpq.models.data.samples import Samples

MODELS = {"original": {}, "quantized": {"a": "int2"}, "uniform": {"a": "int3"}}
SCALE = {(): 1.0, ("int2",): 0.9, ("int3",): 1.2}


@dataclass
class Meeting:
    """Where the ranks of a test exchange values."""

    size: int
    values: list[Any] = field(init=False)
    barrier: threading.Barrier = field(init=False)

    def __post_init__(self) -> None:
        self.values = [None] * self.size
        self.barrier = threading.Barrier(self.size, timeout=30)


@dataclass
class Scaled:
    """A model that scales its input by what is assigned; all ranks must run it together."""

    meeting: Meeting
    rank: int
    size: int
    stop_after: int = 10**9
    num_forwards: int = 0
    scale: float = float("nan")

    @contextmanager
    def assigned(self, assignment: Mapping[str, str]):
        self.scale = SCALE[tuple(assignment.values())]
        yield

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        self.num_forwards += 1
        self.meeting.barrier.wait()
        return self.scale * inputs["input"]

    def share(self, numbers: tuple[int, ...]) -> list[tuple[int, ...]]:
        return self.gather(numbers)

    def gather(self, value: Any) -> list[Any]:
        self.meeting.values[self.rank] = value
        self.meeting.barrier.wait()
        values = list(self.meeting.values)
        self.meeting.barrier.wait()
        return values

    def stop_signal(self) -> int:
        return 12 if self.num_forwards >= self.stop_after else 0

    def facts(self) -> dict[str, Any]:
        return {}


def part(num_items: int = 10) -> DataPart:
    generator = torch.Generator().manual_seed(0)
    inputs = {"input": torch.randn(num_items, 3, 4, generator=generator)}
    targets = torch.randint(4, (num_items, 3), generator=generator)
    return DataPart(Samples(inputs, targets, labelled=True), ("kl", "ce"), 2)


def run_ranks(
    directory: Path, size: int, parts: list[Any], stop: Callable[[int], int] = lambda rank: 10**9
) -> list[tuple[Scaled, Any]]:
    """(engine, values or error) of every rank."""
    directory.mkdir(exist_ok=True)
    meeting = Meeting(size)
    ended: list[Any] = [None] * size

    def serve(rank: int) -> None:
        engine = Scaled(meeting, rank, size, stop(rank))
        try:
            values = rounds.measure(engine, parts, MODELS, Results(directory), lambda done, total: None)
        except BaseException as error:
            values = error  # type: ignore[assignment]
        ended[rank] = engine, values

    threads = [threading.Thread(target=serve, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return ended


def same(values: dict[MeasuredChunk, Any], others: dict[MeasuredChunk, Any]) -> bool:
    return values.keys() == others.keys() and all(
        np.array_equal(values[unit][name], others[unit][name]) for unit in values for name in values[unit]
    )


@pytest.mark.parametrize("size", [2, 3, 7])
@pytest.mark.parametrize("kept", [2**30, 1])
def test_any_number_of_ranks_finds_the_same(size: int, kept: int, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(rounds, "MAX_KEPT_BYTES", kept)
    ((_, alone),) = run_ranks(tmp_path / "alone", 1, [part()])
    several = run_ranks(tmp_path / "several", size, [part()])
    assert len(alone) == 5 * 3
    assert all(same(values, alone) for _, values in several)
    assert len({engine.num_forwards for engine, _ in several}) == 1


def test_values_are_the_definition(tmp_path: Path):
    data = part()
    ((_, values),) = run_ranks(tmp_path / "run", 1, [data])
    z0_NTV = data.samples.inputs["input"].double()
    z_NTV = 0.9 * z0_NTV
    kl_N = (z0_NTV.softmax(-1) * (z0_NTV.log_softmax(-1) - z_NTV.log_softmax(-1))).sum(-1).mean(-1)
    found = [values[unit]["kl"] for unit in values if unit.model == "quantized"]
    assert np.concatenate(found) == pytest.approx(kl_N.numpy(), rel=1e-4)


def test_all_ranks_stop_together_and_go_on_with_what_is_missing(tmp_path: Path):
    reference = run_ranks(tmp_path / "reference", 1, [part()])[0]
    stopped = run_ranks(tmp_path / "run", 2, [part()], lambda rank: 6 if rank == 1 else 10**9)
    assert all(isinstance(error, Interrupted) and "SIGUSR2" in str(error) for _, error in stopped)
    files = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    assert 0 < len(files) < 15
    ((engine, values),) = run_ranks(tmp_path / "run", 1, [part()])
    assert same(values, reference[1])
    assert engine.num_forwards < reference[0].num_forwards
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    assert len(after) == 15 and all(after[name] == time for name, time in files.items())


def test_nothing_is_run_again_that_is_done(tmp_path: Path):
    run_ranks(tmp_path / "run", 1, [part()])
    ((engine, values),) = run_ranks(tmp_path / "run", 1, [part()])
    assert engine.num_forwards == 0 and len(values) == 15
