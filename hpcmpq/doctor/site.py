"""What a site gives: Slurm, and a file system on which runs are to lie."""

import shutil
import time
import uuid
from pathlib import Path

from hpcmpq.doctor.check import Diagnosis, ask
from hpcmpq.errors import UserError
from hpcmpq.store.whole_files import placing, replacing
from hpcmpq.wording import show_bytes

MIN_FREE_BYTES = 10**9
"""Less room than this is soon full of shards and checkpoints."""

ANSWER_S = 10.0
"""Slurm's controller answers sooner, or is not there."""

SLURM_COMMANDS = ("sbatch", "srun", "squeue", "scontrol")
"""What `hpcmpq submit` and its jobs call; sacct only makes `hpcmpq status` remember longer."""


def check_slurm() -> list[Diagnosis]:
    """Slurm's commands, and whether its controller answers."""
    absent = [name for name in SLURM_COMMANDS if shutil.which(name) is None]
    if len(absent) == len(SLURM_COMMANDS):
        return [
            Diagnosis("Slurm", "missing", "no commands", "run `hpcmpq submit` on a login node of a cluster")
        ]
    if absent:
        found = f"{', '.join(absent)} not in PATH"
        return [Diagnosis("Slurm", "wrong", found, "load the site's Slurm module")]
    shown = ask(["scontrol", "ping"], ANSWER_S)
    if shown is None or "UP" not in shown.split():
        lines = (shown or "").strip().splitlines()
        found = f"the controller does not answer{f': {lines[0]}' if lines else ''}"
        return [Diagnosis("Slurm", "wrong", found, "check `scontrol ping`, or ask the site's support")]
    return [Diagnosis("Slurm", "ok", (ask(["sbatch", "--version"]) or "slurm").strip())]


def check_directory(directory: Path) -> list[Diagnosis]:
    """Whether files can be replaced whole and durably where runs are to lie, and how much room there is."""
    place = next(path for path in (directory.resolve(), *directory.resolve().parents) if path.exists())
    file = place / f"hpcmpq-doctor-{uuid.uuid4().hex[:8]}"
    start = time.monotonic()
    try:
        for writing, content in ((placing, "before"), (replacing, "after"), (placing, "late")):
            with writing(file) as attempt:
                attempt.write_text(content, encoding="utf-8")
        kept = file.read_text(encoding="utf-8")
    except (UserError, OSError) as error:
        fix = "give yourself permission, or use a directory on another file system"
        files = Diagnosis("rename and fsync", "wrong", str(error).split(";")[0], fix, True)
    else:
        milliseconds = 1e3 * (time.monotonic() - start) / 3
        files = Diagnosis("rename and fsync", "ok", f"{milliseconds:.1f} ms per file in {place}", needed=True)
        if kept != "after":
            found = f"in {place} a replaced file still reads as before, or the later of two new ones stays"
            files = Diagnosis(files.name, "wrong", found, "use a directory on another file system", True)
    finally:
        file.unlink(missing_ok=True)
    return [files, check_space(place, shutil.disk_usage(place).free)]


def check_space(place: Path, free_bytes: int) -> Diagnosis:
    """Room for shards and checkpoints; `hpcmpq plan` says how much a run needs."""
    found = f"{show_bytes(free_bytes)} free in {place}"
    if free_bytes < MIN_FREE_BYTES:
        fix = f"make room, at least {show_bytes(MIN_FREE_BYTES)}; `hpcmpq plan` says what a run writes"
        return Diagnosis("free space", "wrong", found, fix, True)
    return Diagnosis("free space", "ok", found, needed=True)
