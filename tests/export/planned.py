"""Small planned and solved runs of random models, made by the package's own plan stage."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from hpcmpq.config import parse_config
from hpcmpq.executors.in_process import InProcess
from hpcmpq.models.load import quiet_transformers
from hpcmpq.plan import Plan
from hpcmpq.planning.stage import prepare
from hpcmpq.rounding.option_units import round_options
from hpcmpq.solve.formulate import cost_values
from hpcmpq.store.json_files import write_json
from hpcmpq.store.run_dir import RunDir

TEXT = "".join(f"{number} bottles of ink stand on shelf {number % 7}. " for number in range(400))


SIZE = {
    "vocab_size": 256, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip


def llama(**settings) -> nn.Module:
    """A byte-level Llama of two blocks, 128 wide: 330,000 weights."""
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SIZE, **settings}))


LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
"""Rotary positions of Llama 3.2."""


def qwen2(**settings) -> nn.Module:
    """The same sizes with biases of queries, keys and values, and a tied head."""
    torch.manual_seed(0)
    made = transformers.Qwen2Config(**{**SIZE, "tie_word_embeddings": True, **settings})
    model = transformers.Qwen2ForCausalLM(made)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(std=0.1)
    return model


def mistral() -> nn.Module:
    """The same sizes, without a sliding window."""
    torch.manual_seed(0)
    return transformers.MistralForCausalLM(transformers.MistralConfig(**SIZE, sliding_window=None))


def qwen3(**settings) -> nn.Module:
    """The same sizes with norms of queries and keys, and rotations of another base."""
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 500.0}
    made = transformers.Qwen3Config(**{**SIZE, "head_dim": 32, "rope_parameters": rope, **settings})
    return transformers.Qwen3ForCausalLM(made)


def opt() -> nn.Module:
    """Biases, and linear layers that take their inputs flattened."""
    torch.manual_seed(0)
    made = transformers.OPTConfig(
        vocab_size=256, hidden_size=64, ffn_dim=128, num_hidden_layers=2, num_attention_heads=4,
        word_embed_proj_dim=64, max_position_embeddings=64, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = transformers.OPTForCausalLM(made)
    for name, parameter in model.named_parameters():
        parameter.data.normal_(std=0.1 if name.endswith("bias") or parameter.ndim > 1 else 0.5)
    return model


def mixtral() -> nn.Module:
    """Experts in one tensor, which transformers saves one by one."""
    torch.manual_seed(0)
    made = transformers.MixtralConfig(**SIZE, num_local_experts=3, num_experts_per_tok=2)
    return transformers.MixtralForCausalLM(made)


CORRECTION = "model.layers.1.mlp.gate.e_score_correction_bias"
"""What `deepseek_v3` adds to the scores of its experts."""


def deepseek_v3() -> nn.Module:
    """Latent attention, and a layer of experts whose scores are corrected before they are chosen."""
    torch.manual_seed(0)
    made = transformers.DeepseekV3Config(
        **{**SIZE, "num_key_value_heads": 4}, moe_intermediate_size=64, n_routed_experts=4,
        num_experts_per_tok=2, n_shared_experts=1, n_group=1, topk_group=1, first_k_dense_replace=1,
        q_lora_rank=32, kv_lora_rank=64, qk_nope_head_dim=32, qk_rope_head_dim=32, v_head_dim=32,
    )  # fmt: skip
    return transformers.DeepseekV3ForCausalLM(made)


def t5_encoder() -> nn.Module:
    """An encoder whose `_init_weights` reads the weights of its layers."""
    torch.manual_seed(0)
    made = transformers.T5Config(d_model=64, d_ff=128, d_kv=16, num_layers=2, num_heads=4, vocab_size=256)
    return transformers.T5EncoderModel(made)


def plan_run(
    path: Path,
    made: nn.Module,
    dtype: torch.dtype = torch.bfloat16,
    edit: Callable[[Path], None] = lambda directory: None,
    **config,
) -> tuple[RunDir, Plan]:
    """Save a model in `dtype`, edit its directory, plan a run and make its codes; keywords are keys of the config."""
    with quiet_transformers():
        made.to(dtype).save_pretrained(path / "model")
    edit(path / "model")
    (path / "text.txt").write_text(TEXT)
    values = {
        "model": {"path": str(path / "model")},
        "calibration": {
            "data": str(path / "text.txt"),
            "num_samples": 8,
            "sequence_length": 32,
            "held_out": 2,
        },
        **config,
    }
    run = RunDir(path / "run")
    plan = prepare(parse_config(values), run, ())
    if plan.config.quantizer.stores_codes:
        round_options(run, InProcess(), lambda *_: None)
    return run, plan


def solve_by_turns(run: RunDir, plan: Plan) -> dict[str, str]:
    """Write a solution in which the groups take their formats by turns."""
    assignment = {
        group.name: names[place % len(names)]
        for place, (group, names) in enumerate(zip(plan.space.groups, plan.space.formats, strict=True))
    }
    costs = cost_values(plan, plan.space.choice(assignment))
    write_json(run.solution_path, {"assignment": assignment, "costs": costs})
    return assignment


def add_stored(directory: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Add tensors to a saved model's only file, such as those that its class in transformers does not load."""
    file = directory / "model.safetensors"
    save_file({**load_file(file), **tensors}, file, metadata={"format": "pt"})
