"""A first config for a model, written after looking at its shapes and its data: `hpcmpq init`."""

import logging
import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from hpcmpq.cli.starter_text import SHARES, Counts, starter_text
from hpcmpq.errors import UserError, raise_if_no_room
from hpcmpq.models.data.samples import Samples
from hpcmpq.models.data.sources import read_source
from hpcmpq.models.data.tokenization import find_tokenization
from hpcmpq.models.data.tokens import to_samples
from hpcmpq.models.deployable import fused_layers
from hpcmpq.models.dequantized import unpacked
from hpcmpq.models.description import ModelDescription, describe_model, read_model_json
from hpcmpq.models.groups import find_groups
from hpcmpq.models.load import load_model
from hpcmpq.models.outputs import tried_forward
from hpcmpq.models.streaming import shapes_only
from hpcmpq.settings import CalibrationConfig, GroupsConfig, ModelConfig, is_factory
from hpcmpq.space import Group
from hpcmpq.store.whole_files import replacing
from hpcmpq.targets import TARGETS

SEQUENCE_LENGTH, SHORTEST = 512, 16
"""Tokens of a sample: as many as the model and the data allow between these."""

log = logging.getLogger(__name__)


def write_starter(model_directory: Path, output: Path, data: str | None = None) -> tuple[Group, ...]:
    """Write a commented config for a Hugging Face directory; return the groups that it will search.

    Weights are read only where the model cannot be traced by shapes alone.

    Args:
        model_directory: With `config.json`, or a GGUF file.
        output: The YAML file, which must not exist.
        data: Calibration data as in ``calibration.data`` but for factories; None writes a placeholder.

    Raises:
        UserError: If `output` exists, the model cannot be looked at, or the data do not fit it or are too few.
    """
    if output.exists():
        raise UserError(f"{output} exists and is not overwritten; name another file with --output")
    with tempfile.TemporaryDirectory() as scratch:
        config = unpacked(ModelConfig(path=str(model_directory)), Path(scratch) / "model", weights=False)
        looked_at = Path(str(config.path))
        description = describe_model(config)
        length = min(SEQUENCE_LENGTH, description.max_positions or SEQUENCE_LENGTH)
        counts = Counts(length)
        if data is None:
            inputs = _example_inputs(description, looked_at)
        else:
            counts, samples = _count(data, description, length)
            inputs = samples.of_all_lengths(CalibrationConfig.samples_per_pass).inputs
        groups, ties = look(config, inputs)
        text = starter_text(
            description,
            groups,
            ties,
            counts,
            _beside(model_directory, output),
            _data(data, output),
            read_model_json(looked_at).get("model_type"),
        )
    with replacing(output) as attempt:
        attempt.write_text(text, encoding="utf-8", errors="surrogateescape")
    return groups


def look(
    config: ModelConfig, inputs: dict[str, Tensor]
) -> tuple[tuple[Group, ...], tuple[tuple[str, ...], ...]]:
    """Groups of the model in a directory, and tie rules for layers that engines run as one matrix.

    Args:
        config: Names the directory.
        inputs: Of a batch, which the model must take as calibration will give it one.
    """
    try:
        with shapes_only(config, inputs) as (model, shapes):
            return _grouped(model.eval().requires_grad_(False), shapes)
    except Exception as error:  # the model's own code, on tensors without values
        raise_if_no_room(error)
        reason = str(error).split(";")[0].split("\n")[0]
        log.info("reading the weights, since shapes alone do not do for this model: %s", reason)
    return _grouped(load_model(config), inputs)


def _grouped(
    model: nn.Module, inputs: dict[str, Tensor]
) -> tuple[tuple[Group, ...], tuple[tuple[str, ...], ...]]:
    alone = find_groups(model, GroupsConfig(), inputs)
    with torch.no_grad():
        tried_forward(model, inputs)
    lasts = {group.name.rpartition(".")[2] for group in alone}
    ties = tuple(rule for rule in fused_layers(model, TARGETS["vllm"]) if lasts.issuperset(rule))
    return (find_groups(model, GroupsConfig(tie=ties), inputs) if ties else alone), ties


def _example_inputs(description: ModelDescription, directory: Path) -> dict[str, Tensor]:
    """Inputs of a batch, whose values nobody looks at."""
    if description.takes_tokens:
        return {"input_ids": torch.zeros(2, SHORTEST, dtype=torch.int64)}
    values = read_model_json(directory)
    size, channels = values.get("image_size"), values.get("num_channels", 3)
    if not isinstance(size, int | list):
        raise UserError(
            f"{directory}/config.json does not say its image_size; give data with --data, a .npy array of inputs"
        )
    height, width = size if isinstance(size, list) else (size, size)
    return {description.main_input: torch.zeros(2, channels, height, width)}


def _count(data: str, description: ModelDescription, length: int) -> tuple[Counts, Samples]:
    """How to share out the data: windows are made shorter, and then fewer, until they suffice, and that is said."""
    if is_factory(data):
        raise UserError(f"--data {data} must be a file; write a factory into the config yourself")
    wanted = sum(count for count, _ in SHARES.values())
    source, place = read_source(data, "--data", wanted), f"--data {data}"
    tokenization = find_tokenization(source, place, description, special_tokens=True)
    longest = length
    while True:
        shortest = description.kind != "causal_lm" or length // 2 < SHORTEST
        try:
            samples = to_samples(source, place, description, length, tokenization)
        except UserError:
            if shortest:  # otherwise the text may be too short for one window
                raise
            length //= 2
            continue
        there = len(set(samples.content_hashes()))
        if there >= wanted or shortest:
            break
        length //= 2
    if length < longest:
        log.info("samples of %d tokens instead of %d, for want of text: %d of them", length, longest, there)
    if there >= wanted:
        return Counts(length), samples
    shared = {name: min(count, int(there * share)) for name, (count, share) in SHARES.items()}
    if not all(shared.values()):
        tokens = f" of {length} tokens" if description.kind == "causal_lm" else ""
        raise UserError(
            f"--data {data} has {there} different samples{tokens}; give at least 5, better {wanted}"
        )
    log.info("%d samples are shared out, %d would be better", there, wanted)
    return Counts(length, **shared), samples


def _data(data: str | None, output: Path) -> str | None:
    return None if data is None else _beside(Path(data), output)


def _beside(path: Path, output: Path) -> str:
    """`path` as a config at `output` names it: relative where that is short, otherwise absolute."""
    relative = os.path.relpath(path.resolve(), output.resolve().parent)
    return str(path.resolve()) if relative.startswith("../../..") else relative
