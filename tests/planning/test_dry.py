"""`hpcmpq plan --dry`: a plan from config.json alone, of models that fit nowhere."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.family_models import make_inputs, make_model
from bench.family_recipes import FAMILIES
from hpcmpq.cli.predictions import dry
from hpcmpq.errors import UserError
from hpcmpq.models.load import quiet_transformers
from hpcmpq.models.stored_dtype import stored_dtype
from hpcmpq.planning.dry import Device, dry_plan
from hpcmpq.planning.scaling import Site
from hpcmpq.planning.stage import prepare
from hpcmpq.settings import CalibrationConfig, Config, ModelConfig, SensitivityConfig
from hpcmpq.store.json_files import read_json
from hpcmpq.store.run_dir import RunDir

# Qwen3-235B-A22B and DeepSeek-V3 as published, but for the number of layers.
QWEN3 = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "head_dim": 128, "hidden_size": 4096,
    "intermediate_size": 12288, "moe_intermediate_size": 1536, "num_attention_heads": 64, "num_experts": 128,
    "num_experts_per_tok": 8, "num_hidden_layers": 2, "num_key_value_heads": 4, "vocab_size": 151936,
    "max_position_embeddings": 40960, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
DEEPSEEK = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "first_k_dense_replace": 1,
    "hidden_size": 7168, "intermediate_size": 18432, "kv_lora_rank": 512, "moe_intermediate_size": 2048, "n_group": 8,
    "n_routed_experts": 256, "n_shared_experts": 1, "num_attention_heads": 128, "num_experts_per_tok": 8,
    "num_hidden_layers": 2, "num_key_value_heads": 128, "q_lora_rank": 1536, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "topk_group": 4, "v_head_dim": 128, "vocab_size": 129280, "torch_dtype": "bfloat16",
    "max_position_embeddings": 4096, "tie_word_embeddings": False,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}  # fmt: skip

ATTENTION = 2 * 4096 * 64 * 128 + 2 * 4096 * 4 * 128
EXPERTS = 128 * 3 * 4096 * 1536


def written(directory: Path, values: dict) -> Path:
    (directory / "config.json").write_text(json.dumps(values), encoding="utf-8")
    return directory / "config.json"


def test_a_layer_of_235_billion_weights_is_counted_as_by_hand(tmp_path):
    """128 samples of 512 tokens; six groups a layer in seven formats, each run twice by what lies behind it."""
    found = dry(written(tmp_path, QWEN3), 100.0)
    assert found["num_weights"] == 2 * (ATTENTION + EXPERTS)
    assert (found["num_groups"], found["num_options"], found["num_units"]) == (12, 84, 32)
    chosen = ATTENTION + EXPERTS * 8 // 128
    assert found["sizes"]["int8"]["active_macs"] == 2 * chosen / 2
    outside = 2 * 2 * 151936 * 4096
    assert found["sizes"]["int4"]["size_bytes"] == pytest.approx(
        outside + 2 * (ATTENTION + EXPERTS) * (4 + 16 / 64) / 8, rel=0.002
    )
    forwards = 2 * (1 + 6 * 7 * ((1 + 0.65) / 2 + 0.65 / 2))
    assert found["cost"]["forwards"] == pytest.approx(forwards)
    assert found["seconds"]["arithmetic"] == pytest.approx(2 * 2 * chosen * 128 * 512 * forwards / 1e14)
    # Block 0 runs the original and its 42 options, block 1 those and 42 more; half of 32 readings is ahead of each.
    reading = 32 * found["model_bytes"] / (5e9 / 4) / 2
    computing = found["seconds"]["arithmetic"] + found["seconds"]["rounding weights"]
    assert computing * 43 / (43 + 85) < reading
    waiting = reading + reading - computing * 43 / (43 + 85)
    assert found["seconds"]["waiting for weights"] == pytest.approx(waiting)
    assert found["block_bytes"] == pytest.approx(4 * (ATTENTION + EXPERTS), rel=0.002)
    assert found["device_hours"] == pytest.approx(sum(found["seconds"].values()) / 3600)
    assert found["bound_by"] == "waiting for weights"
    assert sum(found["cost"]["peak_parts"].values()) == found["cost"]["peak_bytes"]


def test_weights_that_are_stored_quantized_are_counted_as_plain_ones(tmp_path):
    latent = 7168 * (1536 + 512 + 64) + 1536 * 128 * 192 + 512 * 128 * 256 + 128 * 128 * 7168
    dense, experts = 3 * 7168 * 18432, (256 + 1) * 3 * 7168 * 2048
    found = dry(written(tmp_path, DEEPSEEK), 200.0)
    assert found["num_weights"] == 2 * latent + dense + experts


@pytest.fixture(scope="module")
def mixture(tmp_path_factory) -> Config:
    """A small one, with its weights and data."""
    directory = tmp_path_factory.mktemp("mixture")
    with quiet_transformers():
        make_model(FAMILIES["Qwen3Moe"]).save_pretrained(directory / "model")
    np.save(directory / "data.npy", make_inputs(FAMILIES["Qwen3Moe"], 12, 12)["input_ids"].numpy())
    calibration = CalibrationConfig(
        data=str(directory / "data.npy"), num_samples=8, sequence_length=12, held_out=2
    )
    model = ModelConfig(path=str(directory / "model"), stream=True)
    return Config(model, calibration, formats=("int4", "int8"), budgets={"weight_bits": 6.0})


def test_it_is_the_plan_that_is_made_later(tmp_path, mixture):
    found = dry_plan(mixture, Device(), Site())
    run = RunDir(tmp_path / "run")
    made = prepare(mixture, run, ())
    assert found.plan.space == made.space
    assert found.plan.fixed_bytes == made.fixed_bytes
    assert found.plan.active_fixed_bytes == made.active_fixed_bytes
    assert made.original_bits == 8 * stored_dtype(mixture.model).itemsize == 32
    assert [unit.size for unit in found.plan.units] == [unit.size for unit in made.units]
    cost = read_json(run.file("cost.json"), "")
    assert found.cost.flops == cost["flops"] and found.cost.peak_parts == cost["peak_parts"]


def test_what_has_no_config_or_no_prediction_is_refused(tmp_path, mixture):
    factory = replace(mixture, model=ModelConfig(factory="torch.nn:Identity"))
    hessian = replace(
        mixture, sensitivity=SensitivityConfig("hessian"), model=replace(mixture.model, stream=False)
    )
    for config, sentence in ((factory, "leave --dry out"), (hessian, "set one of these")):
        with pytest.raises(UserError, match=sentence):
            dry_plan(config, Device(), Site())
    with pytest.raises(UserError, match=r"takes a model's file config\.json"):
        dry(tmp_path / "other.json", 100.0)
    with pytest.raises(UserError, match="above 0"):
        dry(tmp_path / "config.json", 0.0)
