"""A run whose `sensitivity.products` are bfloat16: nearly the same numbers, and another measurement."""

import numpy as np
import pytest

from hpcmpq.calibrate.reduce import reduce
from hpcmpq.calibrate.worker import make_worker
from hpcmpq.errors import PlanMismatch
from hpcmpq.planning.stage import prepare
from hpcmpq.settings import CalibrationConfig, Config, ModelConfig, SensitivityConfig
from hpcmpq.store.quadratic_file import read_quadratic
from hpcmpq.store.run_dir import RunDir

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
