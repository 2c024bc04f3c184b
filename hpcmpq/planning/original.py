"""The model that is planned for, whole in memory or streamed one block at a time, and what planning sees of it."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hpcmpq.errors import UserError
from hpcmpq.models.active_weights import active_shares, chooses_experts
from hpcmpq.models.blocks import block_bytes
from hpcmpq.models.data.samples import Samples
from hpcmpq.models.deployable import deployable_groups
from hpcmpq.models.groups import num_fixed_bytes
from hpcmpq.models.load import load_model, pick_device
from hpcmpq.models.outputs import tried_forward
from hpcmpq.models.repeatable import check_repeatable
from hpcmpq.models.stored_dtype import check_stored_dtype, stored_dtype, wider_dtypes
from hpcmpq.models.stored_headers import Stored, stored_tensors
from hpcmpq.models.stored_weights import Weights, unused_tensors
from hpcmpq.models.streaming import Streamed, load_streamed, shapes_only
from hpcmpq.models.weight_digests import weights_fingerprint
from hpcmpq.sensitivity import find_method, forward_only_names
from hpcmpq.settings import Config
from hpcmpq.space import Group
from hpcmpq.store.measured_times import LATENCY_NAMES
from hpcmpq.targets import Target

UNUSED_SHARE = 0.02
"""Of the numbers in a model's files, from which on those that are no part of the model are news."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Original:
    """The model that is planned for.

    Attributes:
        config: Of the run.
        model: Runs, whole or streamed.
        device: Where it runs.
        streamed: The model's blocks, where they are read when they run; None of a whole one.
        block_bytes: Of a streamed model, bytes outside its blocks and of the largest; None of a whole one.
    """

    config: Config
    model: nn.Module
    device: torch.device
    streamed: Streamed | None = None
    block_bytes: tuple[int, int] | None = None

    @property
    def weights(self) -> Weights | None:
        """Where a streamed model's weights are; None of a whole one."""
        return None if self.streamed is None else self.streamed.weights

    def fingerprint(self) -> str:
        """Digest of all weights."""
        return weights_fingerprint(self.model, self.weights)

    @contextmanager
    def traceable(self, samples: Samples) -> Iterator[tuple[nn.Module, dict[str, Tensor]]]:
        """A model and inputs to find groups with; those of a streamed model have shapes and no values."""
        if self.weights is None:
            yield self.model, samples[:1].inputs
            return
        batch = samples.of_all_lengths(self.config.calibration.samples_per_pass)
        with shapes_only(self.config.model, batch.inputs) as (model, inputs), torch.no_grad():
            tried_forward(model, inputs)
            yield model, inputs


def check_method(config: Config) -> None:
    """Refuse a method that is not there, and settings that it has no use for.

    Raises:
        UserError: Naming the methods that have.
    """
    given, names = config.sensitivity, forward_only_names()
    if given.screen:
        _check_screening(config)
    if find_method(given.method).forward_only:
        return
    for key, value in (("products", given.products), ("loss_positions", given.loss_positions)):
        if value is not None:
            raise UserError(
                f"sensitivity.{key} is for {' and '.join(names)}; leave it out with {given.method}"
            )
    if config.groups.kv_cache:
        raise UserError(f"groups.kv_cache is for {' and '.join(names)}; leave it out with {given.method}")
    if config.model.stream:
        raise UserError(
            f"{given.method} needs the whole model; use {' or '.join(names)}, or set model.stream: false"
        )


def _check_screening(config: Config) -> None:
    """Refuse what options cannot be ruled out for."""
    without = "or leave out sensitivity.screen"
    if config.sensitivity.method != "secant":
        raise UserError(f"sensitivity.screen is for secant; use it, {without}")
    if not config.budgets:
        raise UserError(f"sensitivity.screen rules out what no budget asks for; name a budget, {without}")
    for name in config.budgets:
        if name in LATENCY_NAMES:
            raise UserError(
                f"sensitivity.screen needs budgets that add up over groups, and {name} does not; use others, {without}"
            )
    if config.model.stream:
        raise UserError(
            f"sensitivity.screen takes derivatives of the whole model; set model.stream: false, {without}"
        )
    if config.groups.kv_cache:
        raise UserError(f"sensitivity.screen sees nothing of caches; leave out groups.kv_cache, {without}")
    if config.solver.robust_k > 0:
        raise UserError(f"sensitivity.screen is for the mean loss; set solver.robust_k: 0, {without}")


