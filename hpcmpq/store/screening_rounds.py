"""What screening chose to measure, round by round: RUN/screen/round_<number>.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpcmpq.errors import DamagedFile
from hpcmpq.plan import Plan
from hpcmpq.store.json_files import placed_artefact, read_json
from hpcmpq.store.run_dir import RunDir


def read_rounds(run: RunDir, plan: Plan) -> list[dict[str, Any]]:
    """The rounds so far, none before screening: each with `options`, their indices among all.

    The first has `cost`, that of all options by the first pass, the others `asked`, whom they are for; the options of
    one whose look wanted none are empty.

    Raises:
        DamagedFile: If one is damaged, missing before others, or of another plan than the first.
    """
    made_by, found = f"hpcmpq calibrate {run.path}", list[dict[str, Any]]()
    last = max(map(number_of, paths_of_rounds(run)), default=0)  # before any is read: others may write more
    while (path := round_path(run, len(found) + 1)).exists():
        values = read_json(path, made_by)
        if values.pop("fingerprint") != plan.fingerprint:
            if not found:
                return []  # all that is there is of a plan before
            raise DamagedFile(f"{path} belongs to another plan; run `{made_by}` again to choose anew")
        found.append(values)
    if last > len(found):
        raise DamagedFile(f"{path} is missing; run `{made_by}` again to choose anew")
    return found


def paths_of_rounds(run: RunDir) -> list[Path]:
    """All rounds that are there, of whatever plan."""
    return sorted(run.file("screen").glob("round_*.json"))


def number_of(path: Path) -> int:
    """Of the round in a file; 0 if its name says none."""
    number = path.stem.removeprefix("round_")
    return int(number) if number.isascii() and number.isdigit() else 0


def keep_round(run: RunDir, plan: Plan, number: int, values: Mapping[str, Any]) -> None:
    """Write round 1, 2, ..., unless another process has: that one's choice then holds for all."""
    values = {"fingerprint": plan.fingerprint, **values}
    placed_artefact(round_path(run, number), values, f"hpcmpq calibrate {run.path}")


def round_path(run: RunDir, number: int) -> Path:
    """Where a round is."""
    return run.file(f"screen/round_{number}.json")
