"""The solve stage without the command line's dependencies: numpy, scipy, threadpoolctl, h5py and ortools are enough.

A run directory copied to a laptop solves there:

    python -m hpcmpq.solve RUN --budget weight_bits=3.0 --budget size_bytes=5e9
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from hpcmpq.errors import Interrupted, exit_status
from hpcmpq.stopping import keep_status, stop_at_once, stop_by_exception


def main() -> int:
    """Command line without dependencies beyond the solve path."""
    stop_at_once()
    from hpcmpq.solve.settings import parse_budgets, settings_of
    from hpcmpq.solve.stage import solve
    from hpcmpq.store.plan_file import read_plan
    from hpcmpq.store.run_dir import RunDir

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--budget", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--solver", action=_Once)
    parser.add_argument("--time-limit", action=_Once, type=float, metavar="SECONDS")
    args = parser.parse_args()
    heard: list[Interrupted] = []
    status = 0
    try:
        with stop_by_exception() as heard:
            plan = read_plan(RunDir(args.run))
            budgets = parse_budgets(args.budget) or plan.config.budgets
            values = solve(
                RunDir(args.run), budgets, settings_of(plan, name=args.solver, time_limit_s=args.time_limit)
            )
            print(
                f"predicted loss {values['predicted_loss']:.6g}, gap {values['gap']}, {values['termination']}"
            )
    except (Exception, Interrupted) as error:
        status = exit_status(heard[0] if heard else error)
        if status == 1:
            raise
        print(f"hpcmpq: {heard[0] if heard else error}", file=sys.stderr)
    finally:
        keep_status(status)
    return status


class _Once(argparse.Action):
    """Takes an option's value once: of two, the parser would silently drop the first."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option: str | None = None,
    ) -> None:
        if getattr(namespace, self.dest) is not None:
            parser.error(f"{option} is given again and takes one value; give it once")
        setattr(namespace, self.dest, values)


if __name__ == "__main__":
    sys.exit(main())
