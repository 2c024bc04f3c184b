"""A streamed model's checkpoint, read back block after block: by transformers' class of the model, and safetensors.

Both models run in the dtype of the run, and every tensor of the files is compared, so that no difference is explained.
"""

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from hpcmpq.export.streamed_files import tensors_in_turn
from hpcmpq.export.verification import Behaviour, full_precision
from hpcmpq.export.weight_probes import products
from hpcmpq.models.load import forward
from hpcmpq.models.outputs import Inputs
from hpcmpq.models.streaming import Streamed, load_streamed
from hpcmpq.quantized.variants import Variants
from hpcmpq.settings import ModelConfig
from hpcmpq.space import Assignment


@torch.no_grad()
def expected_of_streamed(variants: Variants, assignment: Assignment, inputs: Inputs) -> Behaviour:
    """What the run's model does with all weights of an assignment, and nothing else rounded."""
    streamed = variants.streamed
    assert streamed is not None
    chosen = {m.parameter: (m, assignment[g.name]) for g in variants.space.groups for m in g.members}
    rows = {}
    for name, tensor in tensors_in_turn(streamed):
        value = variants.rounded(*chosen[name], tensor) if name in chosen else tensor
        if value.is_floating_point():
            rows[name] = products(value.to(full_precision(value.dtype)))
    with variants.weighting(assignment)():
        return Behaviour(_outputs(streamed, inputs), rows)


@torch.no_grad()
def read_back_streamed(config: ModelConfig, directory: Path, inputs: Inputs) -> Behaviour:
    """What the model in a directory does.

    Args:
        config: Of the run's model.
        directory: What was exported.
        inputs: Of a sample.
    """
    read = load_streamed(dataclasses.replace(config, path=str(directory)))
    rows = {
        name: products(tensor.to(full_precision(tensor.dtype)))
        for name, tensor in tensors_in_turn(read)
        if tensor.is_floating_point()
    }
    return Behaviour(_outputs(read, inputs), rows)


def _outputs(streamed: Streamed, inputs: Inputs) -> Tensor:
    weights = streamed.weights
    own = {
        name: value.to(weights.device, weights.dtype if value.is_floating_point() else value.dtype)
        for name, value in inputs.items()
    }
    return forward(streamed.model, own).cpu()
