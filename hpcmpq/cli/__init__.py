"""The command line: one subcommand per stage, in files by what they are for.

To add one: a function with `@app.command` in the file where people would look for it, options that others
share in `hpcmpq.options`, and heavy imports inside the function, so that `--help` is quick.
"""

from hpcmpq.cli import desk, stages, submission, timing, trade_off
from hpcmpq.cli.app import app, main

__all__ = ["app", "desk", "main", "stages", "submission", "timing", "trade_off"]
