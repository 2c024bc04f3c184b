"""Signals that wait until compiled code of a library has returned."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from hpcmpq.stopping import SIGNALS


@contextmanager
def signals_held() -> Iterator[None]:
    """Signals of the block are handled at its end, by the handlers from before it.

    A handler that raises inside Ray's compiled code surfaces as a SystemError, and `ray.init` puts handlers
    of its own in place of ours.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])
