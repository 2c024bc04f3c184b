"""`python -m tests.executors.run_several_toys EXECUTOR RUN...`: toy units of several runs, one line of JSON each."""

import json
import sys
from contextlib import closing
from pathlib import Path

from hpcmpq.errors import UserError, exit_status
from hpcmpq.executors import open_executor
from hpcmpq.executors.batches import Batches, UnitBatch
from hpcmpq.executors.desk import SharedDesk
from tests.executors.toy_units import UNITS, recipe


def batches(path: Path) -> Batches[None]:
    def seen(outcome) -> None:
        print(json.dumps([path.name, outcome.unit.id, outcome.error, outcome.final]), flush=True)

    yield UnitBatch(recipe(path), UNITS, seen)


def main(name: str, paths: list[Path]) -> None:
    with open_executor(name, 2) as pool:
        if pool is None:
            return
        desk = SharedDesk(
            [batches(path) for path in paths],
            lambda number, error: print(json.dumps([paths[number].name, "over", str(error), True])),
            pool.num_workers,
            at_once=True,
        )
        with closing(pool.hand_out(desk, keep=True)) as outcomes:
            for backlog, outcome in outcomes:
                desk.seen(backlog, outcome)


if __name__ == "__main__":
    try:
        main(sys.argv[1], [Path(path) for path in sys.argv[2:]])
    except UserError as error:
        print(f"hpcmpq: {error}", file=sys.stderr)
        sys.exit(exit_status(error))
