"""What a worker process does with a unit, and the reply it sends back: plain text, never an exception."""

import logging
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from hpcmpq.errors import UserError, in_words
from hpcmpq.executors import Worker
from hpcmpq.executors.backlog import Backlog
from hpcmpq.executors.world import node_name
from hpcmpq.plan import UnitOutcome, WorkUnit

log = logging.getLogger(__name__)

_DEVICE_ERRORS = ("CUDA error", "CUDA driver error", "HIP error")
"""What torch says of errors that a GPU reports; of later versions `torch.AcceleratorError` too."""

_FAILED_IN_LIBRARIES = ("STATUS_EXECUTION_FAILED", "STATUS_INTERNAL_ERROR", "STATUS_MAPPING_ERROR")
"""Of what cuBLAS and its like return, what says that the device failed; the rest is said of one call."""


@dataclass(frozen=True)
class Reply:
    """How starting a worker or one attempt of a unit went.

    Attributes:
        seconds: Wall time of the measurement.
        error: None if it went well, else one line.
        fatal: The error would meet every unit (a `UserError`), so the run ends with it.
        start: It was the worker that could not be made; no unit was looked at.
        died: Nobody replied: the process or its node is gone.
        broken: The error is the device's, so the worker's process is of no more use.
        left: The unit was left to another node, since it failed too often on this one.
        node: Where the worker is.
        traceback: Of an error that is not a `UserError`.
    """

    seconds: float = 0.0
    error: str | None = None
    fatal: bool = False
    start: bool = False
    died: bool = False
    broken: bool = False
    left: bool = False
    node: str = ""
    traceback: str = ""

    @property
    def useless(self) -> bool:
        """Whether the worker can measure nothing more."""
        return self.died or self.broken or (self.start and self.error is not None)


def start(make_worker: Callable[[], Worker]) -> tuple[Worker | None, Reply]:
    """Make the worker of this process."""
    try:
        return make_worker(), Reply(start=True, node=node_name())
    except Exception as any_error:
        error = in_words(any_error)
        if isinstance(error, UserError):
            return None, Reply(error=str(error), fatal=True, start=True)
        told = traceback.format_exc()
        return None, Reply(error=one_line(error), start=True, broken=device_failed(error), traceback=told)


def check_started(reply: Reply) -> None:
    """Raise `UserError` if the worker that a reply is of could not be made."""
    if reply.error is None:
        return
    if reply.traceback:
        log.error("%s", reply.traceback.rstrip())
    raise UserError(reply.error if reply.fatal else f"a worker process cannot start: {reply.error}")


def attempt(worker: Worker, unit: WorkUnit) -> Reply:
    """Try a unit once."""
    start_s = time.monotonic()
    try:
        worker(unit)
    except UserError as error:
        return Reply(error=str(error), fatal=True)
    except Exception as error:
        known = in_words(error)
        if isinstance(known, UserError):
            # Perhaps a neighbour took the memory, so the unit is tried again.
            return Reply(error=str(known), node=node_name())
        told = traceback.format_exc()
        return Reply(error=one_line(error), broken=device_failed(error), node=node_name(), traceback=told)
    return Reply(seconds=time.monotonic() - start_s, node=node_name())


def device_failed(error: BaseException) -> bool:
    """Whether an error, or one that it came of, is a GPU's: all that the process asks of it fails from then on.

    Lack of its memory is not: that is known by then, see `hpcmpq.errors.in_words`. Nor are calls that a library
    refuses, unless it says that running one failed.

    Example:
        >>> device_failed(RuntimeError("CUDA error: device-side assert triggered"))
        True
        >>> device_failed(ValueError("not finite"))
        False
        >>> device_failed(RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasLtMatmul`"))
        False
    """
    said = str(error)
    known = type(error).__name__ == "AcceleratorError" or any(words in said for words in _DEVICE_ERRORS)
    known = known and ("_STATUS_" not in said or any(words in said for words in _FAILED_IN_LIBRARIES))
    cause = error.__cause__ or error.__context__
    return known or (cause is not None and device_failed(cause))


def outcome_of(reply: Reply, unit: WorkUnit, backlog: Backlog) -> UnitOutcome:
    """The outcome that a reply to a unit means; a failed unit waits again.

    Raises:
        UserError: If the reply ends the run.
    """
    if reply.fatal and reply.error is not None:
        raise UserError(reply.error)
    if reply.error is not None:
        return backlog.failed(unit, reply.error, reply.traceback, reply.node)
    return UnitOutcome(unit, reply.seconds, node=reply.node)


def one_line(error: BaseException) -> str:
    """Type and first line of an exception.

    Example:
        >>> one_line(ValueError("bad"))
        'ValueError: bad'
    """
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
