"""Directories of exported models, which appear under their name only when they are complete."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from hpcmpq.store import whole_files


@contextmanager
def replacing_directory(directory: Path) -> Iterator[Path]:
    """See `hpcmpq.store.whole_files.replacing_directory`; a full disk that safetensors meets is one as well."""
    with whole_files.replacing_directory(directory) as attempt:
        try:
            yield attempt
        except SafetensorError as error:
            raise OSError(str(error)) from error
