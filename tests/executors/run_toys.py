"""`python -m tests.executors.run_toys EXECUTOR RUN`: the missing toy units, one line of JSON per outcome."""

import json
import signal
import sys
from contextlib import closing
from pathlib import Path

from hpcmpq.errors import Interrupted, UserError, exit_status
from hpcmpq.executors import open_executor
from hpcmpq.store.run_dir import RunDir
from tests.executors.toy_units import UNITS, recipe


def main(name: str, path: Path, num_workers: int) -> None:
    missing = [unit for unit in UNITS if not RunDir(path).shard_path(unit.id).exists()]
    units = sorted(missing, key=lambda unit: unit.size)  # which no executor would think of
    with open_executor(name, num_workers) as pool:
        if pool is None:
            return
        with closing(pool.run(recipe(path), units)) as outcomes:
            for outcome in outcomes:
                print(json.dumps([outcome.unit.id, outcome.error, outcome.final]), flush=True)


def interrupt(number: int, _frame: object) -> None:
    raise Interrupted(signal.Signals(number).name)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, interrupt)
    try:
        main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 2)
    except (UserError, Interrupted) as error:
        print(f"hpcmpq: {error}", file=sys.stderr)
        sys.exit(exit_status(error))
