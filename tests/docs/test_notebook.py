"""The notebook runs from its first cell to its last, and shows what it shows on the forge."""

from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import ROOT

pytestmark = pytest.mark.slow

NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


def shown(notebook: Any) -> list[list[str]]:
    """Kinds of the outputs of each cell."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [
        sorted(kind for output in cell.outputs for kind in output.get("data", {output.output_type}))
        for cell in cells
    ]


def test_the_notebook_runs_and_its_outputs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    nbclient = pytest.importorskip("nbclient", reason="needs the extra test")
    nbformat = pytest.importorskip("nbformat", reason="needs the extra test")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "docs").mkdir()
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    kept = shown(notebook)
    place = {"metadata": {"path": str(tmp_path / "docs")}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=place).execute()
    assert shown(notebook) == kept
    assert [kinds for kinds in kept if "image/png" in kinds] == [["image/png", "text/plain"]] * 2
    assert sum("text/html" in kinds for kinds in kept) >= 5
    assert not any("stream" in kinds for kinds in kept)  # nothing is printed
    assert (tmp_path / "docs/runs/notebook-checkpoint/model.safetensors").exists()
