"""A calibrated run that takes a second: what the examples of the docstrings work on."""

import atexit
import tempfile
from collections import OrderedDict
from functools import cache

import torch
from torch import Tensor, nn

from hpcmpq.api.run import Run


def example_model() -> nn.Module:
    """Three linear layers with random weights: float32 [N, 6] to [N, 5]."""
    torch.manual_seed(0)
    layers = [nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 5)]
    return nn.Sequential(OrderedDict(zip(("first", "a", "second", "b", "third"), layers, strict=True)))


def example_data() -> Tensor:
    """Twenty-four random samples, float32 [24, 6]."""
    return torch.randn(24, 6, generator=torch.Generator().manual_seed(1))


@cache
def example_run() -> Run:
    """A calibrated run of `example_model` in a directory that goes when the process ends: 3 groups in 3 formats.

    Example:
        >>> list(example_run().groups.index)
        ['first', 'second', 'third']
    """
    scratch = tempfile.TemporaryDirectory()
    atexit.register(scratch.cleanup)
    run = Run.create(
        example_model(),
        example_data(),
        run_dir=scratch.name,
        formats=["int2", "int4", "int8"],
        budgets={"weight_bits": 4},
        num_samples=8,
        settings={
            "groups": {"include": ["*"]},
            "solver": {"time_limit_s": 1},
            "refine": {"max_evaluations": 4, "link_points": 3},
        },
    )
    run.calibrate()
    return run
