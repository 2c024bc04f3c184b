"""Models and data in memory, kept in the run directory where workers, later stages and later processes find them.

A model of transformers is saved to RUN/original with its tokenizer, data to RUN/data. What a planned run was given is
never written over: the same again is recognised, anything else is refused. Any other module stays in memory
(`hpcmpq.models.in_memory`), where this process alone finds it.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from hpcmpq.errors import PlanMismatch, UserError
from hpcmpq.models.data.source_files import suffix_of, write_source
from hpcmpq.models.data.sources import Documents, Source, to_source
from hpcmpq.models.description import ModelDescription
from hpcmpq.models.in_memory import give
from hpcmpq.models.load import quiet_transformers
from hpcmpq.models.original_marks import settings_of
from hpcmpq.models.weight_digests import weights_fingerprint
from hpcmpq.settings import is_factory
from hpcmpq.store.original import SOURCE, read_source
from hpcmpq.store.own_directories import replacing_own
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.sums import is_listed_as, is_whole, write_sums
from hpcmpq.store.whole_files import replacing


def model_settings(run: RunDir, model: Any, tokenizer: Any) -> dict[str, str]:
    """The `path` or the `factory` of a config's model.

    Args:
        run: Where a model of transformers is saved.
        model: A directory, a GGUF file, ``package.module:function``, or a module.
        tokenizer: Of a model of transformers in memory, or None.

    Raises:
        PlanMismatch: If the run was planned with another model in memory.
        UserError: If it is none of these, or has a tokenizer that cannot be kept with it.
    """
    import transformers

    if isinstance(model, nn.Module):
        _check_values(model)
    if isinstance(model, transformers.PreTrainedModel):
        return {"path": str(_saved(run, model, tokenizer))}
    if tokenizer is not None:
        raise UserError(
            "tokenizer is for a model of transformers in memory; save it into the model's directory, or give data as "
            "token ids"
        )
    if isinstance(model, nn.Module):
        return {"factory": give(model)}
    if not isinstance(model, str | os.PathLike):
        raise UserError(
            f"model is a {type(model).__name__}; give a directory, a module of torch, or 'package.module:function'"
        )
    return {"factory": str(model)} if is_factory(str(model)) else {"path": str(Path(model).resolve())}


def _check_values(model: nn.Module) -> None:
    """Refuse a model without the values of some weights, as those that are offloaded to disk have."""
    absent = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if absent:
        raise UserError(
            f"model has {len(absent)} parameters without values, first {absent[0]}; load it whole, or give its "
            "directory with settings={'model': {'stream': True}}"
        )


def _saved(run: RunDir, model: Any, tokenizer: Any) -> Path:
    directory = run.original_path
    digest = _digest(model, tokenizer)
    before = read_source(directory)
    if before.get("digest") == digest and is_whole(directory):
        return directory
    if before.get("digest", digest) != digest or not directory.exists():
        _check_unplanned(run, "another model")
    with replacing_own(directory, SOURCE) as attempt, quiet_transformers():
        model.save_pretrained(attempt)
        if tokenizer is not None:
            tokenizer.save_pretrained(attempt)
        name = Path(model.name_or_path).name or type(model).__name__
        source = {"path": None, "form": "memory", "digest": digest, "name": name}
        (attempt / SOURCE).write_text(json.dumps(source), encoding="utf-8")
        write_sums(attempt)
    return directory


def _digest(model: Any, tokenizer: Any) -> str:
    """Of the weights, the settings that reach an output, and what the tokenizer makes of texts."""
    total = hashlib.sha256(weights_fingerprint(model).encode())
    total.update(json.dumps([type(model).__name__, settings_of(model)], sort_keys=True, default=str).encode())
    if tokenizer is not None:
        fast = getattr(tokenizer, "backend_tokenizer", None)
        words = json.dumps(tokenizer.get_vocab(), sort_keys=True) if fast is None else fast.to_str()
        total.update(words.encode())
        total.update(
            json.dumps([type(tokenizer).__name__, tokenizer.special_tokens_map], default=str).encode()
        )
    return total.hexdigest()


def data_setting(run: RunDir, use: str, data: Any, description: ModelDescription, max_samples: int) -> str:
    """The file or factory of a config's data.

    Args:
        run: Where data in memory are written.
        use: ``calibration`` or ``evaluation``.
        data: A file, ``package.module:function``, or what `source_of` takes.
        description: Of the model.
        max_samples: As in `source_of`.

    Raises:
        PlanMismatch: If the run was planned with other data in memory.
        UserError: If they are malformed.
    """
    if isinstance(data, str | os.PathLike):
        text = str(data)
        return text if is_factory(text) else str(Path(text).resolve())
    source = source_of(data, f"the {use} data", max_samples)
    path = run.data_path / f"{use}{suffix_of(source)}"
    with tempfile.TemporaryDirectory() as scratch:
        written = Path(scratch) / path.name
        write_source(source, written, f"the {use} data", description)
        content = written.read_bytes()
    before = {old: old.read_bytes() for old in run.data_path.glob(f"{use}.*")}
    if before == {path: content} and is_whole(run.data_path):
        return str(path.resolve())
    if before and before != {path: content} and not is_listed_as(path, content):
        _check_unplanned(run, f"other {use} data")
    with replacing(path) as attempt:
        attempt.write_bytes(content)
    for old in before.keys() - {path}:
        old.unlink()
    write_sums(run.data_path)
    return str(path.resolve())


def source_of(data: Any, place: str, max_samples: int) -> Source:
    """Samples in memory as a source.

    Args:
        data: A list of texts, of records with `text` (and `label`); a `datasets.Dataset` with such columns, or with
            columns of numbers named after the model's arguments; a tensor or array; a dict of tensors; (inputs,
            targets); or an iterable of batches of these, such as a `DataLoader`.
        place: What they are called, for messages.
        max_samples: An iterable that is no list is read up to this many samples.

    Raises:
        UserError: If they are none of these, or malformed.
    """
    if hasattr(data, "column_names") and hasattr(data, "__getitem__"):
        return _of_columns(data, place)
    if isinstance(data, list) and data and isinstance(data[0], str):
        return Documents(tuple(map(str, data)))
    if isinstance(data, list) and data and isinstance(data[0], Mapping) and "text" in data[0]:
        return _documents([row.get("text") for row in data], [row.get("label") for row in data], place)
    if isinstance(data, Mapping) or hasattr(data, "items"):
        return to_source(dict(data.items()), place, max_samples)
    if not isinstance(data, Iterable):
        raise UserError(
            f"{place} are of type {type(data).__name__}; give a file, a list of texts, tensors, or batches of them"
        )
    return to_source(data, place, max_samples)


def _of_columns(data: Any, place: str) -> Source:
    names = data.column_names
    if isinstance(names, Mapping):
        raise UserError(f"{place} have the splits {', '.join(names)}; give one of them")
    if "text" in names:
        return _documents(list(data["text"]), list(data["label"]) if "label" in names else [], place)
    arrays = data.with_format("numpy")
    return to_source({name: arrays[name][:] for name in names}, place, len(data))


def _documents(texts: list[Any], labels: list[Any], place: str) -> Documents:
    if not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{place} have no text in some record; give each a string in 'text'")
    known = [label for label in labels if label is not None]
    if known and len(known) < len(texts):
        raise UserError(f"{place} have labels in some records and none in others; give all of them or none")
    return Documents(tuple(texts), tuple(known) or None)


def _check_unplanned(run: RunDir, what: str) -> None:
    if run.plan_path.exists():
        raise PlanMismatch(f"{run.path} was planned with {what}; restore it or use a new run directory")
