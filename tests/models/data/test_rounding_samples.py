"""Error-compensated rounding is fitted on samples that no loss is measured on."""

import dataclasses
import logging
import random
import string

import pytest
import torch

from hpcmpq.executors.in_process import InProcess
from hpcmpq.models.data.splits import load_splits
from hpcmpq.models.load import load_model
from hpcmpq.planning.stage import prepare
from hpcmpq.quantized.stored_codes import StoredCodes
from hpcmpq.rounding.option_units import round_options
from hpcmpq.rounding.options import make_codes, stored_formats
from hpcmpq.rounding.original_inputs import OriginalInputs
from hpcmpq.settings import CalibrationConfig, Config, EvaluationConfig, GroupsConfig, ModelConfig, Quantizer
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir
from tests.export.planned import llama


@pytest.fixture
def config(tmp_path) -> Config:
    """Text of 62 windows of 16 bytes, in a file of its own, and a byte-level Llama."""
    llama().save_pretrained(tmp_path / "model")
    path = tmp_path / "text.txt"
    path.write_text("".join(random.Random(0).choices(string.ascii_lowercase, k=1000)))
    return Config(
        model=ModelConfig(path=str(tmp_path / "model")),
        calibration=CalibrationConfig(str(path), num_samples=6, held_out=3, sequence_length=16),
        groups=GroupsConfig(include=("*.o_proj",)),
        formats=("int2", "int4"),
        evaluation=EvaluationConfig(num_samples=4),
        quantizer=Quantizer(rounding="gptq", group_size=64),
    )


def with_samples(config: Config, **values) -> Config:
    return dataclasses.replace(config, calibration=dataclasses.replace(config.calibration, **values))


def hashes(samples) -> set[str]:
    return set(samples.content_hashes())


def test_they_are_four_times_the_calibration_samples_and_others_than_all(config):
    splits = load_splits(config)
    assert len(splits.rounding) == 24
    for part in (splits.calibration, splits.held_out, splits.evaluation):
        assert not hashes(splits.rounding) & hashes(part)
    assert len(load_splits(with_samples(config, rounding_samples=5)).rounding) == 5


def test_the_other_samples_are_those_without_them(config):
    nearest = dataclasses.replace(config, quantizer=Quantizer())
    with_them, without = load_splits(config), load_splits(nearest)
    assert without.rounding is None
    for part in ("calibration", "held_out", "evaluation"):
        expected = getattr(without, part).content_hashes()
        assert getattr(with_them, part).content_hashes() == expected


def test_where_the_data_hold_fewer_or_none_it_says_so(config, caplog):
    with caplog.at_level(logging.INFO, "hpcmpq"):
        few = load_splits(with_samples(config, num_samples=30))
    assert len(few.rounding) == 62 - 30 - 3 - 4
    assert "fitted on 25 samples instead of 120" in caplog.text
    with caplog.at_level(logging.WARNING, "hpcmpq"):
        none = load_splits(with_samples(config, num_samples=55))
    assert none.rounding is None
    assert "losses measured on them will be too low" in caplog.text


@torch.no_grad()
def test_a_plan_fits_codes_on_them(config, tmp_path):
    run = RunDir(tmp_path / "run")
    plan = prepare(config, run, ())
    round_options(run, InProcess(), unseen)
    assert "calibration.rounding" in plan.facts
    model, splits = load_model(config.model), load_splits(config)
    formats = stored_formats(plan.space, config.quantizer)
    codes = {}
    for name, samples in (("rounding", splits.rounding), ("calibration", splits.calibration)):
        other = RunDir(tmp_path / name)
        inputs = OriginalInputs(model, plan.space.groups, list(samples.passes(4)), list(formats))
        make_codes(StoredCodes(other, plan.fingerprint), inputs, formats, config.quantizer)
        codes[name] = all_codes(other, plan)
    assert torch.equal(all_codes(run, plan), codes["rounding"])
    assert not torch.equal(all_codes(run, plan), codes["calibration"])


def test_a_run_planned_before_there_were_any_keeps_its_codes(config, tmp_path, monkeypatch):
    """Facts of such a plan do not name them; the rest of its codes is fitted like the first."""
    run = RunDir(tmp_path / "run")
    with monkeypatch.context() as patched:
        patched.setattr("hpcmpq.models.data.splits.num_rounding_samples", lambda config: 0)
        plan = prepare(config, run, ())
    assert "calibration.rounding" not in plan.facts
    round_options(run, InProcess(), unseen)
    before = all_codes(run, plan)
    next((run.path / "rounded").iterdir()).unlink()
    again = prepare(config, run, ())
    assert again.fingerprint == plan.fingerprint
    round_options(run, InProcess(), unseen)
    assert torch.equal(all_codes(run, read_plan(run)), before)


def unseen(*_) -> None:
    pass


def all_codes(run: RunDir, plan) -> torch.Tensor:
    stored = StoredCodes(run, plan.fingerprint)
    members = [member for group in plan.space.groups for member in group.members]
    return torch.cat([stored.read(m, "int2", torch.zeros(1))[0].flatten() for m in members])
