"""What lies beside a model's weights, and tensors among them that the model does not use, in its exports."""

import ast
import json
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from hpcmpq.export import export, weight_bytes
from hpcmpq.models.beside_weights import BESIDE_WEIGHTS, copy_small_files
from hpcmpq.models.stored_dtype import wider_dtypes
from tests.export.planned import CORRECTION, add_stored, deepseek_v3, llama, plan_run, solve_by_turns

TAKEN = [
    "LICENSE", "README.md", "additional_chat_templates/tools.jinja", "chat_template.jinja", "config.json",
    "generation_config.json", "merges.txt", "preprocessor_config.json", "special_tokens_map.json",
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "1_Pooling/config.json",
]  # fmt: skip
LEFT = [
    "tf_model.h5", "flax_model.msgpack", "rust_model.ot", "onnx/model.onnx", "original/consolidated.00.pth",
    "pytorch_model.bin", "model.fp16.safetensors", "consolidated.safetensors", "training_args.bin", "vocab.gguf",
    "run/plan.json", "run/samples.safetensors", "run/exports/gguf/model.gguf", "checkpoint-100/optimizer.pt",
    ".git/config", "openvino/openvino_model.xml", "1_Pooling/tf_model.h5", "optimizer.pt", "model.ckpt",
]  # fmt: skip
MTP = {
    "model.layers.2.eh_proj.weight": torch.randn(128, 256).bfloat16(),
    "model.layers.2.mlp.experts.0.up_proj.weight": torch.randn(64, 128).bfloat16(),
    "mtp.norm.weight": torch.randn(128),
}


def fill(directory: Path) -> None:
    for name in {*TAKEN, *LEFT} - {"config.json", "generation_config.json"}:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(b"x" * 50)


def test_only_files_of_known_use_are_taken_along(tmp_path, caplog):
    (tmp_path / "model").mkdir()
    (tmp_path / "copy").mkdir()
    fill(tmp_path / "model")
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        (tmp_path / "model" / name).write_text("{}")
    caplog.set_level("INFO")
    copy_small_files(str(tmp_path / "model"), tmp_path / "copy")
    there = [path for path in (tmp_path / "copy").rglob("*") if path.is_file()]
    assert sorted(path.relative_to(tmp_path / "copy").as_posix() for path in there) == sorted(TAKEN)
    assert (
        "checkpoint-100/, consolidated.safetensors" not in caplog.text
    )  # weights of a known kind are not news
    assert "not copied from" in caplog.text and "checkpoint-100/, flax_model.msgpack" in caplog.text


def test_the_files_of_every_tokenizer_of_transformers_are_taken_along():
    named: set[str] = set()
    for path in Path(transformers.__file__).parent.glob("models/*/tokenization_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "VOCAB_FILES_NAMES":
                named |= {value.value for value in node.value.values}  # type: ignore[attr-defined]
    assert {"spm.model", "tokenizer.json", "entity_vocab.json"} <= named
    left = {name for name in named if not any(fnmatchcase(name, pattern) for pattern in BESIDE_WEIGHTS)}
    assert not left


def test_the_bytes_of_an_export_are_those_of_its_own_weights(tmp_path):
    run, plan = plan_run(tmp_path, llama(), target="transformers", formats=["int4"])
    solve_by_turns(run, plan)
    fill(tmp_path / "model")
    export(run, "compressed_tensors")
    directory = run.path / "exports" / "compressed_tensors"
    assert not set(LEFT) & {path.relative_to(directory).as_posix() for path in directory.rglob("*")}
    predicted = json.loads(run.solution_path.read_text())["costs"]["size_bytes"]
    assert weight_bytes(directory) == (directory / "model.safetensors").stat().st_size
    assert weight_bytes(directory) == pytest.approx(predicted, rel=0.01)


@pytest.mark.parametrize("name", ["fake_quantized", "compressed_tensors"])
def test_tensors_that_the_model_does_not_use_stay_as_they_are(tmp_path, name):
    run, plan = plan_run(
        tmp_path, llama(), edit=lambda path: add_stored(path, MTP), target="transformers", formats=["int4"]
    )
    solve_by_turns(run, plan)
    line = export(run, name)
    assert (
        "with 3 tensors that the model does not use as they are (first model.layers.2.eh_proj.weight)" in line
    )
    directory = run.checkpoint_path if name == "fake_quantized" else run.path / "exports" / name
    written = json.loads((directory / "model.safetensors.index.json").read_text())
    index = written["weight_map"]
    tensors = {file: load_file(directory / file) for file in set(index.values())}
    assert written["metadata"]["total_size"] == sum(
        t.nbytes for file in tensors.values() for t in file.values()
    )
    for stored, tensor in MTP.items():
        assert tensors[index[stored]][stored].dtype == tensor.dtype
        assert torch.equal(tensors[index[stored]][stored], tensor)
    assert set(index) == {stored for file in tensors.values() for stored in file}
    if name == "compressed_tensors":
        predicted = json.loads(run.solution_path.read_text())["costs"]["size_bytes"]
        assert weight_bytes(directory) == pytest.approx(predicted, rel=0.01)


@pytest.mark.parametrize("stream", [False, True])
def test_what_files_keep_wider_than_their_config_says_stays_so(tmp_path, stream):
    bias = {CORRECTION: 5 + 0.01 * torch.randn(4)}
    model = {"path": str(tmp_path / "model"), "dtype": "bfloat16", "stream": stream}
    run, plan = plan_run(
        tmp_path, deepseek_v3(), edit=lambda path: add_stored(path, bias), target="vllm",
        quantizer={"group_size": 32}, formats=["int4"], groups={"exclude": ["*experts*"]}, model=model,
    )  # fmt: skip
    solve_by_turns(run, plan)
    export(run, "compressed_tensors")
    directory = run.path / "exports" / "compressed_tensors"
    tensors = load_file(directory / "model.safetensors")
    assert torch.equal(tensors[CORRECTION], bias[CORRECTION])
    assert tensors["model.norm.weight"].dtype == torch.bfloat16
    if not stream:  # which leaves room in the header, as much as a tenth of so small a model
        predicted = json.loads(run.solution_path.read_text())["costs"]["size_bytes"]
        assert weight_bytes(directory) == pytest.approx(predicted, rel=0.005)


def test_files_that_are_wider_as_a_whole_are_narrowed_to_what_their_config_says(tmp_path):
    llama().save_pretrained(tmp_path)
    assert wider_dtypes(llama(), str(tmp_path), torch.bfloat16) == {}
    one = {"model.norm.weight": torch.ones(128)}
    llama().bfloat16().save_pretrained(tmp_path)
    add_stored(tmp_path, one)
    assert wider_dtypes(llama(), str(tmp_path), torch.bfloat16) == {"model.norm.weight": torch.float32}
