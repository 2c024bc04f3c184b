"""The guides' commands, as they stand on the pages."""

import json
import shutil
from pathlib import Path

import pytest

from hpcmpq.examples.topics import calibration_text
from tests.docs.pages import ROOT, run_page
from tests.synthetic_run import write_run


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with a model and a text."""
    shutil.copytree(ROOT / "configs" / "quickstart_model", tmp_path / "models" / "my-model")
    (tmp_path / "corpus.txt").write_text(calibration_text()[:100_000])
    return tmp_path


@pytest.mark.slow
def test_models_of_ones_own(place: Path):
    printed = run_page("models.md", place)
    assert any("next: hpcmpq run my-model.yaml" in text for text in printed.values())
    assert any("All keys matched" in text for text in printed.values())
    assert set(json.loads((place / "runs/module/solution.json").read_text())["assignment"]) == {
        "first",
        "second",
    }
    groups = [group["name"] for group in json.loads((place / "runs/groups/plan.json").read_text())["groups"]]
    assert len(groups) == 12 and not any("layers.0" in name for name in groups)


def test_budgets(tmp_path: Path):
    write_run(tmp_path / "runs" / "quickstart")
    printed = run_page("budgets.md", tmp_path)
    [unreachable] = [text for block, text in printed.items() if "weight_bits=1.5" in block]
    assert "below the smallest reachable 2 bits per weight" in unreachable and "exit status 3" in unreachable
    [several] = [text for block, text in printed.items() if "weight_bits=3 --budget" in block]
    assert all(f"{name} " in several for name in ("weight_bits", "size_bytes", "bops"))


def test_command_line(tmp_path: Path):
    write_run(tmp_path / "runs" / "quickstart")
    run_page("command_line.md", tmp_path)
    assert "assignment" in json.loads((tmp_path / "solution.json").read_text())
