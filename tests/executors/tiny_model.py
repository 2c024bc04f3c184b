"""Three linear layers with fixed random weights, and samples: a run of nine units that takes a second."""

import os
import time
from pathlib import Path

import torch
from torch import Tensor, nn

CONFIG = """
model: {{factory: "tests.executors.tiny_model:model"}}
calibration:
  data: "tests.executors.tiny_model:{samples}"
  num_samples: 12
  held_out: 4
  samples_per_unit: 4
  samples_per_pass: 2
groups: {{include: ["*"]}}
formats: [int2, int4]
quantizer: {{group_size: null, rounding: {rounding}}}
objective: kl
sensitivity: {{method: {method}, groups_per_unit: 1}}
budgets: {{weight_bits: 3.0}}
solver: {{time_limit_s: 5}}
"""

PAUSE_S = "TINY_MODEL_PAUSE_S"
"""Environment variable: seconds that a forward pass takes, so that a test can interrupt one."""


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, input: Tensor) -> Tensor:
        time.sleep(float(os.environ.get(PAUSE_S, 0)))
        return self.third(self.second(self.first(input).tanh()).tanh())


def model() -> Tiny:
    torch.manual_seed(0)
    return Tiny()


def samples() -> Tensor:
    return torch.randn(20, 6, generator=torch.Generator().manual_seed(1))


def more_samples() -> Tensor:
    return torch.randn(400, 6, generator=torch.Generator().manual_seed(1))


def write_config(path: Path, method: str = "secant") -> Path:
    """A config of a method; with ``hessian`` weights have stored codes, fitted on 48 samples of their own."""
    rounding, data = ("gptq", more_samples) if method == "hessian" else ("nearest", samples)
    path.write_text(CONFIG.format(method=method, rounding=rounding, samples=data.__name__))
    return path
