"""`hpcmpq run` without a config: the one that `hpcmpq init` would write, printed and kept."""

from collections.abc import Sequence
from pathlib import Path

from hpcmpq.cli import console
from hpcmpq.errors import UserError
from hpcmpq.store.run_dir import RunDir


def config_of(what: Path, run_dir: Path, data: str | None, budgets: Sequence[str]) -> Path:
    """A config as it is; of a model the path of the one that is written for it.

    Args:
        what: A config, a Hugging Face directory or a GGUF file.
        run_dir: Where the config is kept.
        data: As in ``calibration.data``, for a model.
        budgets: NAME=VALUE of each, for a model.

    Raises:
        UserError: If a config is given with data or budgets, or a model without data.
        PlanMismatch: If the run is one of another config.
    """
    if not what.is_dir() and what.suffix != ".gguf":
        if data is not None or budgets:
            raise UserError(
                f"--data and --budget are for a model directory, and {what} is a config: set calibration.data and "
                "budgets in it"
            )
        return what
    if data is None:
        raise UserError(
            f"{what} is a model; say what to calibrate it on with --data FILE: text like what it will read, JSONL "
            "with a field text, or arrays of its inputs (.npy, .npz)"
        )
    from hpcmpq.api.create import write_first_config
    from hpcmpq.solve.settings import parse_budgets

    console.title("config")
    run = RunDir(run_dir)
    console.say_as_is(write_first_config(run, what, data, parse_budgets(budgets)))
    console.say(f"config in {run.config_path}")
    return run.config_path
