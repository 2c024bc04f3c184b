"""A checkpoint in the original's own layout whose weights are exactly the quantizer's values."""

import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_model

from hpcmpq.config import parse_config
from hpcmpq.models.load import load_model, quiet_transformers
from hpcmpq.plan import Plan
from hpcmpq.store import RunDir, write_json
from hpcmpq.variants import Variants

WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.pt", "*.gguf")


def export(run: RunDir, plan: Plan, assignment: Mapping[str, str], directory: Path) -> str:
    """Write a Hugging Face directory (or, for a factory's model, `model.safetensors`) beside, then rename it.

    Tokenizer and other small files of the original directory are copied; `assignment.json` says which group
    has which format.
    """
    config = parse_config(plan.config, "plan.json")
    model = load_model(config.model, import_paths=plan.import_paths)
    attempt = directory.with_name(f".{directory.name}.{uuid.uuid4().hex[:12]}.partial")
    attempt.mkdir(parents=True)
    try:
        with torch.no_grad(), Variants(model, plan.space, config.quantizer).assigned(assignment):
            if config.model.path is not None:
                skipped = shutil.ignore_patterns(*WEIGHT_FILES, ".*")
                shutil.copytree(config.model.path, attempt, ignore=skipped, dirs_exist_ok=True)
                with quiet_transformers():
                    model.save_pretrained(attempt)  # type: ignore[operator]
            else:
                save_model(model, str(attempt / "model.safetensors"))
        write_json(attempt / "assignment.json", dict(assignment))
        if directory.exists():
            shutil.rmtree(directory)
        attempt.rename(directory)
    finally:
        shutil.rmtree(attempt, ignore_errors=True)
    return f"fake-quantized checkpoint in {directory}"
