"""Calibration, held-out and evaluation samples of a run, from whatever the config names.

Causal language models get windows of consecutive tokens that do not overlap, each between the special tokens that
the model's tokenizer puts around a text; other token models one sample per document (JSONL record or line of text),
truncated and padded to the sequence length.
"""

import dataclasses
import logging
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from hpcmpq.errors import UserError
from hpcmpq.models.data.choosing import (
    OVERLAPPING,
    REPEATED,
    UNCOUNTED,
    after_all,
    num_rounding_samples,
    take,
    take_for_rounding,
)
from hpcmpq.models.data.overlap import RUN_LENGTH, seen_runs, shared_tokens
from hpcmpq.models.data.samples import IGNORED, SamplePool, Samples, Splits, in_dtype
from hpcmpq.models.data.sources import Documents, read_source
from hpcmpq.models.data.tokenization import Frame, find_tokenization
from hpcmpq.models.data.tokens import to_samples
from hpcmpq.models.description import ModelDescription, describe_model
from hpcmpq.settings import Config

__all__ = ["IGNORED", "Samples", "Splits", "load_splits"]

_log = logging.getLogger(__name__)


def load_splits(config: Config, import_paths: Sequence[str] = ()) -> Splits:
    """The disjoint sets of samples, chosen by ``calibration.seed``.

    The data are permuted; the first ``num_samples`` are for calibration, the next ``held_out`` are held out,
    and evaluation takes up to ``evaluation.num_samples`` of the rest, or of ``evaluation.data``. Error-compensated
    rounding takes ``rounding_samples`` of what is left then, or with ``balance_experts`` candidates for them. A sample
    whose content was taken already is dropped, and so is one of which no position counts: it has no loss; and from
    later sets one that shares much of its text with earlier ones, see `hpcmpq.models.data.overlap`. Of data that
    hold nothing else, such as text from a template, those are taken after all, with a warning.

    Args:
        config: Reads the model's directory for its tokenizer and limits, never its weights.
        import_paths: Directories that factories may be imported from.

    Raises:
        UserError: If data are missing, malformed or too few, or do not fit the model.
    """
    description = describe_model(config.model)
    calibration, evaluation = config.calibration, config.evaluation
    _check_length(config, description)
    separate = evaluation.data is not None and evaluation.data != calibration.data
    sizes = calibration.num_samples, calibration.held_out
    num_rounding = num_rounding_samples(config)
    # Not the candidates: for these an iterator would be read further, and all samples would be others.
    wanted = sum(sizes) + (0 if separate else evaluation.num_samples) + num_rounding
    pool, frame = _read(calibration.data, "calibration.data", config, description, wanted, import_paths)
    order = _permuted(len(pool.samples), calibration.seed)
    taken: set[str] = set()
    passed: Counter[str] = Counter()
    for_calibration = take(pool.samples, order, sizes[0], taken, passed)
    seen = seen_runs(pool.samples[for_calibration])
    spare: list[int] = []
    for_held_out = take(pool.samples, order, sizes[1], taken, passed, seen, spare)
    for_held_out += after_all(spare, sizes[1] - len(for_held_out), passed)
    if separate:
        place = "evaluation.data"
        eval_pool, _ = _read(
            str(evaluation.data), place, config, description, evaluation.num_samples, import_paths
        )
        eval_order, eval_passed = _permuted(len(eval_pool.samples), calibration.seed), Counter[str]()
    else:
        eval_pool, eval_order, eval_passed = pool, order, passed
    needed = sum(sizes) + (not separate)
    seen_too = seen_runs(pool.samples[for_calibration + for_held_out])
    for_evaluation = take(
        eval_pool.samples, eval_order, evaluation.num_samples, taken, eval_passed, seen_too, spare
    )
    if not separate and not for_evaluation:
        for_evaluation = after_all(spare, evaluation.num_samples, passed)
    if len(for_calibration + for_held_out) + (not separate and bool(for_evaluation)) < needed:
        _fail_too_few(config, description, pool.samples, passed, needed)
    if not for_evaluation:
        raise UserError(
            f"none of the {len(eval_pool.samples)} samples of evaluation.data {evaluation.data} is left: "
            f"{_reasons(eval_passed)}; evaluate on other data"
        )
    if separate:
        passed.update(eval_passed)
    for_rounding: list[int] = []
    if num_rounding:
        seen_last = np.union1d(seen_too, seen_runs(eval_pool.samples[for_evaluation]))
        for_rounding = take_for_rounding(pool.samples, order, config, taken, seen_last)
    if passed[REPEATED]:
        _log.warning("dropped %d samples whose content is in an earlier set", passed[REPEATED])
    if passed[OVERLAPPING]:
        _log.warning("dropped %d samples %s", passed[OVERLAPPING], OVERLAPPING)
    if passed[UNCOUNTED]:
        _log.warning("left out %d samples %s: all their labels are %d", passed[UNCOUNTED], UNCOUNTED, IGNORED)
    _say_shared("held-out", pool.samples[for_held_out], seen)
    _say_shared("evaluation", eval_pool.samples[for_evaluation], seen_too)
    if len(for_evaluation) < evaluation.num_samples:
        _log.warning(
            "evaluation has %d samples instead of %d: there are no more",
            len(for_evaluation),
            evaluation.num_samples,
        )
    balanced = calibration.balance_experts
    splits = Splits(
        calibration=pool.part(for_calibration),
        held_out=pool.part(for_held_out),
        evaluation=eval_pool.part(for_evaluation),
        num_dropped=passed[REPEATED],
        num_uncounted=passed[UNCOUNTED],
        num_overlapping=passed[OVERLAPPING],
        special_tokens=frame.words,
        rounding=pool.part(for_rounding) if for_rounding and not balanced else None,
        candidates=SamplePool(pool.part(for_rounding), pool.padded) if for_rounding and balanced else None,
        pool_bytes=pool.samples.nbytes + (eval_pool.samples.nbytes if separate else 0),
    )
    if config.objective == "ce" and not all(
        part.labelled for part in (splits.calibration, splits.evaluation)
    ):
        raise UserError(
            "objective ce needs labels and the data have none; give JSONL with a field `label` to a sequence "
            "classifier, an .npz file with an array `labels`, let a factory give (inputs, targets), or use kl"
        )
    return splits


