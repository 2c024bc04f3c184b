"""Runs that multiply in bfloat16: nearly the same numbers, and another measurement."""

from dataclasses import replace

import numpy as np
import pytest

from hpcmpq.calibrate.neighbourhood import Neighbourhood
from hpcmpq.calibrate.reduce import add_shards, reduce
from hpcmpq.calibrate.worker import make_worker
from hpcmpq.config import read_config
from hpcmpq.errors import PlanMismatch
from hpcmpq.plan import WIDE, content_hash, plan_to_json
from hpcmpq.planning.stage import prepare
from hpcmpq.refine.inquiries import Around, Inquiry, WholeLosses, keep_inquiry, plan_of
from hpcmpq.refine.worker import make_worker as make_refine_worker
from hpcmpq.settings import CalibrationConfig, Config, GroupsConfig, ModelConfig, SensitivityConfig
from hpcmpq.store.json_files import write_artefact
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.quadratic_file import read_quadratic
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.shards import read_shard_of
from tests.executors.launch import ROOT
from tests.executors.tiny_model import write_config

pytestmark = pytest.mark.slow


def config_of(path: str, **sensitivity: str) -> Config:
    calibration = CalibrationConfig(
        "hpcmpq.examples.topics:training_text", 4, 16, held_out=1, samples_per_pass=2, samples_per_unit=4
    )
    return Config(
        ModelConfig(path=path),
        calibration,
        formats=("int2", "int4", "int8"),
        sensitivity=SensitivityConfig(**sensitivity),
    )


def test_bfloat16_products_of_a_float32_model(model_directory, tmp_path):
    path = str(model_directory("llama"))
    found = []
    for name, sensitivity in {"float32": {}, "bfloat16": {"products": "bfloat16"}}.items():
        run = RunDir(tmp_path / name)
        plan = prepare(config_of(path, **sensitivity), run, ())
        for unit in plan.units:
            make_worker(run)(unit)
        reduce(run)
        found.append(read_quadratic(run.quadratic_path))
    exact, low = found
    np.testing.assert_allclose(low.linear_P, exact.linear_P, rtol=0.03)
    assert not np.array_equal(low.linear_P, exact.linear_P)
    assert low.loss0 == exact.loss0
    with pytest.raises(PlanMismatch, match="products"):
        prepare(config_of(path, products="bfloat16"), RunDir(tmp_path / "float32"), ())


@pytest.mark.parametrize("stream", [False, True])
def test_neighbours_of_a_bfloat16_model_are_measured_as_calibration_measures_options(
    model_directory, tmp_path, stream
):
    """Plain bfloat16 is off by as much as an option changes the loss."""
    config = config_of(str(model_directory("llama")))
    linear, losses = {}, {}
    for dtype in ("float32", "bfloat16"):
        run = RunDir(tmp_path / dtype, "refine")
        own = replace(config, model=replace(config.model, dtype=dtype, stream=stream))
        plan = prepare(own, run, ())
        assignment = {group.name: "int4" for group in plan.space.groups}
        beside = tuple(option.index for option in plan.space.options if option.format == "int8")
        work = make_refine_worker(run)

        def shards(inquiry: Inquiry, run=run, plan=plan, work=work):
            asked = plan_of(inquiry, plan)
            keep_inquiry(run, inquiry, asked)
            for unit in asked.units:
                work(unit)
            return asked, [(unit, read_shard_of(asked, run, unit)) for unit in asked.units]

        whole = WholeLosses((assignment,), "calibration", 4, "")
        around = Around(Neighbourhood(assignment, beside))
        _, [(_, before)] = shards(whole)
        own_plan, found = shards(around)
        linear[dtype] = add_shards(own_plan, iter(found)).model.linear_P
        _, [(_, after)] = shards(replace(whole, samples_hash="again"))
        np.testing.assert_array_equal(before.arrays["losses"], after.arrays["losses"])
        losses[dtype] = before.arrays["losses"]
    scale = np.abs(linear["float32"]).max()
    np.testing.assert_allclose(linear["bfloat16"], linear["float32"], rtol=0, atol=0.05 * scale)
    assert not np.array_equal(linear["bfloat16"], linear["float32"])
    assert not np.array_equal(losses["bfloat16"], losses["float32"])


def linear_of(config: Config, run: RunDir, *import_paths: str) -> np.ndarray:
    """What each option loses alone, measured by a worker."""
    work, plan = None, prepare(config, run, import_paths)
    for unit in plan.units:
        work = work or make_worker(run)
        work(unit)
    return reduce(run).model.linear_P


@pytest.mark.parametrize("method", ["fisher", "pairwise", "relative_error"])
def test_a_bfloat16_model_is_differentiated_and_compared_in_float32(model_directory, tmp_path, method):
    """Rounded to bfloat16, the error of an 8-bit option is wrong by a quarter, and its loss is noise."""
    config = config_of(str(model_directory("llama")), method=method)
    config = replace(config, formats=("int2", "int8"), groups=GroupsConfig(include=("*down_proj",)))
    found = [
        linear_of(replace(config, model=replace(config.model, dtype=dtype)), RunDir(tmp_path / dtype))
        for dtype in ("float32", "bfloat16")
    ]
    np.testing.assert_array_equal(*found)


def test_a_run_in_plain_bfloat16_that_was_planned_before_goes_on_so(model_directory, tmp_path):
    config = config_of(str(model_directory("llama")), method="relative_error")
    config = replace(config, model=replace(config.model, dtype="bfloat16"))
    run = RunDir(tmp_path)
    plan = prepare(config, run, ())
    facts = {name: value for name, value in plan.facts.items() if name != WIDE}
    write_artefact(run.plan_path, plan_to_json(replace(plan, facts=facts, fingerprint=content_hash(facts))))
    before = linear_of(config, run)
    assert WIDE not in read_plan(run).facts
    assert not np.array_equal(before, linear_of(config, RunDir(tmp_path / "now")))


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_numbers_as_inputs_have_the_dtype_that_options_are_measured_in(tmp_path, dtype):
    path = write_config(tmp_path / "config.yaml")
    config = read_config(path)
    config = replace(config, model=replace(config.model, dtype=dtype))
    found = [
        linear_of(own, RunDir(tmp_path / own.model.dtype), str(ROOT))
        for own in (config, replace(config, model=replace(config.model, dtype="float32")))
    ]
    np.testing.assert_allclose(*found, rtol=0.05)
