"""The guides' commands, as they stand on the pages."""

import json
import shutil
from pathlib import Path

import pytest

from hpcmpq.examples.topics import calibration_text
from tests.docs.pages import ROOT, run_page


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
