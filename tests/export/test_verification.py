"""No export is called done before its reader has given the run's outputs from it."""

import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from hpcmpq import export as exports
from hpcmpq.cli.app import app
from hpcmpq.errors import NotReproduced, exit_status
from hpcmpq.export import EXPORTERS, export
from hpcmpq.export.verification import Behaviour, compare, one_sample
from hpcmpq.export.written import Written
from hpcmpq.models.data.samples import Samples
from hpcmpq.store.of_solution import is_exported_to
from hpcmpq.store.solution_file import read_solution
from tests.export.planned import llama, plan_run, solve_by_turns
from tests.export.readers import skip_without_reader
from tests.export.tampering import TAMPERED

pytestmark = pytest.mark.slow

READ_BACK = [name for name in EXPORTERS if name != "modelopt"]
"""All but the one whose readers need a GPU, of which test_modelopt.py decodes the bytes."""

CONFIG = {"formats": ["int4", "int8"], "quantizer": {"group_size": 32}}


@pytest.fixture(scope="module")
def solved(tmp_path_factory):
    run, plan = plan_run(tmp_path_factory.mktemp("run"), llama(), **CONFIG)
    solve_by_turns(run, plan)
    return run


def place(run, name):
    return run.checkpoint_path if name == "fake_quantized" else run.path / "exports" / name


def test_every_exporter_is_tampered_with():
    assert set(TAMPERED) == set(READ_BACK)


@pytest.mark.parametrize("name", READ_BACK)
def test_an_export_that_gives_other_outputs_is_an_error_and_not_kept(solved, monkeypatch, name):
    skip_without_reader(name)
    monkeypatch.setitem(exports.EXPORTERS, name, f"tests.export.tampering:tampered_{name}")
    with pytest.raises(
        NotReproduced,
        match="gives model.layers.1.mlp.down_proj 5 bits|outputs that differ|a row that differs",
    ) as told:
        export(solved, name)
    assert exit_status(told.value) == 2
    assert not place(solved, name).exists()
    assert not list(solved.path.rglob("*.partial"))


@pytest.mark.parametrize("name", sorted(set(READ_BACK) - {"onnx"}))  # of which one more takes long
def test_what_came_of_reading_back_is_said_and_kept(solved, name):
    skip_without_reader(name)
    line = export(solved, name, verify=False)
    assert "not verified: --no-verify was given" in line
    kept = json.loads((place(solved, name) / "verification.json").read_text())
    cards = kept.pop("cards")
    assert list(cards) == ([] if name == "tool_configs" else ["README.md"])
    assert kept == {"verified": False, "reason": "--no-verify was given", "codes": None}
    line = export(solved, name)
    assert is_exported_to(place(solved, name), read_solution(solved))
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
    said = {"verified": False, "reason": "--no-verify was given"}
    assert {key: found["verification"][key] for key in said} == said


def test_inputs_that_the_reader_does_not_round_are_not_rounded_in_the_comparison(tmp_path):
    run, plan = plan_run(tmp_path, llama(), formats=["w8a8", "bf16", "fp8_e4m3"])
    solve_by_turns(run, plan)
    assert ", verified: transformers" in export(run, "fake_quantized")


def test_tolerance_is_that_of_the_dtype_that_a_file_narrows_to():
    expected = torch.randn(1, 50, 20, generator=torch.Generator().manual_seed(0))
    off = expected + 0.01 * expected.std() * torch.randn(
        1, 50, 20, generator=torch.Generator().manual_seed(1)
    )

    def compared(read: torch.Tensor, written: Written) -> dict:
        return dict(
            compare("gguf", "reader 1", Behaviour(read, {}), Behaviour(expected, {}), written).figures
        )

    figures = compared(off, Written("", narrowed=torch.bfloat16))
    assert figures["difference"] == pytest.approx(0.01, rel=0.1) and figures["tolerance"] == 0.05
    assert compared(off, Written("", rounding=("fp8_e4m3",)))["tolerance"] == 0.02
    for wrong in (off, expected[:, :10], expected * torch.nan):
        with pytest.raises(NotReproduced, match="from the gguf export|rounding explains 0.001"):
            compared(wrong, Written(""))
    assert compared(expected, Written(""))["difference"] == 0


