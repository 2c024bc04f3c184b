"""Settings of jobs as people type them: KEY=VALUE, or JOB.KEY=VALUE for one job."""

import difflib
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from hpcmpq.batch.scheduler import JOBS, Settings
from hpcmpq.errors import UserError
from hpcmpq.tables import table_name

OPTIONAL_ARRAYS = ("refine", "reround")
"""Jobs whose work units an array shares out where the settings say so; else one task does them all."""

ARRAYS = ("calibrate", *OPTIONAL_ARRAYS)
"""Jobs whose work units an array can share out."""


OptionsOf = Callable[[str, Mapping[str, str], Mapping[tuple[str, str], str], str], dict[str, str]]
"""(job, {key: value} for all jobs, {(job, key): value}, executor) to the job's options."""


def typed_settings(
    texts: Sequence[str],
    executor: str,
    *,
    scheduler: str,
    title: str,
    keys: Collection[str],
    options_of: OptionsOf,
    may_be_empty: Collection[str] = (),
) -> Settings:
    """What texts say of all jobs, several settings to a text where blanks separate them; hyphens are underscores.

    Args:
        texts: As typed.
        executor: How calibration shares out its work units.
        scheduler: Name of the option.
        title: Of the batch system, for people.
        keys: That it knows.
        options_of: What follows for a job.
        may_be_empty: Keys that may have no value, which leaves them out.

    Raises:
        UserError: If a key or job is unknown, listing all there are, a value is missing, a setting is given again, a
            job has no array, or a quotation is not closed.
    """
    valid = f"valid: env, {', '.join(keys)}, each but env also for one job as {'|'.join(JOBS)}.KEY"
    general: dict[str, str] = {}
    special: dict[tuple[str, str], str] = {}
    env = None
    seen: set[str] = set()
    try:
        words = shlex.split(" ".join(texts))
    except ValueError as error:
        raise UserError(
            f"--{scheduler} {' '.join(texts)}: {str(error).lower()}; put a backslash before a quotation mark that "
            "belongs to a value"
        ) from None
    for text in words:
        name, equals, value = text.partition("=")
        job, dot, key = table_name(name).rpartition(".")
        if table_name(name) in seen:
            raise UserError(f"--{scheduler} {name} is given more than once; give it one value")
        seen.add(table_name(name))
        if not equals or not (value or key in may_be_empty):
            raise UserError(f"--{scheduler} {text!r} is not KEY=VALUE; {valid}")
        if name == "env":
            env = Path(value)
        elif key not in keys or (dot and job not in JOBS):
            near = difflib.get_close_matches(key, keys, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]!r}? " if near and near[0] != key else ""
            raise UserError(f"unknown {title} setting {name!r}; {hint}{valid}")
        elif dot and key == "array" and job not in ARRAYS:
            raise UserError(
                f"--{scheduler} {name}: only {', '.join(ARRAYS[:-1])} and {ARRAYS[-1]} are shared out over a job array"
            )
        elif dot:
            special[job, key] = value
        else:
            general[key] = value
    if env is not None and not env.is_file():
        raise UserError(f"--{scheduler} env={env}: no such file; copy slurm/env.sh and edit the copy")
    if executor != "array" and ("array" in general or ("calibrate", "array") in special):
        raise UserError(f"--{scheduler} array needs --executor array, not {executor}")
    options = {job: options_of(job, general, special, executor) for job in JOBS}
    return Settings(options, frozenset(job for job, _ in special), env, scheduler)
