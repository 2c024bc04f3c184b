"""What screening chose to measure, round by round: RUN/screen/round_<number>.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpcmpq.plan import Plan
from hpcmpq.store.json_files import placed_artefact, read_json
from hpcmpq.store.run_dir import RunDir


def read_rounds(run: RunDir, plan: Plan) -> list[dict[str, Any]]:
    """The rounds so far, none before screening: each with `options`, their indices among all.

    The first has `cost`, that of all options by the first pass, the others `asked`, whom they are for; the options of
    one whose look wanted none are empty.

    Raises:
        DamagedFile: If one is damaged.
    """
    found: list[dict[str, Any]] = []
    while (path := round_path(run, len(found) + 1)).exists():
        values = read_json(path, f"hpcmpq calibrate {run.path}")
        if values.pop("fingerprint") != plan.fingerprint:
            return []
        found.append(values)
    return found


def keep_round(run: RunDir, plan: Plan, number: int, values: Mapping[str, Any]) -> None:
    """Write round 1, 2, ..., unless another process has: that one's choice then holds for all."""
    values = {"fingerprint": plan.fingerprint, **values}
    placed_artefact(round_path(run, number), values, f"hpcmpq calibrate {run.path}")


def round_path(run: RunDir, number: int) -> Path:
    """Where a round is."""
    return run.file(f"screen/round_{number}.json")
