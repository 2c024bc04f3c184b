"""Models whose weights are quantized already, as a directory that holds plain numbers: `hpcmpq plan` writes it once.

A GGUF file, and the forms that transformers turns into plain numbers (`DEQUANTIZED`), become RUN/original: every later
stage, streaming and exports then see a model like any other, without a trace of the old form. The numbers are exact
where `model.dtype` is float32, and rotary positions are scaled as the file says. Everything else that is quantized is
refused in a sentence, and so are files of which something is missing or went nowhere.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hpcmpq.errors import PlanMismatch, UserError
from hpcmpq.models.beside_weights import copy_small_files
from hpcmpq.models.cut_blocks import whole_blocks
from hpcmpq.models.description import describe_model, read_model_json
from hpcmpq.models.factories import describe
from hpcmpq.models.gguf_source import carry_rotations, check_all_taken, open_whole, unread_keys
from hpcmpq.models.load import LACKS_FILES, check_none_missing, model_class, quiet_transformers
from hpcmpq.models.quantized_form import DEQUANTIZED, SETTINGS, SIDECARS, form_of, settings_of
from hpcmpq.models.stored_weights import kept_in_float32
from hpcmpq.settings import ModelConfig
from hpcmpq.store.original import SOURCE, read_source
from hpcmpq.store.own_directories import replacing_own
from hpcmpq.store.sums import is_whole, write_sums

_SAMPLED = 2**20

log = logging.getLogger(__name__)


def unpacked(config: ModelConfig, directory: Path, *, weights: bool = True) -> ModelConfig:
    """The config of the same model with plain weights: in `directory` if they are quantized, else unchanged.

    Args:
        config: Of a factory, a directory or a GGUF file.
        directory: Where plain weights are written, or lie from an earlier call.
        weights: Without, only `config.json` and the tokenizer are written, to look at shapes.

    Raises:
        UserError: If the weights are in a form that cannot be turned into plain numbers here.
        PlanMismatch: If the directory was made of other weights.
    """
    if config.path is None:
        return config
    path = Path(config.path)
    form = "gguf" if path.suffix == ".gguf" and path.is_file() else form_of(path)
    if form is None:
        return config
    source = {"path": str(path), "form": form, "digest": source_digest(path), "dtype": config.dtype}
    before = read_source(directory)
    if before and any(before.get(key) != source[key] for key in ("digest", "dtype")):
        raise PlanMismatch(
            f"{directory} holds the dequantized weights of {before.get('path')} in {before.get('dtype')}, and "
            f"{path} in {config.dtype} is another model; restore it or use a new run directory"
        )
    if not before or not is_whole(directory):
        if weights:
            log.info(
                "%s is quantized (%s): its weights are dequantized to %s in %s",
                path,
                form,
                config.dtype,
                directory,
            )
        remarks: Sequence[str] = ()
        with replacing_own(directory, SOURCE) as attempt:
            if form != "gguf":
                copy_small_files(str(path), attempt, but=("config.json", *SIDECARS))
            try:
                with quiet_transformers():
                    if form == "gguf":
                        remarks = _write_gguf(config, attempt, weights)
                    else:
                        _write_directory(config, form, attempt, weights)
            except UserError:
                raise
            except Exception as error:  # whatever transformers raises on a file
                raise UserError(
                    f"cannot dequantize {path} ({form}): {describe(error)}; give the original model, or load it in a "
                    "function and use model.factory"
                ) from error
            (attempt / SOURCE).write_text(json.dumps(source), encoding="utf-8")
            write_sums(attempt)
        for remark in remarks:
            log.warning("%s %s", path, remark)
    return replace(config, path=str(directory.resolve()))


def _write_gguf(config: ModelConfig, directory: Path, weights: bool) -> list[str]:
    """Write the model of a file, or its config alone; what to say of it."""
    import transformers

    path = Path(str(config.path))
    reader = open_whole(path)
    unread, remarks = unread_keys(reader), list[str]()
    if unread:
        remarks.append(
            f"says {', '.join(unread)}, which transformers does not read; check that it changes nothing"
        )
    options = {"gguf_file": path.name, "local_files_only": True}
    try:
        transformers.AutoTokenizer.from_pretrained(
            path.parent, trust_remote_code=False, **options
        ).save_pretrained(directory)
    except Exception as error:  # a file without one is a model all the same
        remarks.append(f"gives no tokenizer ({describe(error)}); give token ids as data")
    if weights:
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            path.parent,
            dtype=getattr(torch, config.dtype),
            output_loading_info=True,
            trust_remote_code=False,
            **options,
        )
        check_none_missing(path, info["missing_keys"], "copy it again")
        check_all_taken(reader, model, info["unexpected_keys"], path)
        carry_rotations(reader, model.config, path)
        _save_plain(model, directory, config)
        return remarks
    values = transformers.AutoConfig.from_pretrained(path.parent, trust_remote_code=False, **options)
    carry_rotations(reader, values, path)
    values.architectures = [transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(values)].__name__]
    _without_form(values).save_pretrained(directory)
    return remarks


def _write_directory(config: ModelConfig, form: str, directory: Path, weights: bool) -> None:
    import transformers

    path = Path(str(config.path))
    if weights:
        settings = getattr(transformers, DEQUANTIZED[form])(dequantize=True)
        description = describe_model(config)
        with _in_blocks(path, form):
            model, info = model_class(description).from_pretrained(
                path,
                dtype=getattr(torch, config.dtype),
                quantization_config=settings,
                local_files_only=True,
                output_loading_info=True,
                trust_remote_code=False,
            )
        check_none_missing(path, info["missing_keys"], LACKS_FILES, description.kind)
        _save_plain(model, directory, config)
        return
    _without_form(
        transformers.AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    ).save_pretrained(directory)


def _in_blocks(path: Path, form: str) -> AbstractContextManager[None]:
    """Where transformers spreads the scales of blocks as a directory's config says."""
    settings = settings_of(read_model_json(path)) or {}
    block = settings.get("weight_block_size") if form == "fp8" else None
    return whole_blocks((block[0], block[1])) if block else nullcontext()


