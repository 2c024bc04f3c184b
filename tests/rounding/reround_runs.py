"""`python -m tests.rounding.reround_runs EXECUTOR WORKERS PART RUN`: a run rounded again by an executor, and kept."""

import sys
from pathlib import Path

from hpcmpq.cli.arguments import parse_part
from hpcmpq.executors import open_executor
from hpcmpq.rounding import stage
from hpcmpq.rounding.cuts import Cuts
from hpcmpq.store.run_dir import RunDir

SMALL = Cuts(positions=300, sums_bytes=16 * 128**2 * 2, row_work=2**20, fewest_rows=16)
"""Four ranges of the tiny model's samples; two sums of a layer, one of the widest; up to three parts of a weight."""


def main(executor: str, num_workers: int, part: str, path: str) -> None:
    stage.CUTS = SMALL
    stage.is_better = lambda *_: True
    with open_executor(executor, num_workers) as pool:
        if pool is not None:
            stage.reround(RunDir(Path(path)), "qep", None, lambda *_: None, pool, parse_part(part))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
