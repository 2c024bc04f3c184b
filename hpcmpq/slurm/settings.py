"""What `--slurm` may say, and the sbatch options of each job of a chain that follow from it."""

from collections.abc import Mapping, Sequence

from hpcmpq.batch.scheduler import JOBS, Settings
from hpcmpq.batch.typed import OPTIONAL_ARRAYS, typed_settings
from hpcmpq.tables import look_up

EXECUTORS = dict.fromkeys(("mpi", "ray", "array", "local"))
"""How a job can calibrate; `array` is many local ones that share the run directory."""

_ALL, _MANY = JOBS, ("calibrate", "evaluate")
KEYS: dict[str, tuple[str, ...]] = {
    "partition": _ALL,
    "account": _ALL,
    "qos": _ALL,
    "time": _ALL,
    "mem": _ALL,
    "constraint": _ALL,
    "exclude": _ALL,
    "reservation": _ALL,
    "signal": _ALL,
    "nodes": _MANY,
    "ntasks": _MANY,
    "ntasks_per_node": _MANY,
    "cpus_per_task": _MANY,
    "mem_per_cpu": _MANY,
    "array": ("calibrate",),
    "gpus": _MANY,
    "gpus_per_node": _MANY,
    "gpus_per_task": _MANY,
    "gres": _MANY,
}
"""Slurm settings, and the jobs that they hold for when no job is named."""

_MAY_BE_EMPTY = ("exclude",)
"""Settings whose empty value leaves them out: nodes on which units fail are then not excluded either."""

_GPU_KEYS = ("gpus", "gpus_per_node", "gpus_per_task", "gres")
_RANK_KEYS = ("ntasks", "ntasks_per_node")
_ONE_GPU = ("refine", "reround", "finish", "export")


def parse_settings(texts: Sequence[str], executor: str) -> Settings:
    """Settings from KEY=VALUE and JOB.KEY=VALUE texts, several to a text where blanks separate them.

    Raises:
        UserError: If a key or job is unknown, listing all there are, or a value is missing.
    """
    look_up(EXECUTORS, executor, "executor")
    return typed_settings(
        texts, executor, scheduler="slurm", title="Slurm", keys=KEYS, options_of=_options_of,
        may_be_empty=_MAY_BE_EMPTY,
    )  # fmt: skip


def _options_of(
    job: str, general: Mapping[str, str], special: Mapping[tuple[str, str], str], executor: str
) -> dict[str, str]:
    own = {key: value for (name, key), value in special.items() if name == job}
    hidden = _GPU_KEYS if _names_gpus(own) else ()
    options = {key: value for key, value in general.items() if job in KEYS[key] and key not in hidden}
    measuring = {**general, **{key: value for (name, key), value in special.items() if name == "calibrate"}}
    if job in _ONE_GPU and _names_gpus(measuring) and not hidden:
        options["gpus"] = "1"
    options = {key: value for key, value in {**options, **own}.items() if value}
    if job == "evaluate" and not set(own) & set(_RANK_KEYS):
        options = one_rank_per_gpu(options)
    if (job == "evaluate" or (job, executor) == ("calibrate", "mpi")) and not set(options) & {
        "nodes",
        *_RANK_KEYS,
    }:
        options["ntasks"] = "4" if job == "calibrate" else "2"
    if (job, executor) == ("calibrate", "array") or (job in OPTIONAL_ARRAYS and "array" in options):
        count, percent, at_once = options.get("array", "4").partition("%")
        if count.isdecimal() and int(count) > 0:
            options["array"] = f"0-{int(count) - 1}{percent}{at_once}"
    return options


def with_memory(options: Mapping[str, str], gib: int) -> dict[str, str]:
    """A job's options with a request for so many GiB on a node, unless they name memory already.

    Example:
        >>> with_memory({"time": "10"}, 4), with_memory({"mem_per_cpu": "2G"}, 4)
        ({'time': '10', 'mem': '4G'}, {'mem_per_cpu': '2G'})
    """
    named = {"mem", "mem_per_cpu"} & set(options)
    return dict(options) if named else {**options, "mem": f"{gib}G"}


def one_rank_per_gpu(options: Mapping[str, str]) -> dict[str, str]:
    """The same allocation with as many tasks as it has GPUs, however many it had; without GPUs as it was.

    Example:
        >>> one_rank_per_gpu({"nodes": "2", "gpus_per_node": "a100:4", "ntasks": "2"})
        {'nodes': '2', 'gpus_per_node': 'a100:4', 'ntasks_per_node': '4'}
    """
    if "gpus_per_task" in options or not _names_gpus(options):
        return dict(options)
    per_node = options.get("gpus_per_node") or _gpus_in(options.get("gres", ""))
    others = {key: value for key, value in options.items() if key not in _RANK_KEYS}
    if per_node:
        return {**others, "ntasks_per_node": str(num_gpus(per_node))}
    return {**others, "ntasks": str(num_gpus(options["gpus"]))}


def num_gpus(text: str) -> int:
    """GPUs that a value of --gpus or --gpus-per-node, or the GPUs of one of --gres, ask for.

    Example:
        >>> [num_gpus(text) for text in ("4", "a100:2,h100:1", "gpu:8(S:0-1)", "gpu")]
        [4, 3, 8, 1]
    """
    items = [item.partition("(")[0].split(":") for item in text.split(",")]
    return sum(int(item[-1]) if item[-1].isdecimal() else 1 for item in items)


def _names_gpus(options: Mapping[str, str]) -> bool:
    return any(_gpus_in(value) if key == "gres" else key in _GPU_KEYS for key, value in options.items())


def _gpus_in(gres: str) -> str:
    """What of a value of --gres is GPUs; the rest is local disks and licences, say."""
    return ",".join(item for item in gres.split(",") if item.partition(":")[0] == "gpu")
