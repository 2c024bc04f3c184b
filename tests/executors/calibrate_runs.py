"""`python -m tests.executors.calibrate_runs EXECUTOR WORKERS RUN...`: several runs with one executor."""

import sys
from pathlib import Path

from hpcmpq.api import stages
from hpcmpq.executors import open_executor
from hpcmpq.store.run_dir import RunDir


def main(executor: str, num_workers: int, paths: list[str]) -> None:
    with open_executor(executor, num_workers) as pool:
        if pool is not None:
            for path in paths:
                stages.round_options(RunDir(Path(path)), pool, lambda *_: None)
                stages.calibrate(RunDir(Path(path)), pool, lambda *_: None)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
