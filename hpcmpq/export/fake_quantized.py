"""A checkpoint in the original's own layout whose weights are exactly the quantizer's values."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_model
from torch import Tensor

from hpcmpq.export.holdable import ExportSubject
from hpcmpq.export.kept_tensors import keep_unused, say_kept
from hpcmpq.export.streamed_files import write_streamed
from hpcmpq.export.written import Written
from hpcmpq.formats import FORMATS
from hpcmpq.models.beside_weights import copy_small_files
from hpcmpq.models.load import quiet_transformers
from hpcmpq.plan import Plan
from hpcmpq.quantized.variants import Variants
from hpcmpq.space import Group
from hpcmpq.store.json_files import write_json


def export(plan: Plan, variants: Variants, assignment: Mapping[str, str], directory: Path) -> Written:
    """Write a Hugging Face directory, or `model.safetensors` of a factory's model.

    Tokenizer and other small files of the original directory are copied. A checkpoint holds no rounding of
    activations: `activations.json`, if there is any, says what the inputs of which layers and products are to be
    rounded to while it runs.
    """
    path = plan.config.model.path
    notes = []
    if variants.streamed is not None and path is not None:
        copy_small_files(path, directory)
        kept = write_streamed(variants.streamed, directory, _rounding(variants, assignment))
        notes += say_kept(kept)
    else:
        notes += _write_whole(variants, assignment, path, directory)
    rounded = rounded_inputs(variants, assignment)
    if rounded:
        write_json(directory / "activations.json", rounded)
        notes.append(
            f"weights only, the inputs of {len(rounded)} modules are rounded as its activations.json says"
        )
    return Written("fake-quantized checkpoint", tuple(notes), holds_codes=False)


def check(subject: ExportSubject) -> None:
    """Nothing is refused."""


def held(subject: ExportSubject, group: Group, names: Sequence[str]) -> tuple[str, ...]:
    """All formats."""
    return tuple(names)


def _write_whole(
    variants: Variants, assignment: Mapping[str, str], path: str | None, directory: Path
) -> list[str]:
    with torch.no_grad(), variants.assigned(assignment):
        if path is None:
            save_model(variants.model, str(directory / "model.safetensors"))
            return []
        copy_small_files(path, directory)
        with quiet_transformers():
            variants.model.save_pretrained(directory)  # type: ignore[operator]
        return say_kept(keep_unused(variants.model, Path(path), directory))


def _rounding(variants: Variants, assignment: Mapping[str, str]) -> Callable[[str, Tensor], Tensor]:
    """What `write_streamed` writes in the place of a weight: its rounded values."""
    chosen = {m.parameter: (m, assignment[g.name]) for g in variants.space.groups for m in g.members}

    def stand_for(name: str, tensor: Tensor) -> Tensor:
        return variants.rounded(*chosen[name], tensor) if name in chosen else tensor

    return stand_for


def rounded_inputs(variants: Variants, assignment: Mapping[str, str]) -> dict[str, dict[str, object]]:
    """{module: number format, kind of range and, if measured, the ranges' ends} of all that rounds activations.

    Formats in blocks have dynamic scales, whatever the quantizer says; nvfp4 has ends of ranges beside them.
    """
    found: dict[str, dict[str, object]] = {}
    for group, modules in zip(variants.space.groups, variants.activations.places, strict=True):
        number_format = FORMATS[assignment[group.name]].activation
        if number_format is None:
            continue
        in_blocks = FORMATS[number_format].block is not None
        kind = "dynamic" if in_blocks else variants.quantizer.activations
        measured = kind == "static" or FORMATS[number_format].static_inputs
        for name in modules.values():
            found[name] = {"format": number_format, "range": kind}
            if measured:
                found[name]["maxima"] = list((variants.maxima or {})[name])
    return found
