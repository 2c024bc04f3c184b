"""What a batch system has to say: its settings, how a chain of jobs is submitted to it, and where jobs stand."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpcmpq.errors import UserError
from hpcmpq.store.run_dir import RunDir
from hpcmpq.tables import look_up, named_by

SCHEDULERS = {"slurm": "hpcmpq.slurm.scheduler:SLURM", "pbs": "hpcmpq.pbs.scheduler:PBS"}
"""Where each is, by the name of its option and of its folder in a run directory."""

JOBS = ("plan", "calibrate", "solve", "refine", "reround", "finish", "export", "evaluate", "report")
"""All that a chain may have: `finish` exports, evaluates and reports, or three jobs do, where evaluation is sharded."""


@dataclass(frozen=True)
class Settings:
    """What people said about jobs.

    Attributes:
        options: {job: {option of the command that submits: value}}.
        named: Jobs that were given settings of their own.
        env: The site's own `env.sh`, or None for the one that comes with the package.
        scheduler: A key of `SCHEDULERS`.
    """

    options: Mapping[str, Mapping[str, str]]
    named: frozenset[str]
    env: Path | None
    scheduler: str = "slurm"


@dataclass(frozen=True)
class Job:
    """One job of a chain.

    Attributes:
        name: One of `JOBS`.
        script: File name of its batch script.
        arguments: Of the script.
        options: Of the command that submits it, by long name with underscores.
    """

    name: str
    script: str
    arguments: tuple[str, ...]
    options: Mapping[str, str]


@dataclass(frozen=True)
class Scheduler:
    """A batch system.

    Attributes:
        title: Its name for people.
        command: What submits a job, and is there where it is.
        cancel: What ends one.
        folder: Of its batch scripts, beside the package.
        suffix: Of these.
        files: Other files of its folder that jobs need.
        parse_settings: Settings from texts as people type them and the executor; UserError where they are wrong.
        chain_script: The shell script that submits the jobs of a run and prints a line `NAME ID` for each.
        states: {id: state in words} of jobs of a run, of those ids that the system still knows.
        with_memory: A job's options with a request for so many GiB, unless they name memory already.
    """

    title: str
    command: str
    cancel: str
    folder: str
    suffix: str
    files: tuple[str, ...]
    parse_settings: Callable[[Sequence[str], str], Settings]
    chain_script: Callable[[RunDir, Sequence[Job]], str]
    states: Callable[[RunDir, Sequence[str]], dict[str, str]]
    with_memory: Callable[[Mapping[str, str], int], dict[str, str]]


def scheduler_of(name: str) -> Scheduler:
    """The batch system of a name.

    Raises:
        UserError: If there is none; the message names those there are.
    """
    found: Scheduler = named_by(look_up(SCHEDULERS, name, "batch system"))
    return found


def chosen(slurm: Sequence[str], pbs: Sequence[str]) -> str:
    """The batch system that settings are given for; without any the one that is here, and Slurm where none is.

    Raises:
        UserError: If there are settings for two.
    """
    if slurm and pbs:
        raise UserError("--slurm and --pbs are settings of two batch systems; give those of one")
    if slurm or pbs:
        return "pbs" if pbs else "slurm"
    return next((name for name in SCHEDULERS if shutil.which(scheduler_of(name).command)), "slurm")


def in_words(counts: Mapping[str, int]) -> str:
    """States of a job's tasks, counted where there are several.

    Example:
        >>> in_words({"COMPLETED": 2, "RUNNING": 1}), in_words({"RUNNING": 1})
        ('2 COMPLETED, 1 RUNNING', 'RUNNING')
    """
    several = sum(counts.values()) > 1
    return ", ".join(f"{count} {state}" if several else state for state, count in counts.items() if count)
