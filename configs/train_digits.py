"""Train the small CNN that `configs/digits.yaml` quantizes.

Run once by the maintainers, about 20 seconds; its output, `hpcmpq/examples/digits.safetensors`, is part of
the repository:

    python configs/train_digits.py
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hpcmpq.examples.digits import WEIGHTS, DigitsCNN, calibration, evaluation, training

BATCH = 30
NOISE = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=WEIGHTS)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    images, classes = training()
    network = DigitsCNN()
    print(f"{sum(p.numel() for p in network.parameters()):,} parameters, {len(images)} images")
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
    for epoch in range(args.epochs):
        for rows in torch.randperm(len(images)).split(BATCH):
            logits = network(images[rows] + NOISE * torch.randn_like(images[rows]))
            loss = nn.functional.cross_entropy(logits, classes[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        if (epoch + 1) % 10 == 0:
            print(f"epoch {epoch + 1}  " + "  ".join(quality(network)))
    save_file(network.state_dict(), args.output)


@torch.no_grad()
def quality(logits_of: Callable[[Tensor], Tensor]) -> list[str]:
    """Loss and accuracy on calibration and evaluation images of a function from images to logits [N, 10]."""
    lines = []
    for name, (images, classes) in (("calibration", calibration()), ("evaluation", evaluation())):
        logits = logits_of(images)
        loss = nn.functional.cross_entropy(logits, classes).item()
        lines.append(f"{name}: loss {loss:.4f} accuracy {(logits.argmax(1) == classes).float().mean():.4f}")
    return lines


if __name__ == "__main__":
    main()