def one_scale(directory: Path) -> None:
    """Change one of the 7,000 scales by a tenth, in a row of a layer."""
    tensors = load_file(directory / "model.safetensors")
    for name, kept in tensors.items():
        if name.endswith("mlp.up_proj.weight_scale"):
            kept[5, 0] *= 1.1
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def one_number(directory: Path) -> None:
    """Change a single weight of a whole checkpoint by a tenth of the largest of its row."""
    tensors = load_file(directory / "model.safetensors")
    weight = tensors["model.layers.1.self_attn.o_proj.weight"]
    weight[3, 7] += 0.1 * weight[3].abs().max()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def two_layers(directory: Path) -> None:
    """Exchange the same layer of two blocks."""
    tensors = load_file(directory / "model.safetensors")
    first, second = ("model.layers.0.self_attn.k_proj.", "model.layers.1.self_attn.k_proj.")
    for name in [name for name in tensors if name.startswith(first)]:
        other = second + name.removeprefix(first)
        tensors[name], tensors[other] = tensors[other], tensors[name]
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def one_block(directory: Path) -> None:
    """Change the scale of one block of 32 codes by a tenth."""
    from gguf import GGUFReader

    tensors = GGUFReader(directory / "model.gguf", "r+").tensors
    [found] = [tensor for tensor in tensors if tensor.name == "blk.1.ffn_up.weight"]
    scale = found.data[5][:2].view(np.float16)
    scale *= 1.1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("name", "formats", "damage"),
    [
        ("compressed_tensors", ["int4", "int8"], one_scale),
        ("compressed_tensors", ["fp8_e4m3"], one_scale),
        ("compressed_tensors", ["int4"], two_layers),
        ("compressed_tensors", ["fp8_e4m3"], two_layers),
        ("fake_quantized", ["int4", "fp8_e4m3"], one_number),
        ("gguf", ["int4"], one_block),
    ],
)
def test_one_wrong_number_and_two_exchanged_layers_are_found(
    tmp_path, monkeypatch, name, formats, damage, dtype
):
    run, plan = plan_run(
        tmp_path,
        llama(),
        formats=formats,
        quantizer={"group_size": 32},
        model={"path": str(tmp_path / "model"), "dtype": dtype},
    )
    solve_by_turns(run, plan)
    line = export(run, name)
    assert ", verified: " in line
    kept = json.loads((place(run, name) / "verification.json").read_text())
    print(name, formats, dtype, kept)
    assert kept["num_weights"] >= len(plan.space.groups) + 3
    whole = EXPORTERS[name]
    module, attribute = whole.split(":")

    def damaged(plan, variants, assignment, directory):
        written = getattr(import_module(module), attribute)(plan, variants, assignment, directory)
        damage(directory)
        return written

    monkeypatch.setitem(exports.EXPORTERS, name, "tests.export.tampering:damaged")
    monkeypatch.setattr("tests.export.tampering.damaged", damaged, raising=False)
    with pytest.raises(NotReproduced, match="with a row that differs from the run's model by"):
        export(run, name)


def test_padding_and_what_is_beyond_the_files_context_are_left_out():
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]])
    samples = Samples({"input_ids": torch.arange(6)[None], "attention_mask": mask})
    assert one_sample(samples, None)["input_ids"].tolist() == [[0, 1, 2, 3]]
    assert one_sample(samples, 3)["attention_mask"].tolist() == [[1, 1, 1]]
    assert one_sample(Samples({"input_ids": torch.arange(6)[None]}), 5)["input_ids"].shape == (1, 5)


def test_a_model_with_one_output_has_no_spread_and_is_compared_by_its_size():
    expected = Behaviour(torch.tensor([[[2.0]]]), {})
    compared = compare("fake_quantized", "a reader", expected, expected, Written("a file"))
    figures = dict(compared.figures)
    assert (figures["difference"], figures["spread"]) == (0.0, 0.0)
    with pytest.raises(NotReproduced, match=r"differ from the run's model by 0\.5 of their spread"):
        compare(
            "fake_quantized", "a reader", Behaviour(torch.tensor([[[3.0]]]), {}), expected, Written("a file")
        )
