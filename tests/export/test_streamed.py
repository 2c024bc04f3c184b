"""Exports of a streamed model: the tensors of a model in memory, in files that are written one tensor at a time."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
import transformers
from safetensors import safe_open
from torch import Tensor

import hpcmpq.export.compressed_tensors as compressed_tensors
import hpcmpq.export.fake_quantized as fake_quantized
import hpcmpq.export.gguf_places as gguf_places
from hpcmpq.errors import NotReproduced
from hpcmpq.export import export, streamed_files
from hpcmpq.export.safetensors_shards import MAX_HEADER_BYTES, SafetensorsShards, room_for
from hpcmpq.models.streaming import load_streamed
from hpcmpq.quantized.variants import open_variants
from hpcmpq.store.json_files import read_json, write_json
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir
from tests.allocations import peak_bytes
from tests.export.planned import plan_run, qwen2, solve_by_turns
from tests.export.readers import skip_without_reader

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDir, RunDir]:
    """A solved run of a model with biases and a tied head, and the same run streamed."""
    folder = tmp_path_factory.mktemp("whole")
    whole, _ = plan_run(
        folder, qwen2(num_hidden_layers=6), target="llama_cpp", formats=["int4", "int8"],
        quantizer={"group_size": 32},
    )  # fmt: skip
    solve_by_turns(whole, read_plan(whole))
    streamed = RunDir(tmp_path_factory.mktemp("streamed") / "run")
    shutil.copytree(whole.path, streamed.path)
    values = read_json(streamed.plan_path, "")
    values["config"]["model"]["stream"] = True
    write_json(streamed.plan_path, values)
    return whole, streamed


def tensors(directory: Path) -> dict[str, Tensor]:
    found = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt"}
            found.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    return found


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        value.dtype == expected[name].dtype and torch.equal(value, expected[name])
        for name, value in found.items()
    )


def test_a_full_header_ends_a_file_and_never_reaches_what_safetensors_reads(tmp_path):
    experts = [
        f"model.layers.{n}.mlp.experts.{e}.up_proj.weight_packed" for n in range(60) for e in range(9000)
    ]
    assert room_for(experts) == MAX_HEADER_BYTES < 100_000_000
    own = {f"experts.{e}.up_proj.weight": torch.full((2, 3), float(e)) for e in range(20)}
    shards = SafetensorsShards(tmp_path, 1000)
    for expert, tensor in own.items():
        shards.add(expert, tensor)
    files = shards.end()
    assert len(set(files.values())) > 1
    assert same(tensors(tmp_path), own)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index == {"metadata": {"total_size": 20 * 24}, "weight_map": files}


@pytest.mark.parametrize("name", ["fake_quantized", "compressed_tensors"])
def test_safetensors_of_a_streamed_model_are_those_of_one_in_memory(runs, name: str, monkeypatch):
    whole, streamed = runs
    directories = [
        run.checkpoint_path if name == "fake_quantized" else run.path / "exports" / name for run in runs
    ]
    export(whole, name, verify=False)
    export(streamed, name, verify=False)
    assert [path.name for path in directories[1].glob("*.safetensors*")] == ["model.safetensors"]
    expected = tensors(directories[0])
    assert same(tensors(directories[1]), expected)
    configs = [json.loads((directory / "config.json").read_text()) for directory in directories]
    assert configs[0] == configs[1]
    monkeypatch.setattr(streamed_files.write_streamed, "__defaults__", ((), 100_000))
    line = export(streamed, name)
    files = sorted(path.name for path in directories[1].glob("*.safetensors"))
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((directories[1] / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == expected.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in expected.values())
    assert same(tensors(directories[1]), expected)
    reader = "transformers" if name == "fake_quantized" else "compressed-tensors"
    assert f", verified: {reader}" in line
    num_weights = read_json(directories[1] / "verification.json", "")["num_weights"]
    assert (
        num_weights == len(load_streamed(read_plan(streamed).config.model).weights.aliases) - 1
    )  # the head is tied
    read = transformers.AutoModelForCausalLM.from_pretrained(directories[1], dtype=torch.float32)
    other = transformers.AutoModelForCausalLM.from_pretrained(directories[0], dtype=torch.float32)
    ids = torch.arange(16)[None]
    assert torch.equal(read(input_ids=ids).logits, other(input_ids=ids).logits)


def test_gguf_of_a_streamed_model_has_the_tensors_of_one_in_memory(runs):
    import gguf

    found = []
    for run, ending in zip(runs, ("outputs differ", "reads all 74 tensors back, one by one"), strict=True):
        assert ending in export(run, "gguf")
        reader = gguf.GGUFReader(run.path / "exports" / "gguf" / "model.gguf")
        found.append({each.name: (each.tensor_type, each.data.tobytes()) for each in reader.tensors})
    assert found[0] == found[1]


def test_mlx_of_a_streamed_model_has_the_tensors_of_one_in_memory(runs):
    skip_without_reader("mlx")
    whole, streamed = runs
    assert "outputs differ" in export(whole, "mlx")
    assert "reads all 74 tensors back, one by one" in export(streamed, "mlx")
    assert same(tensors(streamed.path / "exports" / "mlx"), tensors(whole.path / "exports" / "mlx"))


def test_a_wrong_scale_a_wrong_order_and_a_missing_tensor_are_found(runs, monkeypatch):
    """In exports of which every tensor is read alone."""
    _, streamed = runs
    packed, order = compressed_tensors.stored, gguf_places.row_order

    def check_found(exporter: ModuleType, name: str, wrong: Callable, message: str) -> None:
        with monkeypatch.context() as patched, pytest.raises(NotReproduced, match=message):
            patched.setattr(exporter, name, wrong)
            export(streamed, "gguf" if exporter is gguf_places else "compressed_tensors")

    def scaled(name, *args):
        factor = 1.25 if name.endswith("layers.3.mlp.down_proj.weight") else 1.0
        return {
            own: value * factor if own.endswith("_scale") else value
            for own, value in packed(name, *args).items()
        }

    check_found(compressed_tensors, "stored", scaled, r"layers\.3\.mlp\.down_proj\.weight")

    def reversed_order(name, *args):
        return (
            torch.arange(64).flip(0)
            if name.endswith("layers.3.self_attn.k_proj.weight")
            else order(name, *args)
        )

    check_found(gguf_places, "row_order", reversed_order, r"layers\.3\.self_attn\.k_proj\.weight")

    def without_last(name, *args):
        return {} if name.endswith("layers.5.mlp.down_proj.weight") else packed(name, *args)

    check_found(compressed_tensors, "stored", without_last, r"finds no .*layers\.5\.mlp\.down_proj")


def test_a_wrong_weight_in_the_files_of_a_streamed_model_is_found(runs, monkeypatch):
    _, streamed = runs
    rounding = fake_quantized._rounding

    def wrong(variants, assignment):
        stand_for = rounding(variants, assignment)

        def scaled(name, tensor):
            factor = 1.25 if name.endswith("layers.3.mlp.down_proj.weight") else 1.0
            return stand_for(name, tensor) * factor

        return scaled

    monkeypatch.setattr(fake_quantized, "_rounding", wrong)
    with pytest.raises(NotReproduced, match=r"layers\.3\.mlp\.down_proj\.weight"):
        export(streamed, "fake_quantized")


def test_one_block_is_in_memory(runs, tmp_path: Path):
    _, run = runs
    plan = read_plan(run)
    streamed = load_streamed(plan.config.model)
    variants = open_variants(run, plan, streamed=streamed, check_outputs=False)
    assignment = read_json(run.solution_path, "")["assignment"]
    stand_for = fake_quantized._rounding(variants, assignment)
    _, peak = peak_bytes(lambda: streamed_files.write_streamed(streamed, tmp_path, stand_for))
    blocks = sum(t.nbytes for name, t in tensors(tmp_path).items() if ".layers." in name)
    outside = sum(t.nbytes for name, t in tensors(tmp_path).items() if ".layers." not in name)
    largest = max(t.numel() for t in tensors(tmp_path).values())
    searched = 8 * largest * 4  # candidates for the scales of a weight, in float32
    assert peak < outside + blocks / 6 + searched
    assert outside + blocks / 6 + searched < 0.8 * (outside + blocks)
