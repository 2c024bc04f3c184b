"""No export is called done before its reader has given the run's outputs from it."""

import json

import pytest
import torch
from typer.testing import CliRunner

from hpcmpq import export as exports
from hpcmpq.cli.app import app
from hpcmpq.errors import NotReproduced, exit_status
from hpcmpq.export import EXPORTERS, export
from hpcmpq.export.verification import compare, one_sample
from hpcmpq.export.written import Written
from hpcmpq.models.data.samples import Samples
from tests.export.planned import llama, plan_run, solve_by_turns
from tests.export.tampering import TAMPERED

pytestmark = pytest.mark.slow

CONFIG = {"formats": ["int4", "int8"], "quantizer": {"group_size": 32}}


@pytest.fixture(scope="module")
def solved(tmp_path_factory):
    run, plan = plan_run(tmp_path_factory.mktemp("run"), llama(), **CONFIG)
    solve_by_turns(run, plan)
    return run


def place(run, name):
    return run.checkpoint_path if name == "fake_quantized" else run.path / "exports" / name


def test_every_exporter_is_tampered_with():
    assert set(TAMPERED) == set(EXPORTERS)


@pytest.mark.parametrize("name", EXPORTERS)
def test_an_export_that_gives_other_outputs_is_an_error_and_not_kept(solved, monkeypatch, name):
    monkeypatch.setitem(exports.EXPORTERS, name, f"tests.export.tampering:tampered_{name}")
    with pytest.raises(
        NotReproduced, match="gives model.layers.1.mlp.down_proj 5 bits|outputs that differ"
    ) as told:
        export(solved, name)
    assert exit_status(told.value) == 2
    assert not place(solved, name).exists()
    assert not list(solved.path.rglob("*.partial"))


@pytest.mark.parametrize("name", sorted(set(EXPORTERS) - {"onnx"}))  # of which one more takes long
def test_what_came_of_reading_back_is_said_and_kept(solved, name):
    line = export(solved, name, verify=False)
    assert "not verified: --no-verify was given" in line
    kept = json.loads((place(solved, name) / "verification.json").read_text())
    assert kept == {"verified": False, "reason": "--no-verify was given"}
    line = export(solved, name)
    assert ", verified: " in line
    kept = json.loads((place(solved, name) / "verification.json").read_text())
    assert kept["verified"] is True
    if name != "tool_configs":
        assert kept["difference"] < 1e-5 and kept["spread"] > 0.1 and kept["num_positions"] == 32


def test_a_file_that_its_reader_cannot_load_is_an_error(solved, monkeypatch):
    def broken(plan, variants, assignment, directory):
        (directory / "model.gguf").write_bytes(b"GGUF")
        return Written("GGUF file")

    monkeypatch.setitem(exports.EXPORTERS, "gguf", "tests.export.tampering:broken")
    monkeypatch.setattr("tests.export.tampering.broken", broken, raising=False)
    with pytest.raises(
        NotReproduced, match=r"transformers .* cannot read the gguf export back .* --no-verify"
    ):
        export(solved, "gguf")
    monkeypatch.setattr("hpcmpq.export.readers.PACKAGES", {"gguf": ("a-reader-of-nobody",)})
    line = export(solved, "gguf")
    assert "not verified: a-reader-of-nobody is not installed; pip install 'hpcmpq[export]'" in line


def test_the_command_takes_no_verify_and_reports_what_was_found(solved):
    result = CliRunner().invoke(
        app, ["export", str(solved.path), "--format", "gguf", "--no-verify", "--json"]
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["exports"]["gguf"]
    assert found["verification"] == {"verified": False, "reason": "--no-verify was given"}


def test_inputs_that_the_reader_does_not_round_are_not_rounded_in_the_comparison(tmp_path):
    run, plan = plan_run(tmp_path, llama(), formats=["w8a8", "bf16", "fp8_e4m3"])
    solve_by_turns(run, plan)
    assert ", verified: transformers" in export(run, "fake_quantized")


def test_tolerance_is_that_of_the_narrowest_dtype():
    expected = torch.randn(1, 50, 20, generator=torch.Generator().manual_seed(0))
    off = expected + 0.01 * expected.std() * torch.randn(
        1, 50, 20, generator=torch.Generator().manual_seed(1)
    )
    for dtype, written in (
        (torch.bfloat16, Written("")),
        (torch.float32, Written("", narrowed=torch.bfloat16)),
    ):
        figures = dict(compare("gguf", "reader 1", off, expected, dtype, written).figures)
        assert figures["difference"] == pytest.approx(0.01, rel=0.1) and figures["tolerance"] == 0.05
    rounded = Written("", rounding=("fp8_e4m3",))
    assert (
        dict(compare("gguf", "reader 1", off, expected, torch.float32, rounded).figures)["tolerance"] == 0.02
    )
    for wrong in (off, expected[:, :10], expected * torch.nan):
        with pytest.raises(NotReproduced, match="from the gguf export|rounding explains 0.001"):
            compare("gguf", "reader 1", wrong, expected, torch.float32, Written(""))
    same = compare("gguf", "reader 1", expected, expected, torch.float32, Written(""))
    assert dict(same.figures)["difference"] == 0


def test_padding_and_what_is_beyond_the_files_context_are_left_out():
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]])
    samples = Samples({"input_ids": torch.arange(6)[None], "attention_mask": mask})
    assert one_sample(samples, None)["input_ids"].tolist() == [[0, 1, 2, 3]]
    assert one_sample(samples, 3)["attention_mask"].tolist() == [[1, 1, 1]]
    assert one_sample(Samples({"input_ids": torch.arange(6)[None]}), 5)["input_ids"].shape == (1, 5)
