"""Damage to whatever file of a run directory that is read back: its reader refuses it, or reads what was written.

The run is real: a model and texts that were in memory, codes, static ranges, screening, times. Each file has bits
flipped and its end cut off at random places; what the reader returned of the whole file is the oracle.
"""

import dataclasses
import random
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hpcmpq
from hpcmpq.errors import DamagedFile, UserError
from hpcmpq.executors.in_process import InProcess
from hpcmpq.models.data.kept_samples import kept_samples, rounding_samples
from hpcmpq.quantized.activations import read_maxima
from hpcmpq.quantized.stored_codes import StoredCodes
from hpcmpq.report import write_report
from hpcmpq.store.json_files import read_json
from hpcmpq.store.npz_files import read_npz
from hpcmpq.store.original import check_original
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.quadratic_file import read_quadratic
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.screening_rounds import read_rounds
from hpcmpq.store.shards import read_shard_of
from hpcmpq.store.solution_file import read_solution
from hpcmpq.store.sums import NAME, check_sums
from tests.calling import status_of
from tests.store.tiny_source import sentences
from tests.tiny_models import llama

pytestmark = pytest.mark.slow

FLIPS, CUTS = 40, 10
STAGES = (
    "calibrate",
    "reduce",
    "time",
    "solve",
    "frontier --from 4.5 --to 6 --step 1.5",
    "refine",
    "export",
    "evaluate",
    "report",
)
TEXTS = [sentences(range(part, part + 60)) for part in (0, 60)]


