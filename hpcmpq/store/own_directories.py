"""Directories that are replaced whole, and never with files in them that people have put there."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from hpcmpq.errors import DamagedFile, UserError
from hpcmpq.store import sums
from hpcmpq.store.whole_files import replacing_directory

SHOWN = 3
"""Names that a message lists."""

_NONE: Mapping[str, str | None] = {}


@contextmanager
def replacing_own(directory: Path, mark: str, changeable: Mapping[str, str | None] = _NONE) -> Iterator[Path]:
    """As `replacing_directory`, refused before and after where the directory holds what was not written there.

    Args:
        directory: What `write_sums` listed the files of; of one without a whole list, such as those of earlier
            versions, files that are written again are taken for its own.
        mark: Name of a file that all such directories hold, so that one without it is somebody's own.
        changeable: {name: SHA-256} of what was written and is not listed; without one, whatever it holds.

    Raises:
        UserError: Naming the files that are in the way; nothing is removed.
    """
    _check(directory, changeable, None if (directory / mark).is_file() else ())
    with replacing_directory(directory) as attempt:
        yield attempt
        _check(directory, changeable, _files(attempt))


def _check(directory: Path, changeable: Mapping[str, str | None], ours: tuple[str, ...] | None) -> None:
    """Refuse files that are not listed or, without a whole list, not among `ours`, if these are known yet."""
    try:
        listed = sums.listed(directory, "")
    except DamagedFile:
        listed = {}
    known = {*listed, sums.NAME} if listed else ours
    if known is None:
        return
    others = [
        name
        for name in _files(directory)
        if name not in known and not _is_unchanged(directory / name, changeable.get(name, ""))
    ]
    if others:
        more = f" and {len(others) - SHOWN} more files" if len(others) > SHOWN else ""
        raise UserError(
            f"{directory} holds {', '.join(others[:SHOWN])}{more}, which hpcmpq did not write there, or which was "
            "edited since, and all of it would be replaced; move that away and run the same command again"
        )


def _is_unchanged(path: Path, digest: str | None) -> bool:
    return digest is None or (path.is_file() and sums.digest_of(path) == digest)


def _files(directory: Path) -> tuple[str, ...]:
    """Names of all that is no directory below one, links to directories included."""
    found = (path for path in directory.rglob("*") if path.is_symlink() or not path.is_dir())
    return tuple(sorted(path.relative_to(directory).as_posix() for path in found))
