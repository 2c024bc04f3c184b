"""What `--pbs` may say, and the qsub options of each job of a chain that follow from it."""

import re
from collections.abc import Mapping, Sequence

from hpcmpq.batch.scheduler import Settings
from hpcmpq.batch.typed import OPTIONAL_ARRAYS, typed_settings
from hpcmpq.errors import UserError
from hpcmpq.tables import look_up

EXECUTORS = dict.fromkeys(("mpi", "array", "local"))
"""How a job can calibrate; Ray's cluster would have to be started by hand."""

KEYS = ("queue", "account", "project", "walltime", "place", "select", "array")
"""PBS settings: those of all jobs, the chunks of calibration and evaluation, and the tasks of calibration."""

_MANY, _ONE_GPU = ("calibrate", "evaluate"), ("refine", "reround", "finish", "export")


def parse_settings(texts: Sequence[str], executor: str) -> Settings:
    """Settings from KEY=VALUE and JOB.KEY=VALUE texts, several to a text where blanks separate them.

    Raises:
        UserError: If a key or job is unknown, listing all there are, a value is missing, or chunks name no ranks.
    """
    look_up(EXECUTORS, executor, "executor")
    return typed_settings(texts, executor, scheduler="pbs", title="PBS", keys=KEYS, options_of=_options_of)


def _options_of(
    job: str, general: Mapping[str, str], special: Mapping[tuple[str, str], str], executor: str
) -> dict[str, str]:
    own = {key: value for (name, key), value in special.items() if name == job}
    shared = {key: value for key, value in general.items() if key not in ("select", "array")}
    options = {**shared, **own}
    chunks = general.get("select", "")
    if job in _MANY:
        options["select"] = own.get("select") or chunks or ""
    elif "select" not in own:
        with_gpus = "ngpus=" in special.get(("calibrate", "select"), chunks)
        options["select"] = "1:ncpus=1:ngpus=1" if job in _ONE_GPU and with_gpus else "1:ncpus=1"
    if job == "evaluate":
        options["select"] = one_rank_per_gpu(options["select"]) or "1:ncpus=2:mpiprocs=2"
    if job == "calibrate":
        options["select"] = options["select"] or (
            "1:ncpus=4:mpiprocs=4" if executor == "mpi" else "1:ncpus=1"
        )
        if executor == "mpi" and "mpiprocs=" not in options["select"]:
            raise UserError(
                f"--pbs select={options['select']} names no ranks; say how many each chunk gets, such as "
                "select=4:ncpus=8:mpiprocs=4"
            )
    if (job, executor) == ("calibrate", "array") or (job in OPTIONAL_ARRAYS and "array" in own):
        count, percent, at_once = (own.get("array") or general.get("array", "4")).partition("%")
        if not count.isdecimal() or int(count) < 2:
            raise UserError(
                f"--pbs array={count} is not a number of tasks above 1, which is PBS's smallest array"
            )
        options["array"] = f"0-{int(count) - 1}{percent}{at_once}"
    return options


def with_memory(options: Mapping[str, str], gib: int) -> dict[str, str]:
    """A job's options with a request for so many GiB in its first chunk, unless a chunk names memory already.

    Example:
        >>> with_memory({"select": "1:ncpus=1"}, 4), with_memory({"select": "1:ncpus=1:mem=2gb"}, 4)
        ({'select': '1:ncpus=1:mem=4gb'}, {'select': '1:ncpus=1:mem=2gb'})
    """
    first, *others = options["select"].split("+")
    named = ":mem=" in options["select"]
    return dict(options) if named else {**options, "select": "+".join([f"{first}:mem={gib}gb", *others])}


def one_rank_per_gpu(select: str) -> str:
    """The same chunks with as many ranks as GPUs; as they are where they have no GPUs.

    Example:
        >>> one_rank_per_gpu("2:ncpus=32:ngpus=4:mpiprocs=16"), one_rank_per_gpu("2:ncpus=8:mpiprocs=8")
        ('2:ncpus=32:ngpus=4:mpiprocs=4', '2:ncpus=8:mpiprocs=8')
    """
    chunks = []
    for chunk in select.split("+"):
        gpus = re.search(r":ngpus=(\d+)", chunk)
        chunks.append(re.sub(r":mpiprocs=\d+", "", chunk) + f":mpiprocs={gpus[1]}" if gpus else chunk)
    return "+".join(chunks)
