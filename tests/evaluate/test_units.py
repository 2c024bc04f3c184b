"""Evaluation in work units, and of a streamed model: the bits of one process with the model in memory."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from hpcmpq.errors import UserError
from hpcmpq.evaluate import evaluate
from hpcmpq.executors.in_process import InProcess
from hpcmpq.store.json_files import read_json, write_json
from hpcmpq.store.run_dir import RunDir
from tests.evaluate.solved_runs import TEXT, solved_run
from tests.tiny_models import llama

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Ten samples in chunks of two, and three questions."""
    folder = tmp_path_factory.mktemp("planned")
    torch.manual_seed(0)
    llama().save_pretrained(folder / "llama")
    words = [{"text": f"the {color} cat sat on the {color} mat"} for color in ("red", "blue", "black")]
    (folder / "words.jsonl").write_text("".join(json.dumps(word) + "\n" for word in words))
    task = {"name": "words", "path": str(folder / "words.jsonl"), "type": "next_word"}
    config = {
        "model": {"path": str(folder / "llama")},
        "formats": ["int2", "int4"],
        "evaluation": {"num_samples": 10, "tasks": [task]},
    }
    return solved_run(folder / "run", config, TEXT)


def samples(run: RunDir) -> dict[str, np.ndarray]:
    with np.load(run.file("evaluation_samples.npz")) as file:
        return {name: file[name] for name in file.files if "/" in name}


@pytest.fixture(scope="module")
def expected(planned: RunDir) -> dict[str, np.ndarray]:
    evaluate(planned)
    return samples(planned)


@pytest.fixture(params=[False, True], ids=["whole", "streamed"])
def copied(request, planned: RunDir, expected, tmp_path: Path) -> RunDir:
    """The same run, perhaps streamed, that nothing is measured in."""
    run = RunDir(tmp_path / "run")
    shutil.copytree(planned.path, run.path)
    values = read_json(run.plan_path, "")
    values["config"]["model"]["stream"] = request.param
    write_json(run.plan_path, values)
    for path in (run.evaluation_path, run.file("evaluation_samples.npz")):
        path.unlink()
    return run


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


class Killed(Exception):
    pass


class Dying:
    """Runs some units and is gone, as a process that is killed; remembers what it was given."""

    def __init__(self, num_units: int) -> None:
        self.left, self.given = num_units, set[str]()

    def run(self, make_worker, units, keep=False) -> Iterator:  # type: ignore[no-untyped-def]
        self.given = {unit.id for unit in units}
        for outcome in InProcess().run(make_worker, units, keep):
            self.left -= 1
            yield outcome
            if not self.left:
                raise Killed


def test_units_have_the_values_of_one_process_and_are_not_measured_twice(copied: RunDir, expected):
    with pytest.raises(Killed):
        evaluate(copied, executor=Dying(2))
    shards = sorted(RunDir(copied.path, "evaluate").shards_path.iterdir())
    assert len(shards) == 2
    shards[0].write_bytes(shards[0].read_bytes()[:100])
    rest = Dying(100)
    evaluate(copied, executor=rest)
    assert rest.given.isdisjoint({shards[1].stem}) and shards[0].stem in rest.given
    assert len(rest.given) == 5 + 2 - 1
    assert_same(samples(copied), expected)
    assert not copied.file("evaluate").exists()


@pytest.mark.parametrize("copied", [True], indirect=True, ids=["streamed"])
def test_of_processes_that_share_a_run_the_last_finds_it_done(copied: RunDir, expected):
    evaluate(copied, executor=InProcess(), part=(0, 2))
    second = Dying(1)
    evaluate(copied, executor=second, part=(1, 2))
    assert not second.given
    assert_same(samples(copied), expected)


@pytest.mark.parametrize("copied", [True], indirect=True, ids=["streamed"])
def test_one_process_without_units(copied: RunDir, expected):
    evaluate(copied)
    assert_same(samples(copied), expected)


@pytest.mark.parametrize("copied", [False], indirect=True, ids=["whole"])
def test_units_are_of_engine_torch(copied: RunDir):
    with pytest.raises(UserError, match="deepspeed starts ranks of its own.*--engine torch"):
        evaluate(copied, "deepspeed", executor=InProcess())
