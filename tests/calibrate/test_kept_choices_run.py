"""A run of a mixture of experts: cross terms of kept choices, and what flips cost beside them."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

from bench.family_models import make_inputs, make_model
from bench.family_recipes import FAMILIES
from hpcmpq.calibrate.reduce import reduce
from hpcmpq.calibrate.worker import make_worker
from hpcmpq.models.load import quiet_transformers
from hpcmpq.plan import CHOICES, Plan
from hpcmpq.planning.stage import prepare
from hpcmpq.quadratic import QuadraticModel, flip_terms
from hpcmpq.settings import CalibrationConfig, Config, ModelConfig, SensitivityConfig
from hpcmpq.solve.shrinkage import shrunk
from hpcmpq.store.json_files import write_json
from hpcmpq.store.quadratic_file import read_quadratic
from hpcmpq.store.run_dir import RunDir
from tests.models.test_mixtures import Listed


def measured(run: RunDir, plan: Plan) -> QuadraticModel:
    worker = make_worker(run)
    for unit in plan.units:
        worker(unit)
    reduce(run)
    return read_quadratic(run.quadratic_path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, QuadraticModel]:
    """Of all groups at once, of a few groups a unit, and as plans older than kept choices are measured."""
    directory = tmp_path_factory.mktemp("mixture")
    with quiet_transformers():
        make_model(FAMILIES["Qwen3Moe"]).save_pretrained(directory / "model")
    np.save(directory / "data.npy", make_inputs(FAMILIES["Qwen3Moe"], 8, 12)["input_ids"].numpy())
    calibration = CalibrationConfig(
        data=str(directory / "data.npy"), num_samples=4, sequence_length=12, held_out=2, samples_per_unit=4
    )
    config = Config(ModelConfig(path=str(directory / "model")), calibration, formats=("int2", "int8"))
    found = {}
    for name, per_unit in (("whole", None), ("parts", 5)):
        run = RunDir(directory / name)
        sensitivity = SensitivityConfig(groups_per_unit=per_unit)
        plan = prepare(dataclasses.replace(config, sensitivity=sensitivity), run, ())
        assert plan.facts[CHOICES] == "kept"
        found[name] = measured(run, plan)
    older = RunDir(directory / "older")
    prepare(config, older, ())
    values = json.loads(older.plan_path.read_text(encoding="utf-8"))
    del values["facts"][CHOICES], values["digest"]
    write_json(older.plan_path, values)
    plan = prepare(config, older, ())  # planned again, it goes on as it was
    assert CHOICES not in plan.facts
    found["older"] = measured(older, plan)
    return found


def test_losses_alone_are_those_with_own_choices_and_flips_are_part_of_them(runs):
    whole, older = runs["whole"], runs["older"]
    np.testing.assert_allclose(whole.linear_P, older.linear_P, rtol=1e-5, atol=1e-9)
    assert older.flips_P is None and whole.flips_P is not None
    assert (whole.flips_P >= 0).all() and (whole.flips_P <= whole.linear_P.clip(0) + 1e-12).all()
    assert whole.flips_P[::2].sum() > 0.01 * whole.linear_P[::2].sum()


def test_units_of_some_groups_give_the_same(runs):
    whole, parts = runs["whole"], runs["parts"]
    scale = np.abs(whole.quad_PP).max()
    np.testing.assert_allclose(parts.flips_P, whole.flips_P, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(parts.quad_PP, whole.quad_PP, rtol=0, atol=1e-3 * scale)


def test_tokens_of_every_expert_are_counted(runs):
    """Four samples of twelve tokens, each given to two of four experts in both layers; by whatever units."""
    whole, parts = runs["whole"], runs["parts"]
    assert runs["older"].tokens_LE is None
    assert whole.tokens_LE.shape == (2, 4)
    assert whole.tokens_LE.sum(1).tolist() == [2 * 4 * 12, 2 * 4 * 12]
    assert np.array_equal(whole.tokens_LE, parts.tokens_LE)


def test_shrinking_leaves_what_flips_add(runs):
    whole = runs["whole"]
    groups = np.repeat(np.arange(len(whole.option_group) // 2), 2)
    terms = flip_terms(whole.flips_P, groups)
    assert terms.any()
    np.testing.assert_allclose(shrunk(whole, 1e9).quad_PP, terms, atol=1e-12)


def listed_without_config() -> nn.Module:
    """As a factory's module is, which transformers knows nothing of."""
    torch.manual_seed(0)
    model = Listed()
    del model.config
    return model.eval().requires_grad_(False)


def test_of_a_factorys_mixture_choices_are_kept_too(tmp_path):
    np.save(tmp_path / "data.npy", np.random.default_rng(0).integers(0, 10, (8, 12)))
    factory = ModelConfig(factory="tests.calibrate.test_kept_choices_run:listed_without_config")
    calibration = CalibrationConfig(str(tmp_path / "data.npy"), 4, 12, held_out=2, samples_per_unit=4)
    config, run = Config(factory, calibration, formats=("int2", "int8")), RunDir(tmp_path / "run")
    plan = prepare(config, run, ())
    assert plan.facts[CHOICES] == "kept"
    values = json.loads(run.plan_path.read_text(encoding="utf-8"))
    model = measured(run, plan)
    assert model.flips_P is not None and model.tokens_LE.sum() == 2 * 4 * 12
    del values["facts"][CHOICES], values["digest"]
    older = RunDir(tmp_path / "older")
    older.path.mkdir()
    write_json(older.plan_path, values)
    plan = prepare(config, older, ())  # planned before choices of such models were kept, it goes on as it was
    assert CHOICES not in plan.facts and measured(older, plan).flips_P is None
