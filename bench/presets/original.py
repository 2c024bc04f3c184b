"""The model that presets and mixes have to come close to: SmolLM2, as it is or moved off the grid of its weights."""

import dataclasses
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.results import ROOT
from bench.workload import CACHE
from hpcmpq.config import read_config
from hpcmpq.models.dequantized import unpacked
from hpcmpq.settings import Config

BLOCK = 32
"""Weights that share a scale in the file that SmolLM2 comes as."""

STEPS = {"model.embed_tokens.weight": 254}
"""Steps from the smallest to the largest weight of a block: Q8_0 of the embedding, and of all others:"""

STEPS_OF_OTHERS = 15


def original(plain: bool) -> Config:
    """`configs/smollm2.yaml` with a directory of weights in float32.

    Args:
        plain: The weights as they are; otherwise each is moved by noise, even between half a step of its block down
            and up.
    """
    config = read_config(ROOT / "configs" / "smollm2.yaml")
    plain_config = unpacked(config.model, CACHE / "presets" / "plain")
    directory = Path(str(plain_config.path))
    if not plain:
        moved = CACHE / "presets" / "moved"
        if not (moved / "model.safetensors").exists():
            moved.mkdir(parents=True, exist_ok=True)
            for path in directory.iterdir():
                if path.suffix != ".safetensors" and path.name != "source.json":
                    (moved / path.name).write_bytes(path.read_bytes())
            tensors = load_file(directory / "model.safetensors")
            save_file(moved_off_the_grid(tensors), moved / "model.safetensors", {"format": "pt"})
        directory = moved
    return dataclasses.replace(config, model=dataclasses.replace(config.model, path=str(directory)))


def moved_off_the_grid(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every matrix with noise, the same each time."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, tensor in sorted(tensors.items()):
        found[name] = tensor
        if tensor.ndim == 2:
            blocks_NL = tensor.reshape(-1, BLOCK)
            if name in STEPS:
                step_N1 = 2 * blocks_NL.abs().amax(-1, keepdim=True) / STEPS[name]
            else:
                spread_N1 = blocks_NL.amax(-1, keepdim=True) - blocks_NL.amin(-1, keepdim=True)
                step_N1 = spread_N1 / STEPS_OF_OTHERS
            noise_NL = torch.rand(blocks_NL.shape, generator=generator) - 0.5
            found[name] = (blocks_NL + step_N1 * noise_NL).reshape(tensor.shape)
    return found
