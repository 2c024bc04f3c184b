"""The command line: one subcommand per stage, in files by what they are for.

To add one: a function with `@command(EXAMPLE)` in the file where people would look for it, options that others
share in `hpcmpq.cli.arguments`, and heavy imports inside the function, so that `--help` is quick. It prints with
`hpcmpq.cli.console` and returns what --json is to print, with keys that stay, see
`tests/cli/test_command_line.py`.
"""

# In the order in which --help lists the commands.
# isort: off
from hpcmpq.cli import doctor, init, compare, stages, refined, demo, frontier, track, slurm
from hpcmpq.cli.app import app, main

# isort: on

__all__ = [
    "app",
    "compare",
    "demo",
    "doctor",
    "frontier",
    "init",
    "main",
    "refined",
    "slurm",
    "stages",
    "track",
]
