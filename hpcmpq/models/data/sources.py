"""What a data setting names: a text file, JSONL, a `.npy` array, `.npz` arrays, or a factory."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpcmpq.errors import UserError
from hpcmpq.models.data.chats import MESSAGES, Chat, read_chat
from hpcmpq.models.data.json_lines import holds_lines, read_records
from hpcmpq.models.data.named_arrays import LABELS, TARGETS, read_named_arrays
from hpcmpq.models.factories import call_factory
from hpcmpq.settings import is_factory
from hpcmpq.store.npz_files import NOT_NUMPY


@dataclass(frozen=True)
class Documents:
    """Texts or conversations, with a class each where the data has them, by number or by name."""

    texts: tuple[str | Chat, ...]
    labels: tuple[int | str, ...] | None = None


@dataclass(frozen=True)
class Batch:
    """Samples as a factory gave them: tensors by argument name (None for the main input), perhaps targets.

    `shifted` targets are already the next tokens of a causal language model; Hugging Face's ``labels``
    are not. Inputs of a `named` batch have the names of arguments that the model must have.
    """

    inputs: dict[str | None, Tensor]
    targets: Tensor | None = None
    shifted: bool = True
    named: bool = False


Source = Documents | Tensor | list[Batch]

_TARGET_KEYS = ("targets", "target", "labels", "label")


def read_source(data: str, place: str, max_samples: int, import_paths: Sequence[str] = ()) -> Source:
    """Documents, an array, or batches.

    Args:
        data: Path, or ``package.module:function`` that returns a text, an array, one batch (a dict, a tuple
            of inputs and targets) or an iterable of texts or batches.
        place: Name of the setting, for messages.
        max_samples: An iterator that is not a list is read up to this many samples, so it may be endless.
        import_paths: Directories that factories may be imported from.

    Raises:
        UserError: If it is missing, empty or malformed.
    """
    if is_factory(data):
        return to_source(call_factory(data, import_paths), f"{place} {data}", max_samples)
    path = Path(data)
    if not path.is_file():
        raise UserError(f"there is no file {path}; correct {place}")
    if path.stat().st_size == 0:
        raise UserError(f"{place} {path} is empty; give a file with text or samples")
    suffix = path.suffix.lower()
    if suffix == ".npy":
        try:
            array = np.load(path, allow_pickle=False)
        except NOT_NUMPY as error:
            raise UserError(
                f"{place} {path} is not a readable .npy array: {error}; save it with numpy.save"
            ) from None
        return _tensor(array, f"{place} {path}")
    if suffix == ".npz":
        return [_from_named(read_named_arrays(path, f"{place} {path}"), f"{place} {path}")]
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{place} {path} is not UTF-8 text (byte {error.start}); convert it") from None
    if suffix in (".jsonl", ".ndjson"):
        return _from_jsonl(text, f"{place} {path}")
    if suffix == ".json":
        if not holds_lines(text):
            raise UserError(
                f"{place} {path} is not one JSON object a line, and as text its brackets would be calibrated on; "
                "write a line for each record, as .jsonl has, or call it .txt if it is text"
            )
        return _from_jsonl(text, f"{place} {path}")
    if suffix in (".csv", ".tsv"):
        raise UserError(
            f"{place} {path} is a table, and as text its separators would be calibrated on; write a line of JSON for "
            'each record, {"text": ...}, as .jsonl has, or call it .txt if it is text, and plan again'
        )
    if not text.strip():
        raise UserError(f"{place} {path} is empty; give a file with text or samples")
    return Documents((text,))


def _from_named(arrays: Mapping[str, np.ndarray], place: str) -> Batch:
    tensors = {name: _tensor(array, f"{place} array {name!r}") for name, array in arrays.items()}
    shifted = TARGETS in tensors
    targets = tensors.pop(TARGETS if shifted else LABELS, None)
    inputs: dict[str | None, Tensor] = dict(tensors.items())
    return Batch(inputs, targets, shifted, named=True)


def _from_jsonl(text: str, place: str) -> Documents:
    texts: list[str | Chat] = []
    labels: list[int | str] = []
    for where, record in read_records(text, place):
        if isinstance(record.get("text"), str):
            texts.append(record["text"])
        elif MESSAGES in record:
            texts.append(read_chat(record, where))
        else:
            raise UserError(
                f"{where} has no string field 'text' or list '{MESSAGES}' (it has {', '.join(record)}); rename or add "
                "one, or save token ids as .npz arrays"
            )
        label = record.get("label")
        if label is not None:
            if not isinstance(label, int | str):
                raise UserError(f"{where} has label {label!r}; give a class's number or name")
            labels.append(label)
        if labels and len(labels) < len(texts):
            raise UserError(
                f"{place} has labels in some lines and none in others, such as "
                f"{where.removeprefix(place).lstrip() if label is None else 'line 1'}; give all of them or none"
            )
    if not texts:
        raise UserError(f"{place} is empty; give a file with text or samples")
    return Documents(tuple(texts), tuple(labels) or None)


def to_source(value: Any, place: str, max_samples: int) -> Source:
    """A factory's result, or what a caller has in memory, as a source: see `read_source`.

    Raises:
        UserError: If it is empty or malformed.
    """
    if isinstance(value, str):
        if not value.strip():
            raise UserError(f"{place} returned an empty text")
        return Documents((value,))
    if isinstance(value, Tensor | np.ndarray):
        return _tensor(value, place)
    if isinstance(value, tuple) or hasattr(value, "items"):  # as a tokenizer's result, which is no dict
        return [_batch(value, place)]
    if not isinstance(value, Iterable):
        raise UserError(
            f"{place} returned {type(value).__name__}; return a text, an array, a batch or batches"
        )
    iterator = iter(value)
    first = next(iterator, None)
    if first is None:
        raise UserError(f"{place} returned no batches")
    if isinstance(first, str):
        return Documents((first, *(itertools.islice(iterator, max_samples))))
    batches: list[Batch] = []
    count = 0
    for item in itertools.chain([first], iterator):
        batches.append(_batch(item, place))
        count += len(next(iter(batches[-1].inputs.values())))
        if count >= max_samples and not isinstance(value, list):
            break
    return batches


def _batch(value: Any, place: str) -> Batch:
    if isinstance(value, tuple | list) and len(value) == 2:
        inner = _batch(value[0], place)
        return Batch(inner.inputs, _tensor(value[1], place), True)
    if isinstance(value, Tensor | np.ndarray):
        tensor = _tensor(value, place)
        if tensor.ndim == 0:
            raise UserError(f"{place} yielded a scalar; the first axis of a batch must be its samples")
        return Batch({None: tensor})
    if hasattr(value, "items"):
        inputs: dict[str | None, Tensor] = {str(key): _tensor(item, place) for key, item in value.items()}
        key = next((key for key in _TARGET_KEYS if key in inputs), None)
        targets = None if key is None else inputs.pop(key)
        if not inputs or len({len(item) for item in inputs.values()}) != 1:
            raise UserError(
                f"{place} yielded a batch whose tensors {sorted(map(str, inputs))} differ in samples"
            )
        return Batch(inputs, targets, key in (None, "targets", "target"))
    raise UserError(
        f"{place} yielded {type(value).__name__}; "
        "a batch is a tensor, a dict of tensors, or (inputs, targets)"
    )


def _tensor(value: Any, place: str) -> Tensor:
    try:
        tensor = value if isinstance(value, Tensor) else _from_numpy(value)
    except TypeError:
        raise UserError(f"{place} holds {type(value).__name__} that is not a numeric array") from None
    if tensor.is_complex():
        raise UserError(f"{place} holds complex numbers; give real ones")
    if tensor.numel() == 0:
        raise UserError(f"{place} is an empty array of shape {list(tensor.shape)}; give one with samples")
    if tensor.is_floating_point():
        if not torch.isfinite(tensor).all():
            raise UserError(f"{place} holds NaN or infinite values; clean it")
        return tensor.detach()
    return tensor.detach().to(torch.int64)


def _from_numpy(value: Any) -> Tensor:
    """A copy in the machine's own byte order, which is all that torch takes."""
    array = np.array(value, order="C")
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
