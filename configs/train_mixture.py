"""Train the byte-level mixture of experts that `configs/mixture.yaml` quantizes.

Run once by the maintainers; its output, `configs/mixture_model`, is part of the repository:

    python configs/train_mixture.py

A Qwen2-MoE: four layers of eight experts, two chosen for each byte, beside one that all bytes pass, with the loss that
keeps experts in balance. Text as of the quickstart's model. Weights are stored in bfloat16.
"""

import argparse
from pathlib import Path

import torch
from train_quickstart import train
from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("mixture_model"))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    model = Qwen2MoeForCausalLM(
        Qwen2MoeConfig(
            vocab_size=256,
            hidden_size=128,
            moe_intermediate_size=128,
            shared_expert_intermediate_size=64,
            num_experts=8,
            num_experts_per_tok=2,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            router_aux_loss_coef=0.01,
            output_router_logits=True,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    train(model, args.steps)
    model.config.output_router_logits = False
    model.to(torch.bfloat16).save_pretrained(args.output)


if __name__ == "__main__":
    main()
