"""Whether all ranks of a job are there, before libraries that no signal interrupts wait for them.

Rank 0 listens where the ranks are to meet, each other rank says its number there, and rank 0 answers when all have.
Plain sockets: signals end the wait, after seconds rank 0 says whom it waits for, and after `MEETING_S` all give up.
"""

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress

from hpcmpq.errors import EXIT_INTERRUPTED, Interrupted, UserError
from hpcmpq.executors.world import World
from hpcmpq.stopping import SIGNALS

log = logging.getLogger(__name__)

MEETING_S = 120.0
"""Seconds in which all ranks must come, unless HPCMPQ_MEETING_S says more: some start from slow file systems."""

SILENT_S = 5.0
"""Seconds after which rank 0 says whom it waits for."""

_RETRY_S, _ANSWER_S, _GRACE_S = 0.2, 5.0, 1.0


def call_roll(world: World, address: str, port: int, environment: Mapping[str, str]) -> None:
    """Return when every rank has called this.

    Raises:
        UserError: If they have not in time, or rank 0 cannot listen.
    """
    if world.size == 1:
        return
    job = f"{environment.get('SLURM_JOB_ID', '')}.{environment.get('SLURM_STEP_ID', '')} of {world.size}"
    limit_s = _limit(environment)
    deadline = time.monotonic() + limit_s
    present = (
        _listen(world, port, job, deadline)
        if world.rank == 0
        else _answer(world, address, port, job, deadline)
    )
    if present < world.size:
        who = f"{present} of {world.size} ranks are" if world.rank == 0 else "rank 0 is not"
        raise UserError(
            f"rank {world.rank} of {world.size}: {who} at {address}:{port} after {limit_s:g} s; start all of them "
            f"together with {world.launcher}, or one alone outside it, or raise HPCMPQ_MEETING_S"
        )


def _limit(environment: Mapping[str, str]) -> float:
    text = environment.get("HPCMPQ_MEETING_S", str(MEETING_S))
    with suppress(ValueError):
        if float(text) > 0:
            return float(text)
    raise UserError(f"HPCMPQ_MEETING_S={text} is not a number of seconds above 0; correct or unset it")


def _listen(world: World, port: int, job: str, deadline: float) -> int:
    """Rank 0: how many ranks have come, itself included; all are told when the last one has."""
    told_at = time.monotonic() + SILENT_S
    present: dict[int, socket.socket] = {}
    with ExitStack() as stack:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        try:
            server = stack.enter_context(socket.create_server(("", port), family=family, dualstack_ipv6=both))
        except OSError as error:
            raise UserError(
                f"rank 0 cannot listen at port {port} ({error.strerror}); set MASTER_ADDR and MASTER_PORT to its "
                "address and a free port"
            ) from error
        server.settimeout(_RETRY_S)
        while len(present) + 1 < world.size and time.monotonic() < deadline:
            if time.monotonic() > told_at:
                missing = world.size - 1 - len(present)
                log.warning(
                    "waiting for %d of %d ranks at port %d; interrupt at will", missing, world.size, port
                )
                told_at = deadline
            with suppress(OSError, ValueError):  # a timeout, or somebody else
                caller = stack.enter_context(server.accept()[0])
                caller.settimeout(_ANSWER_S)
                said, _, rank = caller.recv(256).decode().strip().rpartition(" rank ")
                if said == job and 0 < int(rank) < world.size:
                    present[int(rank)] = caller
        if len(present) + 1 == world.size:
            for caller in present.values():
                with suppress(OSError):
                    caller.sendall(b"all")
    return len(present) + 1


def _answer(world: World, address: str, port: int, job: str, deadline: float) -> int:
    """Another rank: the number of all ranks if rank 0 says that they are there, else 0."""
    while (left_s := deadline - time.monotonic()) > 0:
        with suppress(OSError), socket.create_connection((address, port), min(_ANSWER_S, left_s)) as caller:
            caller.sendall(f"{job} rank {world.rank}\n".encode())
            caller.settimeout(left_s)
            if caller.recv(3) == b"all":
                return world.size
        time.sleep(_RETRY_S)
    return 0


@contextmanager
def signals_heard(waits_for: str) -> Iterator[None]:
    """Inside, signals end the process with status 75 even while a library waits without running Python's handlers.

    Args:
        waits_for: What is said after `SILENT_S` seconds that the process still waits for, or nothing if empty.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    left = threading.Event()

    def watch() -> None:
        reader.settimeout(SILENT_S if waits_for else None)
        while True:
            try:
                number = reader.recv(1)
            except TimeoutError:
                log.warning("waiting for %s; interrupt at will", waits_for)
                reader.settimeout(None)
                continue
            if not number:
                return
            # Python's own handler comes first wherever Python runs.
            if number[0] in SIGNALS and not left.wait(_GRACE_S):
                print(f"hpcmpq: {Interrupted(signal.Signals(number[0]).name)}", file=sys.stderr, flush=True)
                os._exit(EXIT_INTERRUPTED)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        left.set()
        signal.set_wakeup_fd(before)
        writer.close()
        watcher.join()
        reader.close()
