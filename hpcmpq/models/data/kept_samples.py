"""Calibration samples in RUN/samples.safetensors, as `hpcmpq plan` chose them, and those that rounding is fitted on.

Workers read them from there: none tokenizes the whole text again, and none needs the text, or sees it changed.
Stages that need the other samples too split the data again.
"""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

from hpcmpq.errors import UserError
from hpcmpq.models.data.samples import Samples, Splits
from hpcmpq.models.data.splits import load_splits
from hpcmpq.plan import Plan, content_hash
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.whole_files import replacing

NAME, ROUNDING_NAME = "samples.safetensors", "rounding_samples.safetensors"
ROUNDING = "calibration.rounding"
"""The fact of a plan that names the samples to fit rounding on, where these are not the calibration samples."""

_INPUT, _TARGETS = "input.", "targets"


def keep_samples(run: RunDir, samples: Samples, name: str = NAME) -> None:
    """Write the samples; inputs as ``input.NAME``, targets as ``targets``, the rest as metadata.

    A file that holds them already stays as it is: workers map it, and where the file system is shared by nodes a
    map ends with the file that it is of.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with suppress(UserError):  # damaged: written anew
        if _identity(_read(run, name)) == _identity(samples):
            return
    # Copies, since tensors that share memory are refused, such as one that is given under two names.
    tensors = {_INPUT + key: _copy(tensor) for key, tensor in samples.inputs.items()}
    if samples.targets is not None:
        tensors[_TARGETS] = _copy(samples.targets)
    with replacing(run.file(name)) as attempt:
        try:
            save_file(tensors, attempt, {"labelled": str(int(samples.labelled)), "format_version": "1"})
        except SafetensorError as error:
            raise OSError(str(error)) from error  # such as a full disk


def kept_samples(run: RunDir, plan: Plan) -> Samples | None:
    """The samples that the plan names, or None if a version before this file planned the run.

    Raises:
        UserError: If the file is damaged or holds other samples, or some of which no position counts.
    """
    samples = _read(run)
    if samples is None:
        return None
    if not _are_planned(samples, plan):
        raise UserError(f"{run.file(NAME)} holds other samples than the plan names; {_again(run)}")
    if without := sum(not samples.counts(n) for n in range(len(samples))):
        raise UserError(
            f"no position counts in {without} of the {len(samples)} calibration samples, so they have no loss, and "
            "the version that planned the run took it for 0; plan in a new run directory"
        )
    return samples


def rounding_samples(run: RunDir, plan: Plan) -> Samples:
    """The samples that the plan fits rounding on; of older plans the calibration samples.

    Raises:
        UserError: If the file is damaged, or, where there is none, the data have changed.
    """
    if ROUNDING not in plan.facts:
        kept = kept_samples(run, plan)
        return planned_splits(plan).calibration if kept is None else kept
    samples = _read(run, ROUNDING_NAME)
    if samples is None:
        samples = planned_splits(plan).rounding
    if samples is None or not _are_fitted_on(samples, plan):
        raise UserError(
            f"the samples to fit rounding on are not those that {run.path} was planned with; {_again(run)}"
        )
    return samples


def planned_splits(plan: Plan) -> Splits:
    """Calibration, held-out and evaluation samples from the data, which must still be those of the plan.

    Raises:
        UserError: If the data have changed: the samples to evaluate on might be some that were calibrated on.
    """
    splits = load_splits(plan.config, plan.import_paths)
    if not _are_planned(splits.calibration, plan):
        left_out = splits.num_uncounted
        why = f" ({left_out} of which no position counts are left out now)" if left_out else ""
        raise UserError(
            f"{plan.config.calibration.data} gives other calibration samples than the run was planned with{why}; "
            "restore it, or use a new run directory"
        )
    if plan.balanced:
        splits = with_balanced(splits, plan.balanced["chosen"])
        if splits.rounding is None or not _are_fitted_on(splits.rounding, plan):
            raise UserError(
                f"{plan.config.calibration.data} gives other samples to fit rounding on than the run was planned with; "
                "restore it, or use a new run directory"
            )
    return splits


def with_balanced(splits: Splits, chosen: Sequence[int]) -> Splits:
    """The splits with the samples to fit rounding on, chosen of the candidates; without where there are too few.

    Args:
        splits: With candidates.
        chosen: Which of them, ascending.
    """
    candidates = splits.candidates
    if candidates is None or not chosen or max(chosen) >= len(candidates.samples):
        return splits
    return dataclasses.replace(splits, rounding=candidates.part(chosen), candidates=None)


@contextmanager
def already_said() -> Iterator[None]:
    """Inside, nothing is said of the data: the process that hands out work has said it."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)


def _are_planned(samples: Samples, plan: Plan) -> bool:
    facts: dict[str, object] = {"calibration.samples": content_hash(samples.content_hashes())}
    if "calibration.targets" in plan.facts:
        facts["calibration.targets"] = samples.targets_hash()
    return all(plan.facts[name] == value for name, value in facts.items())


def _are_fitted_on(samples: Samples, plan: Plan) -> bool:
    return content_hash(samples.content_hashes()) == plan.facts.get(ROUNDING)


def _read(run: RunDir, name: str = NAME) -> Samples | None:
    """What a file holds, mapped into memory; None where there is none."""
    from safetensors import SafetensorError, safe_open

    path = run.file(name)
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            labelled = file.metadata()["labelled"] == "1"
            tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in list(file.keys())}
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is damaged ({reason}); {_again(run)}") from None
    targets = tensors.pop(_TARGETS, None)
    inputs = {key.removeprefix(_INPUT): tensor for key, tensor in tensors.items()}
    return Samples(inputs, targets, labelled)


def _again(run: RunDir) -> str:
    return f"run `hpcmpq plan CONFIG --run-dir {run.path}` again"


def _identity(samples: Samples | None) -> tuple[list[str], str | None] | None:
    return None if samples is None else (samples.content_hashes(), samples.targets_hash())


def _copy(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)
