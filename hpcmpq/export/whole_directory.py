"""Directories that appear under their name only when they are complete."""

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.pt", "*.gguf")


@contextmanager
def replacing_directory(directory: Path) -> Iterator[Path]:
    """A new directory beside `directory`, which it replaces if the block ends well."""
    attempt = directory.with_name(f".{directory.name}.{uuid.uuid4().hex[:12]}.partial")
    attempt.mkdir(parents=True)
    try:
        yield attempt
        if directory.exists():
            shutil.rmtree(directory)
        attempt.rename(directory)
    finally:
        shutil.rmtree(attempt, ignore_errors=True)


def copy_small_files(model_directory: str, attempt: Path) -> None:
    """Tokenizer, configuration and whatever else lies beside the weights of a Hugging Face directory."""
    skipped = shutil.ignore_patterns(*WEIGHT_FILES, ".*")
    shutil.copytree(model_directory, attempt, ignore=skipped, dirs_exist_ok=True)
