"""`hpcmpq run MODEL_DIR --data FILE`: what `init` would write, kept, and no other run written over."""

from collections.abc import Callable
from pathlib import Path

import pytest

from hpcmpq.cli.first_config import config_of
from hpcmpq.cli.stages import plan
from hpcmpq.config import read_config
from hpcmpq.errors import PlanMismatch, UserError
from hpcmpq.planning.starter import write_starter

pytestmark = pytest.mark.slow

Save = Callable[[str], Path]


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(f"{n} squared is {n * n} and cubed {n**3}." for n in range(400)))
    return str(path)


def test_it_is_what_init_writes_with_the_budgets(
    model_directory: Save, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    model, run_dir = model_directory("llama"), tmp_path / "run"
    config = config_of(model, run_dir, text, ["average_bits=4.5", "weight_bits=3"])
    assert config == run_dir / "config.yaml"
    assert config.read_text() in capsys.readouterr().out
    write_starter(model, run_dir / "from_init.yaml", text)
    by_init = (run_dir / "from_init.yaml").read_text()
    given = "budgets: {average_bits: 4.5, weight_bits: 3.0} "
    assert config.read_text() == by_init.replace("budgets: {weight_bits: 4.0} ", given)
    plan(config, run_dir)
    assert config_of(model, run_dir, text, ["average_bits=4.5", "weight_bits=3"]) == config
    with pytest.raises(PlanMismatch, match="solve for other budgets with `hpcmpq solve"):
        config_of(model, run_dir, text, ["weight_bits=4"])
    assert dict(read_config(config).budgets) == {"average_bits": 4.5, "weight_bits": 3.0}


def test_a_config_is_taken_as_it_is_and_a_model_needs_data(model_directory: Save, tmp_path: Path):
    config = tmp_path / "config.yaml"
    assert config_of(config, tmp_path / "run", None, []) == config
    with pytest.raises(UserError, match="is a config: set calibration.data and budgets in it"):
        config_of(config, tmp_path / "run", None, ["weight_bits=3"])
    with pytest.raises(UserError, match="is a model; say what to calibrate it on with --data FILE"):
        config_of(model_directory("llama"), tmp_path / "run", None, [])
