"""A streamed model's exports, read back a block or a tensor at a time.

A checkpoint of plain weights runs in transformers' class of the model: both models run in the dtype of the run, and
every tensor of the files is compared, so that no difference is explained. Of the other exports every tensor is unpacked
by the library that does so when their users load them, and compared.
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from hpcmpq.errors import NotReproduced, raise_if_no_room
from hpcmpq.export import gguf_reader
from hpcmpq.export.decompressed import decompressed_in_turn
from hpcmpq.export.mlx_reader import dequantized_in_turn
from hpcmpq.export.readers import reader_name
from hpcmpq.export.rewritten_files import parts_of
from hpcmpq.export.streamed_files import in_files, tensors_in_turn
from hpcmpq.export.verification import (
    ADVICE,
    Behaviour,
    Verification,
    compare_rows,
    decoded,
    full_precision,
)
from hpcmpq.export.weight_probes import Rows, products
from hpcmpq.export.written import Written
from hpcmpq.formats import FORMATS
from hpcmpq.models.factories import describe
from hpcmpq.models.load import forward, quiet_transformers
from hpcmpq.models.outputs import Inputs
from hpcmpq.models.streaming import Streamed, load_streamed
from hpcmpq.models.weights import as_matrix
from hpcmpq.quantized.variants import Variants
from hpcmpq.settings import ModelConfig
from hpcmpq.space import Assignment


@torch.no_grad()
def expected_of_streamed(variants: Variants, assignment: Assignment, inputs: Inputs) -> Behaviour:
    """What the run's model does with all weights of an assignment, and nothing else rounded."""
    rows = rows_of_streamed(variants, assignment, codes=False)
    assert variants.streamed is not None
    with variants.weighting(assignment)():
        return Behaviour(_outputs(variants.streamed, inputs), rows)


Parts = Callable[[str, Tensor], dict[str, Tensor]]
"""(the model's name, value) → {name: what is compared}."""


@torch.no_grad()
def rows_of_streamed(
    variants: Variants,
    assignment: Assignment,
    codes: bool,
    parts: Parts = lambda name, value: {name: value},
) -> Rows:
    """What weights under an assignment make of probes: codes times scales in full precision, or as the run has them."""
    streamed = variants.streamed
    assert streamed is not None
    chosen = {m.parameter: (m, assignment[g.name]) for g in variants.space.groups for m in g.members}
    rows = {}
    for name, tensor in tensors_in_turn(streamed):
        value = tensor
        if name in chosen:
            member, format_name = chosen[name]
            if codes and FORMATS[format_name].scaled:
                value = decoded(variants, member, format_name, tensor)
            else:
                value = variants.rounded(member, format_name, tensor)
        for own, part in parts(name, value).items() if value.is_floating_point() else ():
            rows[own] = products(part.to(full_precision(part.dtype)))
    return rows


@torch.no_grad()
def check_in_turn(
    name: str, variants: Variants, assignment: Assignment, directory: Path, written: Written
) -> Verification:
    """That every tensor of an export means the run's.

    Raises:
        NotReproduced: If one does not, or is missing, or cannot be read.
    """
    streamed = variants.streamed
    assert streamed is not None
    reader, read_in_turn = _IN_TURN[name]
    one_by_one = [partial(_one_by_one, variants, streamed)] if name == "compressed_tensors" else []
    expected = rows_of_streamed(variants, assignment, True, *one_by_one)
    names = {stored: own for own, stored in reversed(streamed.weights.aliases.items())}
    dtype = full_precision(streamed.weights.dtype)
    rows: Rows = {}
    try:
        with quiet_transformers():
            for stored, tensor in read_in_turn(streamed, directory, dtype):
                own = names.get(stored, stored)
                if own in expected:
                    rows[own] = products(tensor.to(dtype))
    except Exception as error:  # another library's, on files that may be wrong in any way
        raise_if_no_room(error)
        raise NotReproduced(
            f"{reader_name(reader)} cannot read the {name} export back ({describe(error)}); {ADVICE}"
        ) from error
    return compare_rows(name, reader_name(reader), rows, expected, written)


def _one_by_one(variants: Variants, streamed: Streamed, name: str, value: Tensor) -> dict[str, Tensor]:
    """Experts as packed checkpoints hold them, what else transformers takes apart as it does, the rest as it is."""
    members = {m.parameter: m for group in variants.space.groups for m in group.members if m.tensors > 1}
    if name in members:
        matrix_MK = as_matrix(value, members[name])
        return {part.name: matrix_MK[part.blocks()] for part in parts_of(variants.model, members[name])}
    if (biased := members.get(name.removesuffix("_bias"))) is not None:
        parts = [part for part in parts_of(variants.model, biased) if part.name not in streamed.weights.files]
        return {f"{part.layer}.bias": value.reshape(-1)[part.blocks()] for part in parts} or {name: value}
    return in_files(streamed, name, value) if name in streamed.weights.joined else {name: value}


def _compressed(streamed: Streamed, directory: Path, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    return decompressed_in_turn(directory, dtype)


def _gguf(streamed: Streamed, directory: Path, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    return gguf_reader.dequantized_in_turn(streamed.model, directory / "model.gguf")


def _mlx(streamed: Streamed, directory: Path, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    return dequantized_in_turn(directory)


_IN_TURN = {
    "compressed_tensors": ("decompressed", _compressed),
    "gguf": ("gguf", _gguf),
    "mlx": ("mlx", _mlx),
}
"""What reads each export one tensor at a time: its name in `hpcmpq.export.readers`, and how."""


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
