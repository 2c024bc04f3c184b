"""What the shell offers after a Tab: run directories, configs, and the names that options take.

Nothing here may load torch: a Tab should answer at once. Words that only a value can follow end with ``=``.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import get_args, get_type_hints

import typer

from hpcmpq.batch.scheduler import JOBS
from hpcmpq.executors import EXECUTORS
from hpcmpq.export import EXPORTERS
from hpcmpq.rounding import METHODS
from hpcmpq.settings import EvaluationConfig
from hpcmpq.slurm.settings import EXECUTORS as SUBMIT_EXECUTORS
from hpcmpq.slurm.settings import KEYS
from hpcmpq.solve.largest_gain import GAINS
from hpcmpq.solvers import SOLVERS
from hpcmpq.store.measured_times import LATENCY_NAMES

COSTS = (
    "weight_bits",
    "average_bits",
    "size_bytes",
    "bops",
    "macs",
    "active_bytes",
    "active_macs",
    "kv_bytes_per_token",
    *LATENCY_NAMES,
    "mac_time",
)
"""Costs that budgets can name; those of time need `hpcmpq time` first."""

ENGINES: tuple[str, ...] = get_args(get_type_hints(EvaluationConfig)["engine"])


def run_directories(incomplete: str) -> list[str]:
    """Directories with a plan that begin so, or lie in directories that do."""
    return _paths(incomplete, lambda path: (path / "plan.json").is_file())


def model_directories(incomplete: str) -> list[str]:
    """Hugging Face directories and GGUF files that begin so, or lie in directories that do."""
    return _paths(incomplete, lambda path: (path / "config.json").is_file() or path.suffix == ".gguf")


def configs(incomplete: str) -> list[str]:
    """YAML files that begin so, or lie in directories that do."""
    return _paths(incomplete, lambda path: path.suffix in (".yaml", ".yml") and path.is_file())


def configs_and_models(incomplete: str) -> list[str]:
    """Both of these."""
    return sorted({*configs(incomplete), *model_directories(incomplete)})


def costs(incomplete: str) -> list[str]:
    """Names of costs."""
    return _starting(COSTS, incomplete)


def budgets(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of costs with ``=``, and the plan's own budgets with their values."""
    # The option that is being completed lacks its value, and its parser then leaves positional words in `args`.
    given = _planned_budgets(ctx.params.get("run_dir") or next(iter(ctx.args), None))
    return _starting([f"{name}={given.get(name, '')}" for name in COSTS], incomplete)


def executors(incomplete: str) -> list[str]:
    """Names of executors."""
    return _starting(EXECUTORS, incomplete)


def submit_executors(incomplete: str) -> list[str]:
    """Names of ways to calibrate in a job."""
    return _starting(SUBMIT_EXECUTORS, incomplete)


def slurm_settings(incomplete: str) -> list[str]:
    """``KEY=``, and after the name of a job ``JOB.KEY=``."""
    job, dot, _ = incomplete.partition(".")
    keys = ("env", *KEYS)
    words = [f"{job}.{key}=" for key in KEYS] if dot and job in JOBS else [f"{key}=" for key in keys]
    return _starting(words, incomplete)


def solvers(incomplete: str) -> list[str]:
    """Names of solvers."""
    return _starting(SOLVERS, incomplete)


def export_formats(incomplete: str) -> list[str]:
    """Names of exports."""
    return _starting(EXPORTERS, incomplete)


def engines(incomplete: str) -> list[str]:
    """Names of what evaluates."""
    return _starting(ENGINES, incomplete)


def rounding_methods(incomplete: str) -> list[str]:
    """Names of ways to round again."""
    return _starting(METHODS, incomplete)


def gains(incomplete: str) -> list[str]:
    """Names of what `hpcmpq solve --maximize` takes."""
    return _starting(GAINS, incomplete)


def _starting(words: Iterable[str], incomplete: str) -> list[str]:
    return [word for word in words if word.startswith(incomplete)]


def _paths(incomplete: str, wanted: Callable[[Path], bool]) -> list[str]:
    """Wanted paths that begin with `incomplete`, and those directly in unwanted directories that do."""
    folder, _, start = incomplete.rpartition("/")
    place = Path(f"{folder}/" if "/" in incomplete else ".")
    found = []
    for path in sorted(place.glob("*")) if place.is_dir() else []:
        if not path.name.startswith(start) or path.name.startswith(".") > start.startswith("."):
            continue
        if wanted(path):
            found.append(str(path))
        elif path.is_dir():
            found += [str(child) for child in sorted(path.glob("*")) if wanted(child)]
    return found


def _planned_budgets(run_dir: object) -> dict[str, float]:
    """Budgets of a run directory's config; none if it cannot be read, since a Tab prints no errors."""
    try:
        budgets: dict[str, float] = json.loads(
            (Path(str(run_dir)) / "plan.json").read_text(encoding="utf-8")
        )["config"]["budgets"]
    except (OSError, ValueError, KeyError):
        return {}
    return budgets
