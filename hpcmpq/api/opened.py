"""`hpcmpq.open`: a run that is there."""

import os
from pathlib import Path
from typing import Any

from hpcmpq.api.run import Run
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir


def open_run(run_dir: str | os.PathLike[str], *, model: Any = None) -> Run:
    """The run in a directory that `Run.create` or `hpcmpq plan` made.

    Args:
        run_dir: The directory.
        model: The module that it was planned with, where that was one in memory and this is another process.

    Raises:
        UserError: If there is no run.

    Example:
        >>> from hpcmpq.api.example import example_run
        >>> open_run(example_run().path).quadratic.num_samples
        8
    """
    if model is not None:
        from hpcmpq.models.in_memory import give

        give(model)
    read_plan(RunDir(Path(run_dir)))
    return Run(Path(run_dir))
