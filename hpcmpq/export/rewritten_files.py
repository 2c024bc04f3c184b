"""A Hugging Face directory in which the tensors of searched weights are replaced by what stands for them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hpcmpq.errors import UserError
from hpcmpq.export.holdable import ExportSubject
from hpcmpq.export.kept_tensors import INDEX, keep_unused, write_index
from hpcmpq.export.streamed_files import write_streamed
from hpcmpq.export.written import holds
from hpcmpq.models.beside_weights import copy_small_files
from hpcmpq.models.description import read_model_json
from hpcmpq.models.load import quiet_transformers
from hpcmpq.models.split_weights import stored_rows
from hpcmpq.models.stored_dtype import stored_dtype, wider_dtypes
from hpcmpq.models.stored_weights import names_in_model
from hpcmpq.models.streaming import Streamed
from hpcmpq.plan import Plan
from hpcmpq.quantized.variants import Variants
from hpcmpq.space import Member


@dataclass(frozen=True)
class StoredPart:
    """What is saved of a weight in one tensor: all of it, or some rows, such as those of an expert.

    Attributes:
        name: Of the tensor.
        member: The weight.
        rows: Those of its matrix; None for all.
    """

    name: str
    member: Member
    rows: slice | None = None

    @property
    def layer(self) -> str:
        """The layer that it is the weight of, for an engine."""
        return self.name.removesuffix(".weight")

    def blocks(self, height: int = 1) -> slice:
        """Its rows, or those of blocks of some rows, which then follow one another."""
        if self.rows is None or height == 1:
            return self.rows or slice(None)
        return slice(self.rows.start // height, -(-self.rows.stop // height))


def parts_of(model: nn.Module, member: Member) -> list[StoredPart]:
    """The tensors in which a packed checkpoint holds a weight."""
    if member.tensors == 1:
        return [StoredPart(member.parameter, member)]
    return [StoredPart(name, member, rows) for name, rows in stored_rows(model, member).items()]


@dataclass(frozen=True)
class Rewritten:
    """What was found while writing.

    Attributes:
        kept: Names of tensors that the model does not use, see `keep_unused`.
        exact: Whether the dtype of the files holds every tensor that is not searched.
    """

    kept: tuple[str, ...]
    exact: bool


def check_rewritable(export: str, subject: ExportSubject) -> None:
    """Refuse a model of which no directory can be rewritten, before anything is written.

    Raises:
        UserError: If it is of no Hugging Face directory, or transformers saves a searched weight joined with others.
    """
    if subject.config.model.path is None:
        raise UserError(f"{export} needs a Hugging Face directory in model.path")
    _refuse_lost(export, subject.unsaved)


def _refuse_lost(export: str, parameters: Iterable[str]) -> None:
    """Refuse searched weights that are not among what transformers saves."""
    if lost := sorted(parameters):
        raise UserError(
            f"transformers saves {lost[0]} under another name, which {export} cannot follow; "
            "exclude it or export fake_quantized"
        )


def original_directory(plan: Plan) -> tuple[Path, dict[str, Any], torch.dtype]:
    """The original's Hugging Face directory, the values of its config.json, and the dtype that it is stored in."""
    path = Path(str(plan.config.model.path))
    return path, read_model_json(path), stored_dtype(plan.config.model) or torch.float32


def rewrite(
    export: str,
    variants: Variants,
    path: Path,
    directory: Path,
    members: Mapping[str, Member],
    stand_for: Callable[[StoredPart], dict[str, Tensor]],
    dtype: torch.dtype,
) -> Rewritten:
    """Write the model with `stand_for` in place of searched weights; the rest in a dtype.

    Args:
        export: Name of the export.
        variants: Of the original.
        path: Its directory.
        directory: Where to write.
        members: {parameter: searched weight}.
        stand_for: The tensors of a weight, or of what is saved of it in one tensor.
        dtype: Of floating tensors that are not searched, unless the original's files keep them wider.

    Raises:
        UserError: If transformers saves a searched weight under a name that leads nowhere.
    """
    copy_small_files(str(path), directory)
    wider = wider_dtypes(variants.model, str(path), dtype)

    def as_stored(name: str, tensor: Tensor) -> Tensor:
        return tensor.to(wider.get(name, dtype)) if tensor.is_floating_point() else tensor

    if variants.streamed is not None:
        return _rewrite_streamed(variants, variants.streamed, directory, members, stand_for, as_stored)
    with quiet_transformers():
        variants.model.save_pretrained(directory)  # type: ignore[operator]
    parts = {member.parameter: parts_of(variants.model, member) for member in members.values()}
    by_name = {part.name: part for own in parts.values() for part in own}
    written: set[str] = set()
    weight_map = {}
    exact = True
    for file in sorted(directory.glob("*.safetensors")):
        tensors: dict[str, Tensor] = {}
        loaded = load_file(file)
        renamed = {old: name for name, old in names_in_model(variants.model, loaded).items()}
        for old, tensor in loaded.items():
            if own := [by_name[old]] if old in by_name else parts.get(renamed.get(old, old)):
                for part in own:
                    tensors.update(stand_for(part))
                    written.add(part.member.parameter)
            else:
                kept = as_stored(renamed.get(old, old), tensor)
                exact = exact and holds(tensor, kept.dtype)
                tensors.update(_biases(parts, renamed.get(old, old), kept) or {old: kept})
        save_file(tensors, file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, file.name))
    _refuse_lost(export, set(members) - written)
    if (directory / INDEX).exists():
        write_index(directory, weight_map)
    return Rewritten(keep_unused(variants.model, path, directory), exact)


def _rewrite_streamed(
    variants: Variants,
    streamed: Streamed,
    directory: Path,
    members: Mapping[str, Member],
    stand_for: Callable[[StoredPart], dict[str, Tensor]],
    as_stored: Callable[[str, Tensor], Tensor],
) -> Rewritten:
    exact = True
    parts = {member.parameter: parts_of(variants.model, member) for member in members.values()}

    def stands_for(name: str, tensor: Tensor) -> dict[str, Tensor] | Tensor:
        nonlocal exact
        if name in parts:
            return {key: value for part in parts[name] for key, value in stand_for(part).items()}
        kept = as_stored(name, tensor)
        exact = exact and holds(tensor, kept.dtype)
        return _biases(parts, name, kept) or kept

    names = [part.name for own in parts.values() for part in own]
    unused = write_streamed(streamed, directory, stands_for, names)
    return Rewritten(unused, exact)


def _biases(parts: Mapping[str, list[StoredPart]], name: str, bias: Tensor) -> dict[str, Tensor]:
    """{name: bias} of each expert where a tensor is the biases of experts that are taken apart; else nothing."""
    own = parts.get(name.removesuffix("_bias"), ()) if name.endswith("_bias") else ()
    flat = bias.reshape(-1)
    return {f"{part.layer}.bias": flat[part.blocks()].contiguous() for part in own if part.rows is not None}
