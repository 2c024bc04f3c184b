"""What a GGUF file says of a model that transformers passes over is carried into its config, or refused."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from hpcmpq.errors import UserError
from hpcmpq.export import export
from hpcmpq.export import gguf as gguf_export
from hpcmpq.export.verification import NotReproduced
from hpcmpq.models.dequantized import unpacked
from hpcmpq.settings import ModelConfig
from hpcmpq.store.run_dir import RunDir
from tests.export.planned import LLAMA3, llama, plan_run, solve_by_turns

HEAD = 32


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """A GGUF file whose rotations have the base of Llama 3."""
    made = llama(rope_parameters={"rope_type": "default", "rope_theta": 500_000.0}, num_hidden_layers=1)
    run, plan = plan_run(
        tmp_path_factory.mktemp("made"),
        made,
        target="llama_cpp",
        quantizer={"group_size": 32},
        formats=["int8"],
    )
    solve_by_turns(run, plan)
    export(run, "gguf")
    return run.path / "exports" / "gguf" / "model.gguf"


def edited(
    source: Path,
    path: Path,
    values: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
    without: str = "",
) -> ModelConfig:
    """The same file with other keys and tensors, and without one tensor."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, "llama")
    for field in reader.fields.values():
        if not field.name.startswith(("GGUF.", "general.architecture")):
            writer.add_key_value(field.name, field.contents(), field.types[0])
    for name, value in (values or {}).items():
        kinds = {
            str: gguf.GGUFValueType.STRING,
            float: gguf.GGUFValueType.FLOAT32,
            int: gguf.GGUFValueType.UINT16,
        }
        writer.add_key_value(name, value, kinds[type(value)])
    for tensor in reader.tensors:
        if tensor.name != without:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    for name, data in (tensors or {}).items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return ModelConfig(path=str(path))


def converted(settings: dict[str, Any]) -> np.ndarray:
    """Factors of frequencies as llama.cpp's convert_hf_to_gguf.py writes them, one frequency at a time."""
    low, high = settings["low_freq_factor"], settings["high_freq_factor"]
    length, factor = settings["original_max_position_embeddings"], settings["factor"]
    found = []
    for frequency in 1.0 / settings["rope_theta"] ** (torch.arange(0, HEAD, 2, dtype=torch.float32) / HEAD):
        wavelength = 2 * np.pi / frequency
        if wavelength < length / high:
            found.append(1.0)
        elif wavelength > length / low:
            found.append(factor)
        else:
            smooth = (length / wavelength - low) / (high - low)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found, np.float32)


def solved_llama3(path: Path, stream: bool = False) -> RunDir:
    """A run of a Llama with scaled rotations, whose attention is sharp, so that positions are seen in the logits."""
    made = llama(rope_parameters=LLAMA3, max_position_embeddings=131_072)
    with torch.no_grad():
        for name in ("q_proj", "k_proj"):
            getattr(made.model.layers[0].self_attn, name).weight.mul_(20.0)
    config = {"target": "llama_cpp", "quantizer": {"group_size": 32}, "formats": ["int8"]}
    run, plan = plan_run(path, made, **config, model={"path": str(path / "model"), "stream": stream})
    solve_by_turns(run, plan)
    return run


@pytest.mark.parametrize("stream", [False, True])
def test_an_exported_llama_3_has_its_rotations(tmp_path, stream):
    """What is written is what convert_hf_to_gguf.py writes, and gives the settings back."""
    run = solved_llama3(tmp_path, stream)
    assert "verified: " in export(run, "gguf")
    path = run.path / "exports" / "gguf" / "model.gguf"
    [stored_F] = [
        tensor.data for tensor in gguf.GGUFReader(path).tensors if tensor.name == "rope_freqs.weight"
    ]
    assert stored_F.dtype == np.float32
    np.testing.assert_allclose(stored_F, converted(LLAMA3), rtol=1e-5)
    unpacked(ModelConfig(path=str(path)), tmp_path / "plain")
    assert json.loads((tmp_path / "plain" / "config.json").read_text())["rope_parameters"] == LLAMA3


