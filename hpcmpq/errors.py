"""Failures that a user can act on. Each message is one sentence that says what to do next."""

from errno import (
    EACCES,
    EDQUOT,
    EEXIST,
    EFBIG,
    EIO,
    EISDIR,
    ELOOP,
    ENAMETOOLONG,
    ENOMEM,
    ENOSPC,
    ENOTDIR,
    ENOTEMPTY,
    EPERM,
    EROFS,
    ESTALE,
)

EXIT_BAD_INPUT, EXIT_INFEASIBLE, EXIT_INTERRUPTED = 2, 3, 75

_NO_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "Cannot allocate memory",
    "failed to map segment",
    "bad_alloc",
    "STATUS_ALLOC_FAILED",
)
"""What torch, CUDA, the C++ library and the operating system say."""

IN_THE_WAY = (EISDIR, EEXIST, ENOTEMPTY)
"""A directory where a file is wanted, or anything where a directory is."""

EXIT_UNREAD = 141
"""Nobody reads the output any more, as after `| head`: what shells say of a program that SIGPIPE ended."""


class UserError(Exception):
    """Bad input: the command line prints the message without a traceback and exits with 2."""


class PlanMismatch(UserError):
    """A run directory holds results of another configuration."""


class IncompleteCalibration(UserError):
    """Work units are missing; `hpcmpq calibrate` finishes them."""


class DamagedFile(UserError):
    """A file in the run directory is not what was written there; the command in the message writes it anew."""


class NotReproduced(UserError):
    """What is read back from an export is not the run's model; nothing of it is kept."""


class CorruptShard(DamagedFile):
    """A shard's checksum or shape is wrong; `hpcmpq calibrate` recomputes it."""


class Infeasible(Exception):
    """No assignment meets the budgets: exit status 3. The message says the smallest reachable value."""


class InvalidBound(Exception):
    """A proven bound that a feasible assignment refutes: a bug of ours or of a library, never the input's."""


class Interrupted(BaseException):
    """Stopped by a signal with everything finished so far on disk: exit status 75, same command goes on.

    Like `KeyboardInterrupt` no `Exception`: a signal may come where the failures of a user's code are caught.
    """

    def __str__(self) -> str:
        return f"interrupted ({super().__str__()}); run the same command to go on"


def in_words(error: Exception) -> Exception:
    """A `UserError` in place of an error that means that memory, disk, permission or a usable path lacked.

    Any other error as it is.

    Example:
        >>> print(in_words(MemoryError()))
        there is not enough memory; take a machine or device with more, or lower calibration.samples_per_pass
        >>> in_words(ValueError("3"))
        ValueError('3')
        >>> print(in_words(PermissionError(13, "Permission denied", "/home/a/.cache")))
        [Errno 13] Permission denied: '/home/a/.cache'; make room or permission there and run the same command again
    """
    said = str(error).strip().split("\n")[0]
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, MemoryError) or number == ENOMEM or any(words in said for words in _NO_MEMORY):
        reason = f" ({said[:120]})" if said else ""
        return UserError(
            f"there is not enough memory{reason}; take a machine or device with more, or lower "
            "calibration.samples_per_pass"
        )
    if number in (ENOSPC, EDQUOT, EFBIG, EROFS, EACCES, EPERM):
        return UserError(f"{said}; make room or permission there and run the same command again")
    if number in (EIO, ESTALE):
        return UserError(
            f"{said}; the file system failed there: look after it and run the same command again"
        )
    if number in IN_THE_WAY:
        return UserError(f"{said[:300]}; move away what is there, or correct the path")
    if number in (ENAMETOOLONG, ELOOP, ENOTDIR):
        return UserError(f"{said[:300]}; correct the path")
    return error


def raise_if_no_room(error: Exception) -> None:
    """Raise an error that means that memory, disk or permission lacked; what else fails may run otherwise.

    Example:
        >>> raise_if_no_room(KeyError("layer"))
        >>> raise_if_no_room(RuntimeError("CUDA out of memory"))
        Traceback (most recent call last):
        RuntimeError: CUDA out of memory
    """
    if in_words(error) is not error:
        raise error


def exit_status(error: BaseException) -> int:
    """Exit status that the command line ends with for an error; 1 is a bug of ours and prints a traceback.

    Example:
        >>> exit_status(IncompleteCalibration("7 units are missing"))
        2
    """
    if isinstance(error, UserError):
        return EXIT_BAD_INPUT
    if isinstance(error, Infeasible):
        return EXIT_INFEASIBLE
    return EXIT_INTERRUPTED if isinstance(error, Interrupted | KeyboardInterrupt) else 1
