"""A checkpoint in the original's own layout whose weights are exactly the quantizer's values."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_model

from hpcmpq.export.whole_directory import copy_small_files, replacing_directory
from hpcmpq.models.load import quiet_transformers
from hpcmpq.plan import Plan
from hpcmpq.store import write_json
from hpcmpq.variants import Variants


def export(plan: Plan, variants: Variants, assignment: Mapping[str, str], directory: Path) -> str:
    """Write a Hugging Face directory (or, for a factory's model, `model.safetensors`) beside, then rename it.

    Tokenizer and other small files of the original directory are copied; `assignment.json` says which group
    has which format.
    """
    path = plan.config["model"]["path"]
    with replacing_directory(directory) as attempt:
        with torch.no_grad(), variants.assigned(assignment):
            if path is not None:
                copy_small_files(path, attempt)
                with quiet_transformers():
                    variants.model.save_pretrained(attempt)  # type: ignore[operator]
            else:
                save_model(variants.model, str(attempt / "model.safetensors"))
        write_json(attempt / "assignment.json", dict(assignment))
    return f"fake-quantized checkpoint in {directory}"
