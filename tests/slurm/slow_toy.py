"""A tiny network that takes its time: HPCMPQ_TOY_SECONDS for each forward pass."""

import os
import time

import torch
from torch import Tensor, nn

NUM_UNITS = 32
FORWARDS_PER_UNIT = 5  # the original and four options


class SlowToy(nn.Module):
    """Two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 4)
        for weight in self.parameters():
            weight.data = torch.randn(weight.shape, generator=generator)

    def forward(self, input: Tensor) -> Tensor:
        if input.isnan().any():  # keeps the network from being cut into blocks, which would skip the nap
            raise ValueError("not a number")
        time.sleep(float(os.environ.get("HPCMPQ_TOY_SECONDS", "0")))
        return self.second(self.first(input).relu())


def model() -> SlowToy:
    return SlowToy().eval()


def samples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(NUM_UNITS + 1, 8, generator=generator)  # one is left to evaluate on
    return inputs, torch.zeros(len(inputs), dtype=torch.int64)


def more_samples() -> tuple[Tensor, Tensor]:
    inputs = torch.randn(20, 8, generator=torch.Generator().manual_seed(2))
    return inputs, torch.zeros(len(inputs), dtype=torch.int64)


CONFIG = f"""
model: {{factory: "tests.slurm.slow_toy:model"}}
calibration:
  data: "tests.slurm.slow_toy:samples"
  num_samples: {NUM_UNITS}
  held_out: 0
  samples_per_unit: 1
  samples_per_pass: 1
groups: {{include: ["*"]}}
formats: [int2, int4]
quantizer: {{group_size: null}}
sensitivity: secant
budgets: {{weight_bits: 3.0}}
"""
