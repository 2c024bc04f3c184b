"""Data in an `.npz` file: the model's inputs under the names of its arguments, and `labels` or `targets`."""

import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from hpcmpq.errors import UserError
from hpcmpq.models.description import ModelDescription
from hpcmpq.store.npz_files import NOT_NUMPY

LABELS = "labels"
"""Classes; of a causal language model its own tokens, whose next ones are to be predicted."""

TARGETS = "targets"
"""The same, but of a causal language model the next tokens themselves."""


def read_named_arrays(path: Path, place: str) -> dict[str, np.ndarray]:
    """The arrays of a file, of numbers, finite and of one length.

    Raises:
        UserError: If the file is damaged, an array has no name or is not of numbers, or their lengths differ.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays: dict[str, np.ndarray] = {name: file[name] for name in file.files}
    except NOT_NUMPY as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        raise UserError(
            f"{place} is not a readable .npz file of numbers: {reason}; save it with numpy.savez"
        ) from None
    if not set(arrays) - {LABELS, TARGETS}:
        raise UserError(
            f"{place} holds no inputs; save them with numpy.savez(file, NAME=array, labels=classes)"
        )
    for name, array in arrays.items():
        if re.fullmatch(r"arr_\d+", name):
            raise UserError(
                f"{place} holds an array without a name ({name}); name it after the model's argument, as in "
                "numpy.savez(file, NAME=array, labels=classes)"
            )
        if array.dtype.kind not in "biuf":
            raise UserError(f"{place} array {name!r} holds {array.dtype} values; give numbers")
        if array.ndim == 0:
            raise UserError(f"{place} array {name!r} is a single number; its first axis must be the samples")
    for name in {LABELS, TARGETS} & set(arrays):
        if arrays[name].dtype.kind not in "biu":
            raise UserError(f"{place} array {name!r} holds {arrays[name].dtype} values; give integer classes")
    if {LABELS, TARGETS} <= set(arrays):
        raise UserError(f"{place} holds both labels and targets; give one of them")
    if len({len(array) for array in arrays.values()}) > 1:
        lengths = ", ".join(f"{name} {len(array)}" for name, array in arrays.items())
        raise UserError(f"{place} holds arrays of different lengths: {lengths}; give all of them each sample")
    return arrays


def check_names(inputs: dict[str, Tensor], place: str, description: ModelDescription) -> None:
    """Refuse inputs that the model in a directory does not take, or without its main one.

    A module that a function returns takes whatever it takes: only its own call can tell.

    Raises:
        UserError: If there are such.
    """
    taken = _arguments(description)
    if taken is None:
        return
    names, main_input = taken
    if unknown := sorted(set(inputs) - set(names)):
        near = ", ".join(
            n for n in names if n.startswith(("input", "pixel", "attention", "token", "position"))
        )
        raise UserError(
            f"{place} has an array {unknown[0]!r}, which the model does not take; its inputs are among: {near}"
        )
    if main_input not in inputs and "inputs_embeds" not in inputs:
        raise UserError(f"{place} has no array {main_input!r}, the model's input; it has {', '.join(inputs)}")
    values = inputs.get(main_input)
    if values is not None and values.is_floating_point() == (main_input == "input_ids"):
        wrong = (
            "floats; give integers"
            if main_input == "input_ids"
            else "integers; give floats, scaled for the model"
        )
        raise UserError(f"{place} array {main_input!r} holds {wrong}")


def _arguments(description: ModelDescription) -> tuple[list[str], str] | None:
    """Names of what a directory's model is called with, and of its main input; None where that is not known."""
    if not description.architecture:
        return None
    import transformers

    found: Any = getattr(transformers, description.architecture, None)
    if found is None:
        return None
    return list(inspect.signature(found.forward).parameters)[1:], str(found.main_input_name)
