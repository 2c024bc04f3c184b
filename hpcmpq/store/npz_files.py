"""npz files that are whole or not there, with a checksum: the array `digest`, BLAKE2b over all the others."""

import hashlib
import logging
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from tokenize import TokenError
from zipfile import BadZipFile

import numpy as np

from hpcmpq.errors import DamagedFile, UserError
from hpcmpq.store.whole_files import replacing

log = logging.getLogger(__name__)

_NO_ARCHIVE = (OSError, EOFError, BadZipFile, struct.error, zlib.error)
_NO_ARRAYS = (ValueError, KeyError, TypeError, SyntaxError, TokenError, OverflowError, RuntimeError)
NOT_NUMPY = (*_NO_ARCHIVE, *_NO_ARRAYS)
"""What `numpy.load` raises of a file that is none of its own, or is damaged; `MemoryError` may be of either kind."""

_NAME = "name"
"""The array that says which piece of work a file holds."""


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays atomically; another process may remove the directory, as the one does that is done with it."""
    for may_fail in (True, True, False):
        try:
            with replacing(path) as attempt, attempt.open("wb") as file:
                np.savez(file, **arrays, digest=_digest(arrays))  # type: ignore[arg-type]
            return
        except UserError as error:
            if not (may_fail and isinstance(error.__cause__, FileNotFoundError)):
                raise


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a file of `write_npz`.

    Raises:
        FileNotFoundError: If there is none.
        DamagedFile: If they are not what was written.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise
    except (*NOT_NUMPY, MemoryError) as error:
        raise DamagedFile(f"{path} is damaged ({type(error).__name__}: {error})") from None
    digest = arrays.pop("digest", None)
    if digest is None or str(digest) != str(_digest(arrays)):
        raise DamagedFile(f"{path} is damaged (checksum differs)")
    return arrays


def write_finished(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """As `write_npz` of one piece of work, whose name in its folder says what it is."""
    write_npz(path, {**arrays, _NAME: _name(path)})


def read_finished(path: Path, then: str) -> dict[str, np.ndarray] | None:
    """What `write_finished` wrote, or None where it is to be done: a file that is damaged or of another is removed.

    Args:
        path: Whose existing means that the work is done; a process that is done with all of it may remove it.
        then: What happens to the work of a damaged file, such as ``measuring it anew``.
    """
    try:
        arrays = read_npz(path)
        if str(arrays.pop(_NAME, None)) != str(_name(path)):
            raise DamagedFile(f"{path} is another piece of work")
        return arrays
    except FileNotFoundError:
        return None
    except DamagedFile as error:
        log.warning("%s; %s", error, then)
        path.unlink(missing_ok=True)
        return None


def _name(path: Path) -> np.ndarray:
    """Of a piece of work: its folder is named after what all pieces depend on, itself after which one it is."""
    return np.array(f"{path.parent.name}/{path.name}")


def _digest(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    state = hashlib.blake2b(digest_size=16)
    for name, array in sorted(arrays.items()):
        state.update(f"{name}:{array.dtype.str}:{array.shape}:".encode())
        state.update(np.ascontiguousarray(array).tobytes())
    return np.array(state.hexdigest())
