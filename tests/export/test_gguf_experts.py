"""Mixtures of experts in GGUF files: llama.cpp's tensors of all experts, exactly, and llama.cpp itself on them."""

import dataclasses
import re
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from bench.family_models import make_inputs, make_model
from bench.family_recipes import FAMILIES
from hpcmpq.errors import NotReproduced, UserError
from hpcmpq.export import export, gguf_places
from hpcmpq.models.gguf_config import check_gguf_config
from hpcmpq.store.json_files import read_json, write_json
from hpcmpq.store.run_dir import RunDir
from tests.export.planned import plan_run, solve_by_turns
from tests.export.test_llama_cpp import llama_cpp  # noqa: F401, a fixture

pytestmark = pytest.mark.slow

IN_GROUPS = {"n_group": 2, "topk_group": 1, "n_routed_experts": 8, "num_hidden_layers": 3}

MADE = {
    **{
        name: FAMILIES[name]
        for name in ("Mixtral", "Qwen2Moe", "Qwen3Moe", "Olmoe", "DeepseekV2", "DeepseekV3")
    },
    "DeepseekV3 in groups": dataclasses.replace(
        FAMILIES["DeepseekV3"], settings={**FAMILIES["DeepseekV3"].settings, **IN_GROUPS}
    ),
}

OF_EACH = {
    "gate": r"experts\.(\d+)\.(?:gate_proj|w1)\.weight$",
    "up": r"experts\.(\d+)\.(?:up_proj|w3)\.weight$",
    "down": r"experts\.(\d+)\.(?:down_proj|w2)\.weight$",
}


@pytest.fixture(scope="module", params=MADE)
def runs(request, tmp_path_factory) -> tuple[str, RunDir, RunDir]:
    """A solved run whose groups take formats by turns, and the same streamed; both exported."""
    folder, family = tmp_path_factory.mktemp("run"), MADE[request.param]
    np.save(folder / "ids.npy", make_inputs(family, 20, 12)["input_ids"].numpy())
    data = {"data": str(folder / "ids.npy"), "num_samples": 4, "held_out": 2, "sequence_length": 12}
    run, plan = plan_run(
        folder, make_model(family), calibration=data, target="llama_cpp", formats=["int4", "int8", "q5_1"],
        quantizer={"group_size": 32},
    )  # fmt: skip
    solve_by_turns(run, plan)
    streamed = RunDir(folder / "streamed" / "run")
    shutil.copytree(run.path, streamed.path)
    values = read_json(streamed.plan_path, "")
    values["config"]["model"]["stream"] = True
    write_json(streamed.plan_path, values)
    lines = [export(each, "gguf") for each in (run, streamed)]
    assert "verified: gguf" in lines[0] and "outputs differ by 0.0e+00" in lines[0]
    assert re.search(r"reads all \d+ tensors back, one by one", lines[1])
    export(run, "fake_quantized")
    return request.param, run, streamed


def tensors_of(run: RunDir) -> dict[str, gguf.ReaderTensor]:
    return {t.name: t for t in gguf.GGUFReader(run.path / "exports/gguf/model.gguf").tensors}


def test_every_expert_has_the_weights_of_the_checkpoint_exactly(runs):
    """Stacked in the order of their numbers, [experts, outputs, inputs], in one type for each tensor."""
    _, run, _ = runs
    found, checkpoint = tensors_of(run), load_file(run.checkpoint_path / "model.safetensors")
    seen = 0
    for part, pattern in OF_EACH.items():
        for name, expected_MK in checkpoint.items():
            if match := re.search(pattern, name):
                layer = name.split(".")[2]
                tensor = found[f"blk.{layer}.ffn_{part}_exps.weight"]
                weight_EMK = gguf.dequantize(tensor.data, tensor.tensor_type)
                assert np.array_equal(weight_EMK[int(match[1])], expected_MK.numpy()), name
                seen += 1
    num_experts = len(next(t for n, t in found.items() if n.endswith("ffn_up_exps.weight")).data)
    assert seen == num_experts * sum(name.endswith("_exps.weight") for name in found) > 0


def test_a_streamed_mixture_has_the_tensors_of_one_in_memory(runs):
    _, run, streamed = runs
    found, expected = (
        {name: (t.tensor_type, t.data.shape, t.data.tobytes()) for name, t in tensors_of(each).items()}
        for each in (streamed, run)
    )
    assert found == expected


def test_llama_cpp_computes_the_model_of_the_run(runs, tmp_path: Path, llama_cpp):  # noqa: F811
    """On the file's own weights in float32, where its kernels do not round inputs: sums in another order are left."""
    from bench.engines.run_llama_cpp import logits, opened

    name, run, _ = runs
    ids_NT = make_inputs(MADE[name], 4, 12)["input_ids"]
    made = getattr(transformers, MADE[name].architecture)
    with torch.no_grad():
        expected_NTV = made.from_pretrained(run.checkpoint_path, dtype=torch.float32)(ids_NT).logits.numpy()
    in_float32(run.path / "exports/gguf/model.gguf", tmp_path / "float32.gguf")
    engine = opened(str(tmp_path / "float32.gguf"), ids_NT.shape[1])
    found_NTV = np.stack([logits(engine, ids_T) for ids_T in ids_NT.numpy()])
    engine.close()
    assert np.abs(found_NTV - expected_NTV).max() < 1e-4 * expected_NTV.std()


def in_float32(path: Path, output: Path) -> None:
    """The same file with every tensor decoded."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(output, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            writer.add_key_value(name, field.contents(), field.types[0])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_halves_that_are_exchanged_are_found(runs, monkeypatch):
    """By transformers' own operation that puts gate and up together."""
    _, run, streamed = runs
    right = gguf_places.places_of

    def exchanged(name, *args):
        places = right(name, *args)
        if not name.endswith("gate_up_proj"):
            return places
        gate, up = places
        return [dataclasses.replace(gate, name=up.name), dataclasses.replace(up, name=gate.name)]

    monkeypatch.setattr("hpcmpq.export.gguf.places_of", exchanged)
    for each in (run, streamed):
        with pytest.raises(NotReproduced, match="gate_up_proj"):
            export(each, "gguf")


@pytest.mark.parametrize(
    ("config", "settings", "said"),
    [
        ("Qwen3MoeConfig", {"norm_topk_prob": False}, "norm_topk_prob: False.*of qwen3_moe take True"),
        ("Qwen3MoeConfig", {"norm_topk_prob": True, "mlp_only_layers": [1]}, r"mlp_only_layers: \[1\]"),
        ("Qwen2MoeConfig", {"decoder_sparse_step": 2}, "decoder_sparse_step: 2"),
        ("OlmoeConfig", {"clip_qkv": 8.0}, "clip_qkv: 8.0"),
        ("OlmoeConfig", {"num_key_value_heads": 2}, "as many heads of keys as of queries in an OLMoE, 16"),
        ("DeepseekV2Config", {"topk_method": "group_limited_greedy"}, "topk_method: 'group_limited_greedy'"),
        ("DeepseekV3Config", {"rope_interleave": False}, "rope_interleave: False"),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(config, settings, said):
    kind = getattr(transformers, config)
    architecture = [config.replace("Config", "ForCausalLM")]
    with pytest.raises(UserError, match=said):
        check_gguf_config(kind(**settings, architectures=architecture))
