"""Checksums of directories whose files have forms of their own: SHA256SUMS, which `sha256sum -c` reads too.

A line for each file, `<SHA-256>  <name>`, and a last one, a comment, that says how many they are: a list that was cut
short is no list. Files that are not named are not looked at, nor are those that are gone, since a run directory may be
copied without its weights.
"""

import hashlib
import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from hpcmpq.errors import DamagedFile
from hpcmpq.store.whole_files import replacing

NAME = "SHA256SUMS"
THREADS = 8
"""Files that are read at once at most; a core takes in one to two gigabytes a second."""

_PIECE = 2**22


def write_sums(directory: Path, leaving_out: tuple[str, ...] = ()) -> None:
    """Write the checksums of all files below a directory.

    Args:
        directory: Where they lie, and the list will.
        leaving_out: Names of files that people may change.

    Raises:
        UserError: If it cannot be written.
    """
    names = sorted(
        path.relative_to(directory).as_posix()
        for path in directory.rglob("*")
        if path.is_file() and not path.name.startswith(".") and path.name not in (NAME, *leaving_out)
    )
    lines = [f"{digest}  {name}\n" for name, digest in zip(names, _digests(directory, names), strict=True)]
    with replacing(directory / NAME) as attempt:
        attempt.write_text("".join([*lines, _last(len(lines))]), encoding="utf-8")


def check_sums(directory: Path, then: str) -> None:
    """That what is there of the files in the list of a directory is what was written; without a list it is taken.

    Args:
        directory: Where they lie.
        then: What to do about a damaged file, such as ``run `hpcmpq export RUN` again``.

    Raises:
        DamagedFile: Naming the first that is not.
    """
    known = listed(directory, then)
    names = [name for name in known if (directory / name).is_file()]
    for name, digest in zip(names, _digests(directory, names), strict=True):
        if digest != known[name]:
            raise DamagedFile(
                f"{directory / name} is damaged or was edited (checksum differs from {NAME}); {then}"
            )


def check_sum(path: Path, then: str) -> None:
    """As `check_sums` of one file."""
    known = listed(path.parent, then)
    if path.name in known and digest_of(path) != known[path.name]:
        raise DamagedFile(f"{path} is damaged or was edited (checksum differs from {NAME}); {then}")


def is_listed_as(path: Path, content: bytes) -> bool:
    """Whether the list beside a file says that it holds, or held, these bytes."""
    try:
        return listed(path.parent, "").get(path.name) == hashlib.sha256(content).hexdigest()
    except DamagedFile:
        return False


def is_whole(directory: Path) -> bool:
    """Whether all files in the list of a directory are there and whole; without a list they are taken as they are."""
    try:
        check_sums(directory, "")
        return all((directory / name).is_file() for name in listed(directory, ""))
    except DamagedFile:
        return False


def listed(directory: Path, then: str) -> Mapping[str, str]:
    """{name: SHA-256}; empty where there is no list.

    Raises:
        DamagedFile: If the list itself is not what was written.
    """
    try:
        text = (directory / NAME).read_bytes().decode("utf-8", "replace")
    except FileNotFoundError:
        return {}
    except IsADirectoryError:
        raise DamagedFile(f"{directory / NAME} is a directory; move it away, and {then}") from None
    *lines, end = text.split("\n")
    last = lines.pop() if lines else ""
    found = [re.fullmatch(r"([0-9a-f]{64})  (.+)", line) for line in lines]
    if end or f"{last}\n" != _last(len(lines)) or not all(found):
        raise DamagedFile(f"{directory / NAME} is damaged (not as it was written); {then}")
    return {match[2]: match[1] for match in found if match}


def _last(count: int) -> str:
    return f"# {count} files\n"


def _digests(directory: Path, names: list[str]) -> list[str]:
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda name: digest_of(directory / name), names))


def digest_of(path: Path) -> str:
    """SHA-256 of a file as it is now."""
    facts = path.stat()
    return _read_digest(path, facts.st_size, facts.st_mtime_ns, facts.st_ino)


@lru_cache(maxsize=4096)
def _read_digest(path: Path, *identity: int) -> str:
    """SHA-256 of a file, which a process reads once as long as nobody writes it."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            state.update(piece)
    return state.hexdigest()