def create(path: Path) -> hpcmpq.Run:
    """The run; the same model each time."""
    torch.manual_seed(0)
    return hpcmpq.Run.create(
        llama(),
        TEXTS,
        run_dir=path,
        formats=["int4", "w8a8", "bf16"],
        budgets={"weight_bits": 5.0},
        num_samples=4,
        sequence_length=16,
        settings={
            "calibration": {"held_out": 2},
            "quantizer": {"group_size": 8, "rounding": "gptq", "activations": "static"},
            "sensitivity": {"screen": True},
            "solver": {"time_limit_s": 2},
            "refine": {"max_evaluations": 4},
            "timing": {"rounds": 1},
            "evaluation": {"num_samples": 2},
        },
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    path = tmp_path_factory.mktemp("every") / "run"
    create(path)
    for stage in STAGES:
        assert called(*stage.split(), path) == 0, stage
    return RunDir(path)


def called(stage: str, *arguments: object) -> int:
    """Exit status of a stage in this process, workers included."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hpcmpq.cli.stages.open_executor", lambda *_: nullcontext(InProcess()))
        if stage == "refine":  # whose inquiries and shards would be gone in the end
            patch.setattr("hpcmpq.refine.stage.shutil.rmtree", lambda *_, **__: None)
        return status_of(stage, *arguments)


def codes(run: RunDir, path: Path) -> Any:
    plan = read_plan(run, screened=False)
    kept = StoredCodes(run, plan.fingerprint)
    members = (member for group in plan.space.groups for member in group.members)
    [member] = [member for member in members if kept._path(member) == path]
    return [kept.read(member, "int4", torch.zeros(1)), kept.has(member)]


def shard(run: RunDir, path: Path) -> Any:
    plan = read_plan(run)
    [unit] = [unit for unit in plan.units if run.shard_path(unit.id) == path]
    return read_shard_of(plan, run, unit)


Reader = Callable[[RunDir, Path], Any]
READERS: dict[str, Reader] = {
    "plan.json": lambda run, path: read_plan(run),
    "samples.safetensors": lambda run, path: kept_samples(run, read_plan(run)),
    "rounding_samples.safetensors": lambda run, path: rounding_samples(run, read_plan(run)).inputs,
    "activations.h5": lambda run, path: read_maxima(run, read_plan(run).fingerprint),
    "cost.json": lambda run, path: read_json(path, "hpcmpq plan"),
    "rounded/*.h5": codes,
    "screen/round_1.json": lambda run, path: read_rounds(run, read_plan(run)),
    "shards/*.h5": shard,
    "quadratic.h5": lambda run, path: read_quadratic(path),
    "time.json": lambda run, path: read_plan(run),
    "times/*.json": lambda run, path: read_json(path, "hpcmpq time"),
    "solution.json": lambda run, path: read_solution(run),
    "proof.json": lambda run, path: read_json(path, "hpcmpq solve"),
    "frontier.json": lambda run, path: read_json(path, "hpcmpq frontier"),
    "refine/*.json": lambda run, path: read_json(path, "hpcmpq refine"),
    "evaluation.json": lambda run, path: read_json(path, "hpcmpq evaluate"),
    "evaluation_samples.npz": lambda run, path: read_npz(path),
    "checkpoint/model.safetensors": lambda run, path: write_report(run) and None,
    "checkpoint/assignment.json": lambda run, path: check_sums(path.parent, "run `hpcmpq export RUN`"),
    f"checkpoint/{NAME}": lambda run, path: check_sums(path.parent, "run `hpcmpq export RUN`"),
    "original/model.safetensors": lambda run, path: check_original(run),
    "original/source.json": lambda run, path: check_original(run),
    f"original/{NAME}": lambda run, path: check_original(run),
    "data/calibration.jsonl": lambda run, path: read_plan(run),
    f"data/{NAME}": lambda run, path: read_plan(run),
}
"""{pattern: how a stage reads such a file}, and what it makes of the whole one is compared."""
MAY_BE_LESS = {"checkpoint/model.safetensors": 2}
"""Readers that take long: tries."""


@pytest.mark.parametrize("pattern", READERS)
def test_what_is_damaged_is_refused_or_read_as_it_was_written(whole: RunDir, tmp_path: Path, pattern: str):
    run, read = RunDir(tmp_path / "run"), READERS[pattern]
    shutil.copytree(whole.path, run.path)
    path = max(run.path.glob(pattern), key=lambda path: path.stat().st_size)
    expected, content, draw = read(run, path), path.read_bytes(), random.Random(pattern)
    refused = 0
    tries = MAY_BE_LESS.get(pattern, FLIPS + CUTS)
    for number in range(tries):
        damaged = bytearray(content)
        if number % (FLIPS // CUTS + 1):
            damaged[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        else:
            del damaged[draw.randrange(len(content)) :]
        path.write_bytes(damaged)
        try:
            found = read(run, path)
        except UserError as error:
            refused += 1
            said = str(error)
            assert "\n" not in said and "  " not in said
            # Whoever reads an npz file measures anew.
            assert path.suffix == ".npz" or re.search(r"run `hpcmpq [a-z]+|Run\.create|restore it", said), (
                said
            )
            if isinstance(error, DamagedFile):
                assert path.name in said, said
        else:
            assert same(found, expected), (number, damaged)
    assert refused > tries / 2
    path.write_bytes(content)
    assert same(read(run, path), expected)


def same(one: Any, other: Any) -> bool:
    """Whether two things that a reader returned say the same."""
    if type(one) is not type(other):
        return False
    if dataclasses.is_dataclass(one):
        return all(same(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one))
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tolist() == other.tolist()
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return bool(one == other)


def test_the_model_that_was_in_memory_is_written_again(whole: RunDir, tmp_path: Path):
    run = RunDir(tmp_path / "run")
    shutil.copytree(whole.path, run.path)
    weights = run.original_path / "model.safetensors"
    data = run.data_path / "calibration.jsonl"
    for path in (weights, data):
        content = path.read_bytes()
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        with pytest.raises(DamagedFile, match=r"give hpcmpq\.Run\.create the same (model|data) again"):
            check_original(run)
            read_plan(run)
        with pytest.raises(DamagedFile, match="same (model|data) again"):
            hpcmpq.open(run.path).apply()
        create(run.path)
        assert path.read_bytes() == content
    check_original(run)


def test_a_damaged_solution_names_all_that_wrote_it(whole: RunDir, tmp_path: Path):
    run = RunDir(tmp_path / "run")
    shutil.copytree(whole.path, run.path)
    content = run.solution_path.read_text()
    for damaged in (content[:-40], content.replace('"int4"', '"bf16"', 1), "[]"):
        run.solution_path.write_text(damaged)
        with pytest.raises(DamagedFile, match=r"run `hpcmpq solve [^`]+` and `hpcmpq refine [^`]+` again"):
            read_solution(run)


def test_an_export_without_its_weights_is_reported(whole: RunDir, tmp_path: Path):
    run = RunDir(tmp_path / "run")
    shutil.copytree(whole.path, run.path)
    (run.checkpoint_path / "model.safetensors").unlink()
    (run.checkpoint_path / "README.md").write_text("My own words.\n")
    assert write_report(run).is_file()
