"""The guides' commands, as they stand on the pages."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest

from hpcmpq.examples.topics import calibration_text
from hpcmpq.export import export
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.quadratic_file import read_quadratic, write_quadratic
from tests.docs.pages import ROOT, RunPage
from tests.export.planned import llama, plan_run, solve_by_turns
from tests.export.test_round_trips import GGUF
from tests.synthetic_run import write_run

pytestmark = pytest.mark.slow


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with a model and a text."""
    shutil.copytree(ROOT / "configs" / "quickstart_model", tmp_path / "models" / "my-model")
    (tmp_path / "corpus.txt").write_text(calibration_text()[:100_000])
    return tmp_path


def test_models_of_ones_own(run_page: RunPage, place: Path):
    printed = run_page("models.md", place)
    assert any("(set(), [])" in text for text in printed.values())
    assert set(json.loads((place / "runs/module/solution.json").read_text())["assignment"]) == {
        "first",
        "second",
    }
    groups = [group["name"] for group in json.loads((place / "runs/groups/plan.json").read_text())["groups"]]
    assert len(groups) == 12 and not any("layers.0" in name for name in groups)


@pytest.mark.slow
def test_from_python(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    page = (ROOT / "docs" / "python.md").read_text()
    names: dict[str, object] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL):
        exec(block, names)
    assert (place / "out" / "assignment.json").exists() and (place / "runs/python/report.html").exists()
    assert names["axes"].get_xlabel() == "weight bits (bits per weight)"  # type: ignore[attr-defined]
    assert type(names["quantized"]) is type(names["model"])


def write_quickstart(directory: Path) -> None:
    """A calibrated run for pages about solving, whose groups hardly interact: its bounds close at once."""
    run = write_run(directory / "runs" / "quickstart")
    model = read_quadratic(run.quadratic_path)
    weaker = dataclasses.replace(
        model, quad_PP=0.02 * model.quad_PP, stderr_quad_PP=0.02 * model.stderr_quad_PP
    )
    write_quadratic(run.quadratic_path, weaker, weaker.linear_P, read_plan(run).fingerprint)


def test_budgets(run_page: RunPage, tmp_path: Path):
    write_quickstart(tmp_path)
    printed = run_page("budgets.md", tmp_path)
    [unreachable] = [text for block, text in printed.items() if "weight_bits=1.5" in block]
    assert "below the smallest reachable 2 bits per weight" in unreachable and "exit status 3" in unreachable
    [several] = [text for block, text in printed.items() if "weight_bits=3 --budget" in block]
    assert all(f"{name} " in several for name in ("weight_bits", "size_bytes", "bops"))


def test_command_line(run_page: RunPage, tmp_path: Path):
    write_quickstart(tmp_path)
    run_page("command_line.md", tmp_path)
    assert "assignment" in json.loads((tmp_path / "solution.json").read_text())


def test_exports_load_as_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for module in ("compressed_tensors", "gguf", "onnxruntime"):
        pytest.importorskip(module, reason="needs the extra export")
    runs = {
        "a": ("compressed_tensors", {"target": "vllm", "formats": ["int3", "int4", "fp8_e4m3"]}),
        "b": ("gguf", {"target": "llama_cpp", "formats": GGUF, "quantizer": {"group_size": 32}}),
        "c": ("onnx", {"formats": ["int2", "int4", "int8"], "quantizer": {"group_size": 64}}),
    }
    (tmp_path / "runs").mkdir()
    for name, (format, config) in runs.items():
        run, plan = plan_run(tmp_path / f"planned-{name}", llama(), **config)
        solve_by_turns(run, plan)
        export(run, format)
        (tmp_path / "runs" / name).symlink_to(run.path)
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "export.md").read_text()
    names: dict[str, object] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL):
        exec(block, names)
    printed = capsys.readouterr().out
    assert "tensor([[ 72, 101, 108, 112," in printed
    assert "torch.Size([1, 4, 256])" in printed
    assert "\n(1, 4, 256)\n" in printed
