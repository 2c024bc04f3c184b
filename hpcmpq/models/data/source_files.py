"""Sources as files that `hpcmpq.models.data.sources.read_source` reads back as they were."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hpcmpq.errors import UserError
from hpcmpq.models.data.named_arrays import LABELS, TARGETS
from hpcmpq.models.data.sources import Batch, Documents, Source
from hpcmpq.models.description import ModelDescription


def suffix_of(source: Source) -> str:
    """Of the file that holds it.

    Example:
        >>> suffix_of(Documents(("a text",))), suffix_of(torch.zeros(2, 3))
        ('.jsonl', '.npy')
    """
    if isinstance(source, Documents):
        return ".jsonl"
    return ".npy" if isinstance(source, Tensor) else ".npz"


def write_source(source: Source, path: Path, place: str, description: ModelDescription) -> None:
    """Write a source.

    Args:
        source: Texts, an array, or batches, which become one array of each name.
        path: Whose suffix is `suffix_of` the source.
        place: What it is called, for messages.
        description: Of the model, for the name of an input that has none.

    Raises:
        UserError: If batches do not go together.
    """
    if isinstance(source, Documents):
        labels = source.labels or (None,) * len(source.texts)
        records = [
            {"text": text} if label is None else {"text": text, "label": label}
            for text, label in zip(source.texts, labels, strict=True)
        ]
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        return
    with path.open("wb") as file:
        if isinstance(source, Tensor):
            np.save(file, _array(source), allow_pickle=False)
        else:
            np.savez(file, allow_pickle=False, **_named(source, place, description))


def _named(batches: list[Batch], place: str, description: ModelDescription) -> dict[str, np.ndarray]:
    first = batches[0]
    if any(
        set(batch.inputs) != set(first.inputs) or (batch.targets is None) != (first.targets is None)
        for batch in batches
    ):
        raise UserError(f"{place} yields batches with different tensors; every batch must have the same")
    try:
        tensors = {
            description.main_input if key is None else key: torch.cat(
                [batch.inputs[key] for batch in batches]
            )
            for key in first.inputs
        }
        if first.targets is not None:
            targets = [batch.targets for batch in batches if batch.targets is not None]
            tensors[TARGETS if first.shifted else LABELS] = torch.cat(targets)
    except RuntimeError:
        raise UserError(f"{place} yields batches of different shapes; pad them to one length") from None
    return {name: _array(tensor) for name, tensor in tensors.items()}


def _array(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
