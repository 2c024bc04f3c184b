"""Train the small vision transformer that `configs/vit.yaml` quantizes.

Run once by the maintainers, about two minutes; its output, `configs/vit_model`, is part of the repository:

    python configs/train_vit.py
"""

import argparse
from pathlib import Path

import torch
from torch import nn
from train_digits import BATCH, NOISE, quality

from hpcmpq.examples.digits import training


def main() -> None:
    from transformers import ViTConfig, ViTForImageClassification

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("vit_model"))
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    images, classes = training()
    config = ViTConfig(
        hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=128, image_size=8,
        patch_size=2, num_channels=1, num_labels=10,
    )  # fmt: skip
    network = ViTForImageClassification(config)
    print(f"{sum(p.numel() for p in network.parameters()):,} parameters, {len(images)} images")
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 2e-3, args.epochs * -(-len(images) // BATCH), pct_start=0.1
    )
    for epoch in range(args.epochs):
        network.train()
        for rows in torch.randperm(len(images)).split(BATCH):
            logits = network(shifted(images[rows]) + NOISE * torch.randn_like(images[rows])).logits
            loss = nn.functional.cross_entropy(logits, classes[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if (epoch + 1) % 10 == 0:
            network.eval()
            print(
                f"epoch {epoch + 1}  " + "  ".join(quality(lambda images: network(images).logits)), flush=True
            )
    network.eval().save_pretrained(args.output)


def shifted(images: torch.Tensor) -> torch.Tensor:
    """Images moved by up to one pixel, each by its own."""
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    moves = torch.randint(3, (len(images), 2)).tolist()
    return torch.stack([image[:, y : y + 8, x : x + 8] for image, (y, x) in zip(padded, moves, strict=True)])


if __name__ == "__main__":
    main()