def test_factors_that_are_not_the_models_are_seen(tmp_path, monkeypatch):
    run = solved_llama3(tmp_path)
    monkeypatch.setattr(gguf_export, "frequency_factors", lambda values: np.ones(HEAD // 2, np.float32))
    with pytest.raises(NotReproduced):
        export(run, "gguf")


@pytest.mark.parametrize("factor", [8.0, 32.0], ids=["Llama 3.1", "Llama 3.2"])
@pytest.mark.parametrize("weights", [True, False])
def test_the_rotations_of_llama_3_are_carried_over(file, tmp_path, factor, weights):
    settings = {**LLAMA3, "factor": factor}
    factors_F = converted(settings)
    assert len(set(factors_F)) > 2  # one in the smooth part at least
    config = edited(file, tmp_path / "model.gguf", tensors={"rope_freqs.weight": factors_F})
    unpacked(config, tmp_path / "plain", weights=weights)
    read = transformers.AutoConfig.from_pretrained(tmp_path / "plain")
    assert read.rope_parameters == settings
    found_F, scale = ROPE_INIT_FUNCTIONS["llama3"](read, torch.device("cpu"))
    plain_F = 1.0 / 500_000.0 ** (torch.arange(0, HEAD, 2, dtype=torch.float64) / HEAD)
    torch.testing.assert_close(found_F.double(), plain_F / torch.from_numpy(factors_F), rtol=1e-4, atol=0)
    assert scale == 1.0


@pytest.mark.parametrize(
    "values",
    [
        {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
        {"llama.rope.scaling.factor": 4.0},  # which is linear
        {"llama.rope.scale_linear": 4.0},  # its name in older files
    ],
)
def test_linear_scaling_is_carried_over(file, tmp_path, values):
    unpacked(edited(file, tmp_path / "model.gguf", values), tmp_path / "plain")
    said = json.loads((tmp_path / "plain" / "config.json").read_text())["rope_parameters"]
    assert said == {"rope_type": "linear", "factor": 4.0, "rope_theta": 500_000.0}


def test_rotations_that_are_not_scaled_stay(file, tmp_path):
    ones = {"rope_freqs.weight": np.ones(HEAD // 2, np.float32)}
    values = {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0, "split.count": 1}
    unpacked(edited(file, tmp_path / "model.gguf", values, ones), tmp_path / "plain")
    said = json.loads((tmp_path / "plain" / "config.json").read_text())["rope_parameters"]
    assert said == {"rope_type": "default", "rope_theta": 500_000.0}


def test_what_transformers_does_not_read_is_said(file, tmp_path, caplog):
    unpacked(edited(file, tmp_path / "model.gguf", {"llama.attention.sliding_window": 7}), tmp_path / "plain")
    assert "model.gguf says attention.sliding_window, which transformers does not read" in caplog.text
    assert "model.gguf gives no tokenizer" in caplog.text
    caplog.clear()
    unpacked(ModelConfig(path=str(file)), tmp_path / "own")
    assert "does not read" not in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": {"split.count": 3}}, "is one of 3 parts of a model; merge them first"),
        (
            {"values": {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}},
            "rotary positions by yarn",
        ),
        ({"tensors": {"rope_freqs.weight": np.arange(1, 17, dtype=np.float32)}}, "are not those of Llama 3"),
        (
            {"without": "blk.0.ffn_down.weight"},
            r"lack 1 parameters, first model\.layers\.0\.mlp\.down_proj\.weight",
        ),
        (
            {"tensors": {"blk.0.attn_q.bias": np.ones(128, np.float32)}},
            r"holds 1 tensors that transformers has no place for in a llama, first blk\.0\.attn_q\.bias",
        ),
    ],
    ids=["parts", "yarn", "other factors", "missing", "odd"],
)
def test_what_cannot_be_carried_over_is_refused(file, tmp_path, change, message):
    config = edited(file, tmp_path / "model.gguf", **change)
    with pytest.raises(UserError, match=message):
        unpacked(config, tmp_path / "plain")
    assert not (tmp_path / "plain").exists()
