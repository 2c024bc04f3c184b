"""Calibration, held-out and evaluation samples of a run, from whatever the config names.

Causal language models get windows of consecutive tokens that do not overlap; other token models one sample
per document (JSONL record or line of text), truncated and padded to the sequence length.
"""

import dataclasses
import logging
from collections.abc import Iterator, Sequence

import torch

from hpcmpq.config import Config
from hpcmpq.errors import UserError
from hpcmpq.models.data.samples import IGNORED, Samples, Splits
from hpcmpq.models.data.sources import read_source
from hpcmpq.models.data.tokens import to_samples
from hpcmpq.models.description import ModelDescription, describe_model

__all__ = ["IGNORED", "Samples", "Splits", "load_splits"]

_log = logging.getLogger(__name__)


def load_splits(config: Config, import_paths: Sequence[str] = ()) -> Splits:
    """The three disjoint sets of samples, chosen by ``calibration.seed``.

    The data are permuted; the first ``num_samples`` are for calibration, the next ``held_out`` are held out,
    and evaluation takes up to ``evaluation.num_samples`` of the rest, or of ``evaluation.data``. A sample
    whose content was taken already is dropped.

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
    needed = calibration.num_samples + calibration.held_out
    wanted = needed if separate else needed + evaluation.num_samples
    pool = _read(calibration.data, "calibration.data", config, description, wanted, import_paths)
    taken: set[str] = set()
    chosen, dropped = _take(pool, wanted, calibration.seed, taken)
    if len(chosen) < needed + (not separate):
        _fail_too_few(config, description, pool, dropped, needed + (not separate))
    if separate:
        place = "evaluation.data"
        eval_pool = _read(
            str(evaluation.data), place, config, description, evaluation.num_samples, import_paths
        )
        eval_chosen, eval_dropped = _take(eval_pool, evaluation.num_samples, calibration.seed, taken)
        dropped += eval_dropped
        evaluation_samples = eval_pool[eval_chosen]
        if not eval_chosen:
            raise UserError(
                f"all {len(eval_pool)} samples of {place} {evaluation.data} are calibration or held-out "
                "samples; evaluate on other data"
            )
    else:
        evaluation_samples = pool[chosen[needed:]]
    if dropped:
        _log.warning("dropped %d samples whose content is in an earlier set", dropped)
    if len(evaluation_samples) < evaluation.num_samples:
        _log.warning(
            "evaluation has %d samples instead of %d: there are no more",
            len(evaluation_samples),
            evaluation.num_samples,
        )
    splits = Splits(
        calibration=pool[chosen[: calibration.num_samples]],
        held_out=pool[chosen[calibration.num_samples : needed]],
        evaluation=evaluation_samples,
        num_dropped=dropped,
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
) -> Samples:
    # Twice as many as wanted from an endless iterator, since some may be duplicates.
    source = read_source(data, place, 2 * wanted, import_paths)
    samples = to_samples(source, f"{place} {data}", description, config.calibration.sequence_length)
    dtype = getattr(torch, config.model.dtype)
    inputs = {
        key: value.to(dtype) if value.is_floating_point() else value for key, value in samples.inputs.items()
    }
    return dataclasses.replace(samples, inputs=inputs)


def _take(pool: Samples, wanted: int, seed: int, taken: set[str]) -> tuple[list[int], int]:
    """Up to `wanted` indices in permuted order with new content, and how many were passed over."""
    chosen: list[int] = []
    dropped = 0
    for index in _permuted(len(pool), seed):
        if len(chosen) == wanted:
            break
        content = pool.content_hash(index)
        if content in taken:
            dropped += 1
        else:
            taken.add(content)
            chosen.append(index)
    return chosen, dropped


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
    config: Config, description: ModelDescription, pool: Samples, dropped: int, needed: int
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
    repeated = f" ({dropped} with repeated content)" if dropped else ""
    raise UserError(
        f"calibration.data {calibration.data} has {have}{repeated}; {need} (calibration "
        f"{calibration.num_samples}, held out {calibration.held_out}, the rest for evaluation); "
        f"{keys}, or give more data"
    )