def load_original(config: Config, import_paths: tuple[str, ...]) -> Original:
    """The model of a config as the sensitivity's method needs it.

    Raises:
        UserError: If it cannot be loaded.
    """
    device = pick_device(config.model.device)
    attention = find_method(config.sensitivity.method).attention
    if attention == "eager" and config.model.path:
        log.info("%s differentiates twice: using eager attention", config.sensitivity.method)
    if not config.model.stream:
        model = load_model(config.model, attention=attention, import_paths=import_paths)
        return Original(config, model, device)
    streamed = load_streamed(config.model)
    itemsize = getattr(torch, config.model.dtype).itemsize
    outside, sizes = block_bytes(streamed.model, streamed.blocks, itemsize)
    return Original(config, streamed.model, device, streamed, (outside, max(sizes)))


@dataclass(frozen=True)
class Found:
    """What is searched, and what is not.

    Attributes:
        groups: To search.
        fixed_bytes: Of the checkpoint outside them.
        active_fixed_bytes: Of these, bytes that are read for a token; None where samples are no tokens.
        tokens_per_sample: Of the sample that arithmetic was counted on; 0 where samples are no tokens.
        original_bits: Of a weight in the dtype that the original says it is stored in.
        chooses: Whether the model chooses experts.
    """

    groups: tuple[Group, ...]
    fixed_bytes: int
    active_fixed_bytes: int | None
    tokens_per_sample: int
    original_bits: int
    chooses: bool = False


def find_groups(original: Original, samples: Samples, target: Target | None) -> Found:
    """The groups to search, and bytes of the checkpoint outside them.

    Args:
        original: Checked on the way: its weights must fit the dtype they are stored in, its outputs repeat.
        samples: Of calibration.
        target: The engine that is to run the result.

    Raises:
        UserError: If the model or a pattern is wrong.
    """
    config, count = original.config, target.fixed_bytes if target else None
    dtype = stored_dtype(config.model)
    wider = wider_dtypes(original.model, config.model.path, dtype)
    check_stored_dtype(original.model, str(config.model.path), dtype, original.weights, wider)
    with original.traceable(samples) as (model, inputs):
        groups = deployable_groups(model, config.groups, inputs, target)
        fixed_bytes = num_fixed_bytes(model, groups, dtype, count, wider=wider)
        chooses = chooses_experts(model, inputs)
        tokens, active_bytes = _num_tokens(inputs), None
        if tokens:
            active_bytes = num_fixed_bytes(model, groups, dtype, count, active_shares(model), wider)
    if original.weights is None:
        batch = samples.of_all_lengths(config.calibration.samples_per_pass)
        check_repeatable(original.model, batch.inputs)
    if config.model.path:
        directory = Path(config.model.path)
        unused = stored_tensors(directory, unused_tensors(original.model, directory))
        _warn_of_unused(original.model, directory, unused)
        if target is None or target.keeps_unused:
            fixed_bytes += _num_bytes(unused, count)
    stored = dtype or getattr(torch, config.model.dtype)
    return Found(groups, fixed_bytes, active_bytes, tokens, 8 * stored.itemsize, chooses)


def _num_bytes(unused: Mapping[str, Stored], count: Callable[[str, Sequence[int], int], int] | None) -> int:
    """Bytes of tensors of a checkpoint, counted as by `hpcmpq.models.weights.num_fixed_bytes`."""
    if count is None:
        return sum(tensor.itemsize * math.prod(tensor.shape) for tensor in unused.values())
    return sum(count(name, tensor.shape, tensor.itemsize) for name, tensor in unused.items())


def _warn_of_unused(model: nn.Module, directory: Path, unused: Mapping[str, Stored]) -> None:
    """Say so if the files hold many numbers that the model has no place for: its config.json may be another's."""
    numel = sum(math.prod(tensor.shape) for tensor in unused.values())
    share = numel / (numel + sum(parameter.numel() for parameter in model.parameters()))
    if share > UNUSED_SHARE:
        log.warning(
            "%.0f %% of the numbers in the files of %s are no part of the model that its config.json describes, first "
            "%s; check that it belongs to them", 100 * share, directory, next(iter(unused)),
        )  # fmt: skip


def say_of_experts(config: Config, chooses: bool) -> None:
    """Warn where what flips of experts' choices cost is taken for something else, or not seen."""
    method = config.sensitivity.method
    if not chooses or find_method(method).forward_only:
        return
    if method == "pairwise" and not config.solver.drop_cross_terms:
        log.warning(
            "options change which experts are chosen, and measured pairs count the same changes several times; use "
            "sensitivity secant, or set solver.drop_cross_terms: true"
        )
    elif method != "pairwise":
        log.warning(
            "options change which experts are chosen, and derivatives see nothing of it: what %s predicts will be too "
            "small; secant measures it", method,
        )  # fmt: skip


def _num_tokens(inputs: dict[str, Tensor]) -> int:
    """Of a sample; 0 where the main input is no token ids."""
    ids_NT = inputs.get("input_ids", next(iter(inputs.values())))
    return ids_NT.shape[1] if ids_NT.ndim == 2 and not ids_NT.is_floating_point() else 0
