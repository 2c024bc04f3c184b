"""Exports of the solved model, by name.

To add one: write a module here with `export(run, plan, assignment, directory) -> str`, one line for people
about what was written, and one line in `EXPORTERS`. A test must load the result with a real reader and compare
outputs.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path

from hpcmpq.errors import UserError
from hpcmpq.plan import Plan
from hpcmpq.store import RunDir, read_json, read_plan

EXPORTERS = {
    "fake_quantized": "hpcmpq.export.fake_quantized:export",
}

Exporter = Callable[[RunDir, Plan, Mapping[str, str], Path], str]


def export(run: RunDir, name: str) -> str:
    """Write the solved model in the format called `name` and return a line about it.

    Raises:
        UserError: If the format is unknown or nothing is solved yet.
    """
    if name not in EXPORTERS:
        raise UserError(f"unknown export format {name!r}; known: {', '.join(EXPORTERS)}")
    plan = read_plan(run)
    solution = read_json(run.solution_path, f"hpcmpq solve {run.path}")
    module, attribute = EXPORTERS[name].split(":")
    exporter: Exporter = getattr(import_module(module), attribute)
    return exporter(run, plan, solution["assignment"], run.checkpoint_path)
