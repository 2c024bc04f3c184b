"""Files and directories that appear whole or not at all, and removing what killed processes left of theirs.

A file is written under a temporary name beside its own, fsynced and renamed. The temporary name says who
writes, `.NAME.<boot>-<pid namespace>-<pid>.<random>.partial`, so that others on the same machine can tell
whether the writer still lives, without a lock.
"""

import errno
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hpcmpq.errors import IN_THE_WAY, UserError

ABANDONED_S = 3600.0
"""A temporary file of another machine that nobody has written to for so long is taken for abandoned."""

CLAIM_LOOKS, CLAIM_LOOK_S = 100, 0.02
"""Looks, seconds apart, at a name that another process has claimed for a file that it has written already."""

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""What file systems say that have no hard links, or no more of them for a file."""

RIVALS = 10
"""Times that another process may put a directory in the place of ours before it is taken for a failure."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place, durably, when the block ends without error.

    Raises:
        UserError: If the directory cannot be written, with the reason.
    """
    attempt = _beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield attempt
        _fsync(attempt)
        os.replace(attempt, path)
        _fsync(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):  # renamed, or never there
            attempt.unlink()


@contextmanager
def placing(path: Path) -> Iterator[Path]:
    """As `replacing`, but of several processes that write the same path the first one's file stays."""
    attempt = _beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield attempt
        _fsync(attempt)
        try:
            _name(attempt, path)
        except FileExistsError:
            _wait_until_whole(path)
        _fsync(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):  # never there
            attempt.unlink()


@contextmanager
def replacing_directory(directory: Path) -> Iterator[Path]:
    """A new directory beside `directory` that takes its place, durably, when the block ends without error.

    Of two at once, the last stays. What was there is gone for the moment between two renames, as no file system
    exchanges directories by a portable call.

    Raises:
        UserError: If there is no room or permission, or a file has the name, with the reason.
    """
    attempt, old = _beside(directory), _beside(directory)
    try:
        if directory.exists() and not directory.is_dir():
            raise FileExistsError(errno.EEXIST, "a file has that name")
        attempt.mkdir(parents=True)
        yield attempt
        for path in (*attempt.rglob("*"), attempt):
            _fsync(path)
        for others_in_between in range(RIVALS):
            with suppress(FileNotFoundError):
                directory.rename(old)
            try:
                attempt.rename(directory)
                break
            except OSError:
                if others_in_between == RIVALS - 1:
                    raise
                shutil.rmtree(old, ignore_errors=True)
        _fsync(directory.parent)
    except OSError as error:
        raise cannot_write(directory, error) from error
    finally:
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(attempt, ignore_errors=True)


def make_directory(directory: Path) -> None:
    """Make a directory and its parents, if they are not there.

    Raises:
        UserError: If that is not allowed, with the reason.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(directory, error) from error


def cannot_write(path: Path, error: OSError) -> UserError:
    """What to say when a file or directory cannot be written."""
    reason = error.strerror or str(error).split("\n")[0]
    blocked = error.errno in (*IN_THE_WAY, errno.ENOTDIR)
    advice = "move away what stands in its place" if blocked else "make room or permission there"
    return UserError(f"cannot write {path}: {reason}; {advice} and run the same command again")


def remove_abandoned(directory: Path) -> int:
    """Remove temporary files and directories whose writers are dead or silent; return how many.

    Writers of this machine and process namespace are looked up; for those of other machines, which may share
    a run directory, only the age of the file tells, by the clock of the file system: this machine's may be hours wrong.
    """
    num_removed = 0
    for path in list(directory.glob(".*.partial")):
        machine, _, pid = path.name.split(".")[-3].rpartition("-")
        with suppress(OSError):  # its writer has just renamed or removed it
            written = max(each.stat().st_mtime for each in (path, *path.rglob("*")))
            silent_s = _file_system_time(directory) - written
            if silent_s > ABANDONED_S or (machine == _machine() and not _lives(int(pid))):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                num_removed += 1
    return num_removed


def _file_system_time(directory: Path) -> float:
    """Unix time by the clock that dates the files of a directory: that of its server, where it has one."""
    probe = _beside(directory / "clock")
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{_machine()}-{os.getpid()}.{uuid.uuid4().hex[:8]}.partial")


def _machine() -> str:
    """Changes with every boot, and differs between containers that number their processes apart."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8")[:8]
    return f"{boot}-{os.stat('/proc/self/ns/pid').st_ino}"


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _name(attempt: Path, path: Path) -> None:
    """Give a file its name if nothing has it.

    Where there are no hard links the name is claimed before the file takes its place: for a moment it stands for an
    empty file.

    Raises:
        FileExistsError: If something has it.
    """
    try:
        os.link(attempt, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        os.replace(attempt, path)


def _wait_until_whole(path: Path) -> None:
    """Wait while another process has claimed a name; in vain where it was killed then, so that the file is damaged."""
    for _ in range(CLAIM_LOOKS):
        if path.stat().st_size:
            return
        time.sleep(CLAIM_LOOK_S)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