def _save_plain(model: nn.Module, directory: Path, config: ModelConfig) -> None:
    packed = [name for name, parameter in model.named_parameters() if not parameter.is_floating_point()]
    packed += [name for name, p in model.named_parameters() if p.element_size() < 2]
    if packed:
        raise UserError(
            f"transformers leaves {packed[0]} of {config.path} packed; give the original model, or load it dequantized "
            "in a function and use model.factory"
        )
    _without_form(model.config)
    model.hf_quantizer = None  # type: ignore[assignment]
    vars(model).pop("_weight_conversions", None)  # which would quantize again when saving
    dtype = getattr(torch, config.dtype)
    tensors = {
        name: t for name, t in (*model.named_parameters(), *model.named_buffers()) if t.is_floating_point()
    }
    for name in tensors.keys() - kept_in_float32(model, tensors, dtype):
        tensors[name].data = tensors[name].data.to(dtype)
    model.save_pretrained(directory)  # type: ignore[operator]


def _without_form(values: Any) -> Any:
    """A transformers config without any mark of quantization, inner ones included."""
    inner: Iterable[Any] = vars(values).values()
    for each in (
        values,
        *(value for value in inner if hasattr(value, "to_dict") and hasattr(value, "model_type")),
    ):
        for key in SETTINGS:
            if key in vars(each):
                delattr(each, key)
    return values


def source_digest(path: Path) -> str:
    """A hash of a file, or of a directory's weight files: names, sizes, and the bytes at both ends."""
    state = hashlib.sha256()
    files = (
        [path]
        if path.is_file()
        else sorted(f for f in path.iterdir() if f.suffix in (".safetensors", ".bin"))
    )
    for file in files:
        size = file.stat().st_size
        state.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as stream:
            state.update(stream.read(_SAMPLED))
            stream.seek(max(0, size - _SAMPLED))
            state.update(stream.read(_SAMPLED))
    return state.hexdigest()
