"""The command line: one subcommand per stage, in files by what they are for.

To add one: a function with `@command(EXAMPLE)` in the file where people would look for it, options that others
share in `hpcmpq.cli.arguments`, and heavy imports inside the function, so that `--help` is quick. It prints with
`hpcmpq.cli.console` and returns what --json is to print, with keys that stay, see
`tests/cli/test_command_line.py`.
"""

from hpcmpq.cli import compare as desk
from hpcmpq.cli import frontier as trade_off
from hpcmpq.cli import slurm as submission
from hpcmpq.cli import stages
from hpcmpq.cli import time as timing
from hpcmpq.cli.app import app, main

__all__ = ["app", "desk", "main", "stages", "submission", "timing", "trade_off"]
