"""A first config for a model, written after looking at its shapes and its data: `hpcmpq init`."""

import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hpcmpq.errors import UserError, raise_if_no_room
from hpcmpq.models.data.samples import Samples, in_dtype
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
from hpcmpq.planning.starter_text import FIRST_BUDGETS, SHARES, Counts, starter_text
from hpcmpq.settings import CalibrationConfig, GroupsConfig, ModelConfig, is_factory
from hpcmpq.space import Group
from hpcmpq.store.whole_files import replacing
from hpcmpq.targets import TARGETS

SEQUENCE_LENGTH, SHORTEST = 512, 16
"""Tokens of a sample: as many as the model and the data allow between these."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Starter:
    """A first config.

    Attributes:
        text: Commented YAML, whose paths are relative to where it is to lie.
        groups: That it searches.
    """

    text: str
    groups: tuple[Group, ...]


def write_starter(model_directory: Path, output: Path, data: str | None = None) -> tuple[Group, ...]:
    """Write a commented config for a Hugging Face directory; return the groups that it will search.

    Args:
        model_directory: With `config.json`, or a GGUF file.
        output: The YAML file, which must not exist.
        data: Calibration data as in ``calibration.data``; None writes a placeholder.

    Raises:
        UserError: If `output` exists, or as `make_starter`.
    """
    if output.exists():
        raise UserError(f"{output} exists and is not overwritten; name another file with --output")
    made = make_starter(ModelConfig(path=str(model_directory)), output, data)
    with replacing(output) as attempt:
        attempt.write_text(made.text, encoding="utf-8", errors="surrogateescape")
    return made.groups


def make_starter(
    model: ModelConfig,
    output: Path,
    data: str | None = None,
    *,
    place: str = "--data",
    sequence_length: int | None = None,
    budgets: Mapping[str, float] = FIRST_BUDGETS,
) -> Starter:
    """A config for a model, from its shapes and its data.

    Weights are read only where the model cannot be traced by shapes alone.

    Args:
        model: A directory, a GGUF file or a factory.
        output: Where the text is to lie.
        data: Calibration data as in ``calibration.data``; None gives a placeholder, but not for a factory.
        place: What calls the data so, for messages.
        sequence_length: Tokens of a sample, by default as many as the model and the data allow up to 512.
        budgets: {cost: upper limit}.

    Raises:
        UserError: If the model cannot be looked at, or the data do not fit it or are too few.
    """
    with tempfile.TemporaryDirectory() as scratch:
        config = unpacked(model, Path(scratch) / "model", weights=False)
        description = describe_model(config)
        length = sequence_length or min(SEQUENCE_LENGTH, description.max_positions or SEQUENCE_LENGTH)
        counts = Counts(length)
        if data is None:
            inputs = example_inputs(description, Path(str(config.path)))
        else:
            counts, samples = _count(data, f"{place} {data}", description, length)
            inputs = samples.of_all_lengths(CalibrationConfig.samples_per_pass).inputs
        groups, ties = look(config, in_dtype(inputs, getattr(torch, config.dtype)))
        type_name = read_model_json(Path(config.path)).get("model_type") if config.path else None
        source = {"factory": str(model.factory)}
        if model.path is not None:
            source = {"path": _beside(Path(model.path), output)}
        named = None if data is None else data if is_factory(data) else _beside(Path(data), output)
        text = starter_text(description, groups, ties, counts, source, named, type_name, budgets)
    return Starter(text, groups)


def look(
    config: ModelConfig, inputs: dict[str, Tensor]
) -> tuple[tuple[Group, ...], tuple[tuple[str, ...], ...]]:
    """Groups of a model, and tie rules for layers that engines run as one matrix.

    Args:
        config: Names the model.
        inputs: Of a batch, which the model must take as calibration will give it one.
    """
    if config.path is None:  # no engine loads it, so none fuses its layers
        return find_groups(load_model(config, import_paths=(os.getcwd(),)), GroupsConfig(), inputs), ()
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


def example_inputs(description: ModelDescription, directory: Path) -> dict[str, Tensor]:
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


def _count(data: str, place: str, description: ModelDescription, length: int) -> tuple[Counts, Samples]:
    """How to share out the data: windows are made shorter, and then fewer, until they suffice, and that is said."""
    wanted = sum(count for count, _ in SHARES.values())
    source = read_source(data, place.removesuffix(f" {data}"), wanted, (os.getcwd(),))
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
        raise UserError(f"{place} has {there} different samples{tokens}; give at least 5, better {wanted}")
    log.info("%d samples are shared out, %d would be better", there, wanted)
    return Counts(length, **shared), samples


def _beside(path: Path, output: Path) -> str:
    """`path` as a config at `output` names it: relative where that is short, otherwise absolute."""
    relative = os.path.relpath(path.resolve(), output.resolve().parent)
    return str(path.resolve()) if relative.startswith("../../..") else relative
