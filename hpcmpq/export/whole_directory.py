"""Directories of exported models, which appear under their name only when they are complete."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from hpcmpq.store import whole_files

WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.pt", "*.gguf")


@contextmanager
def replacing_directory(directory: Path) -> Iterator[Path]:
    """See `hpcmpq.store.whole_files.replacing_directory`; a full disk that safetensors meets is one as well."""
    with whole_files.replacing_directory(directory) as attempt:
        try:
            yield attempt
        except SafetensorError as error:
            raise OSError(str(error)) from error


def copy_small_files(model_directory: str, attempt: Path) -> None:
    """Tokenizer, configuration and whatever else lies beside the weights of a Hugging Face directory."""
    skipped = shutil.ignore_patterns(*WEIGHT_FILES, ".*")
    shutil.copytree(model_directory, attempt, ignore=skipped, dirs_exist_ok=True)
