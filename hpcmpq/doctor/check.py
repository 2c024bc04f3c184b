"""What is found out about one part of a machine, and asking its commands."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

TIMEOUT_S = 60.0
"""Of one process that looks: a cold file system may take most of this for torch."""

Health = Literal["ok", "missing", "wrong"]


@dataclass(frozen=True)
class Diagnosis:
    """What was found out about one part.

    Attributes:
        name: Of the part.
        state: ``missing`` is not there at all, ``wrong`` is there and will not do.
        found: What there is, in words.
        fix: What to do, unless it is ok.
        needed: Whether every run needs it.
    """

    name: str
    state: Health
    found: str
    fix: str = ""
    needed: bool = False

    @property
    def broken(self) -> bool:
        """Whether no run can work before this is put right."""
        return self.needed and self.state != "ok"


def ask(command: Sequence[str], timeout_s: float = TIMEOUT_S) -> str | None:
    """What a command prints, or None if it cannot be run or does not end in time."""
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=timeout_s, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout + done.stderr
