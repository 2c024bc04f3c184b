"""HDF5 files that are whole or not there, with checksums; the only module that imports h5py.

The first 512 bytes, which HDF5 leaves to its users, hold the BLAKE2b of all others: the library never sees a damaged
file, on some of which it runs for ever. Every file carries the attribute `format_version` and the attribute `digest`,
BLAKE2b over names, types, shapes and bytes of everything else in it, which is all that earlier versions wrote; every
dataset carries a Fletcher-32 checksum.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn, TypeVar

os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")  # parallel file systems often have no locks

import h5py
import numpy as np

from hpcmpq.errors import CorruptShard
from hpcmpq.store.whole_files import replacing

FORMAT_VERSION = 1

_HEAD = 512
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_PIECE = 2**22

Scalar = str | int | float
T = TypeVar("T")


def write_h5(path: Path, arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Scalar]) -> None:
    """Write arrays and scalar attributes atomically, with checksums; arrays of strings have dtype object."""
    image = _h5_image(arrays, {**attributes, "format_version": FORMAT_VERSION})
    with replacing(path) as attempt, attempt.open("wb") as file:
        file.write(_head(hashlib.blake2b(image, digest_size=16)))
        file.write(image)


def _h5_image(arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Scalar]) -> bytes:
    """An HDF5 file in memory: written in one piece, which parallel file systems like better than many small
    ones.

    On a full disk, HDF5 itself would fail to close its file and hold on to the space that it took.
    """
    with h5py.File("image", "w", driver="core", backing_store=False, libver="latest") as file:
        for name, array in arrays.items():
            if array.dtype == object:
                file.create_dataset(name, data=array, dtype=h5py.string_dtype())
            else:
                chunked = array.ndim > 0 and array.size > 0
                file.create_dataset(name, data=array, chunks=chunked or None, fletcher32=chunked or None)
        for name, value in attributes.items():
            file.attrs[name] = value
        file.attrs["digest"] = _digest(arrays, attributes)
        file.flush()
        return file.id.get_file_image()


class _Content(dict[str, T]):
    """Arrays or attributes of a file; one that it lacks, as a file under the name of another does, is damage."""

    def __init__(self, path: Path, made_by: str) -> None:
        super().__init__()
        self.path, self.made_by = path, made_by

    def __missing__(self, name: str) -> NoReturn:
        raise _damaged(self.path, self.made_by, ValueError(f"no {name!r}"))


def read_h5(path: Path, made_by: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Verified arrays and attributes of a `write_h5` file; `CorruptShard` if it is damaged, or lacks what is asked."""
    arrays, attributes = _Content[np.ndarray](path, made_by), _Content[Any](path, made_by)

    def collect(name: str, item: h5py.Dataset | h5py.Group) -> None:
        if isinstance(item, h5py.Dataset):
            is_text = h5py.check_string_dtype(item.dtype) is not None
            arrays[name] = np.array(item.asstr()[()], dtype=object) if is_text else np.asarray(item[()])

    try:
        whole = _is_whole(path)
        with h5py.File(path, "r", locking=False) as file:
            file.visititems(collect)
            attributes.update({name: _plain(value) for name, value in file.attrs.items()})
    except (OSError, RuntimeError, KeyError, UnicodeDecodeError, ValueError) as error:
        raise _damaged(path, made_by, error) from None
    digest = attributes.pop("digest", None)
    if attributes.get("format_version") != FORMAT_VERSION:
        raise CorruptShard(
            f"{path} has format_version {attributes.get('format_version')}, this version reads "
            f"{FORMAT_VERSION}; run `{made_by}` again to recompute it"
        )
    if not whole and digest != _digest(arrays, attributes):
        raise CorruptShard(f"{path} is damaged (checksum differs); run `{made_by}` again to recompute it")
    return arrays, attributes


def read_h5_group(path: Path, group: str, made_by: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """As `read_h5`, the arrays of one group alone, GROUP/NAME; of a file that is read in parts all is verified once.

    Raises:
        CorruptShard: If it is damaged, or of another format.
    """
    check_whole(path, made_by)
    try:
        with h5py.File(path, "r", locking=False) as file:
            arrays = {f"{group}/{name}": np.asarray(item[()]) for name, item in file.get(group, {}).items()}
            attributes = {name: _plain(value) for name, value in file.attrs.items()}
    except (OSError, RuntimeError, KeyError, UnicodeDecodeError, ValueError) as error:
        raise _damaged(path, made_by, error) from None
    if attributes.get("format_version") != FORMAT_VERSION:
        raise _damaged(path, made_by, ValueError("another format_version"))
    return arrays, attributes


def read_number(path: Path, name: str) -> Any:
    """A number among the attributes of a file of `write_h5`, without reading the rest; None if it is not there."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            return _plain(file.attrs.get(name))
    except (OSError, RuntimeError, KeyError, ValueError):
        return None


def read_array(path: Path, name: str) -> np.ndarray | None:
    """One array of a file of `write_h5`; None if it is not there or damaged."""
    return _read_one(path, lambda file: np.asarray(file[name][()]))


def read_attribute(path: Path, name: str) -> Any:
    """One attribute of a file of `write_h5`; None if it is not there or damaged."""
    return _read_one(path, lambda file: _plain(file.attrs[name]))


def check_whole(path: Path, made_by: str) -> None:
    """That a file of `write_h5` is as it was written, as far as its first bytes say so.

    It is taken in once as long as nobody writes it.

    Raises:
        CorruptShard: If it is not.
    """
    try:
        facts = path.stat()
        _known_whole(path, facts.st_size, facts.st_mtime_ns, facts.st_ino)
    except (OSError, ValueError) as error:
        raise _damaged(path, made_by, error) from None


def _read_one(path: Path, read: Callable[[h5py.File], T]) -> T | None:
    try:
        check_whole(path, "")
        with h5py.File(path, "r", locking=False) as file:
            return read(file)
    except (CorruptShard, OSError, RuntimeError, KeyError, ValueError):
        return None


@lru_cache(maxsize=4096)
def _known_whole(path: Path, *identity: int) -> bool:
    return _is_whole(path)


def _is_whole(path: Path) -> bool:
    """Whether the first bytes say that the others are what was written; False if they are of an earlier version.

    Raises:
        ValueError: If they are not.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
        if head.startswith(_SIGNATURE):
            return False
        state = hashlib.blake2b(digest_size=16)
        while piece := file.read(_PIECE):
            state.update(piece)
    if head != _head(state):
        raise ValueError("checksum differs")
    return True


def _damaged(path: Path, made_by: str, error: Exception) -> CorruptShard:
    reason = str(error).split("\n")[0][:80]
    return CorruptShard(f"{path} is damaged ({reason}); run `{made_by}` again to recompute it")


def _head(state: "hashlib.blake2b") -> bytes:
    return f"hpcmpq BLAKE2b {state.hexdigest()}\n".encode().ljust(_HEAD, b"\0")


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _digest(arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Scalar]) -> str:
    state = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        state.update(f"{name}:{array.dtype.str}:{array.shape}:".encode())
        if array.dtype == object:
            state.update("\0".join(array.tolist()).encode())
        else:
            state.update(np.ascontiguousarray(array).data)
    for name in sorted(attributes):
        state.update(f"{name}={attributes[name]!r};".encode())
    return state.hexdigest()