def _read(
    data: str,
    place: str,
    config: Config,
    description: ModelDescription,
    wanted: int,
    import_paths: Sequence[str],
) -> tuple[SamplePool, Frame]:
    """The samples of a source, and what is around each."""
    # Twice as many as wanted from an endless iterator, since some may be duplicates.
    source = read_source(data, place, 2 * wanted, import_paths)
    calibration, place = config.calibration, f"{place} {data}"
    tokenization = find_tokenization(source, place, description, calibration.special_tokens)
    samples = to_samples(source, place, description, calibration.sequence_length, tokenization)
    inputs = in_dtype(samples.inputs, getattr(torch, config.model.dtype))
    # Plans made before calibration.special_tokens name samples that are padded to the longest of the pool.
    padded = isinstance(source, Documents) and calibration.special_tokens is not None
    return SamplePool(dataclasses.replace(samples, inputs=inputs), padded), tokenization.frame


def _say_shared(name: str, samples: Samples, seen: np.ndarray) -> None:
    """Warn of what samples that are kept have in common with earlier ones."""
    shares = [shared_tokens(samples, n, seen) for n in range(len(samples))]
    if sharing := sum(share > 0 for share in shares):
        _log.warning(
            "%d of %d %s samples share %d or more consecutive tokens with earlier sets, %.2g %% of their tokens in all",
            sharing,
            len(shares),
            name,
            RUN_LENGTH,
            100 * sum(shares) / len(shares),
        )


def _reasons(passed: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in passed.items() if count)


def _permuted(count: int, seed: int) -> Iterator[int]:
    generator = torch.Generator().manual_seed(seed)
    yield from torch.randperm(count, generator=generator).tolist()


def _check_length(config: Config, description: ModelDescription) -> None:
    length, limit = config.calibration.sequence_length, description.max_positions
    if limit is not None and length > limit:
        raise UserError(
            f"calibration.sequence_length {length} is more than the model's {limit} positions; lower it"
        )


def _fail_too_few(
    config: Config, description: ModelDescription, pool: Samples, passed: Counter[str], needed: int
) -> None:
    calibration = config.calibration
    keys = "lower calibration.num_samples or calibration.held_out"
    have, need = f"{len(pool)} samples", f"{needed} are needed"
    if description.kind == "causal_lm":
        tokens = sum(value.numel() for key, value in pool.inputs.items() if key == "input_ids")
        length = pool.inputs["input_ids"].shape[1]
        have = f"{tokens} tokens in {len(pool)} whole samples of {length}"
        need = f"{needed * length} tokens in {needed} samples are needed"
        keys += " or calibration.sequence_length"
    unusable = f" ({_reasons(passed)})" if passed.total() else ""
    raise UserError(
        f"calibration.data {calibration.data} has {have}{unusable}; {need} (calibration "
        f"{calibration.num_samples}, held out {calibration.held_out}, the rest for evaluation); "
        f"{keys}, or give more data"
    )
