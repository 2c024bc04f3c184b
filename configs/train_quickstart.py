"""Train the byte-level Llama that the quickstart quantizes.

Run once by the maintainers; its output, `configs/quickstart_model/`, is part of the repository:

    python configs/train_quickstart.py --output configs/quickstart_model

The text is the English documentation in CPython's own `pydoc_data.topics`. The last tenth is never trained on;
`hpcmpq.examples.topics` hands out the same parts for training, calibration and evaluation.
"""

import argparse
import math
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hpcmpq.examples.topics import evaluation_text, training_text

SEQUENCE_LENGTH = 128
BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256,
            hidden_size=128,
            intermediate_size=320,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=512,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    train(model, args.steps)
    model.save_pretrained(args.output)


def train(model: torch.nn.Module, steps: int) -> None:
    """Train on next bytes, with the loss of experts' balance where the model has one; prints how it goes."""
    text = torch.tensor(list(training_text().encode()))
    held_out = torch.tensor(list(evaluation_text().encode()))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(text):,} bytes of text")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / 100, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps))),
    )
    start = time.monotonic()
    for step in range(steps):
        offsets = torch.randint(len(text) - SEQUENCE_LENGTH, (BATCH, 1))
        tokens = text[offsets + torch.arange(SEQUENCE_LENGTH)]
        loss = model(input_ids=tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 250 == 0 or step + 1 == steps:
            print(
                f"step {step:5d}  train {loss.item():.3f}  held out {held_out_loss(model, held_out):.3f}"
                f"  {time.monotonic() - start:.0f} s",
                flush=True,
            )


@torch.no_grad()
def held_out_loss(model: torch.nn.Module, tokens: torch.Tensor) -> float:
    """Mean next-byte loss in nats over the first 64 held-out sequences."""
    batch = tokens[: 64 * SEQUENCE_LENGTH].view(64, SEQUENCE_LENGTH)
    return model(input_ids=batch, labels=batch).loss.item()


if __name__ == "__main__":
    main()
