"""The solve stage without the command line's dependencies: numpy, scipy, threadpoolctl, h5py and ortools are enough.

A run directory copied to a laptop solves there:

    python -m hpcmpq.solve RUN --budget weight_bits=3.0 --budget size_bytes=5e9
"""

import argparse
import sys
from pathlib import Path

from hpcmpq.errors import Infeasible, UserError
from hpcmpq.solve.settings import parse_budgets, settings_of
from hpcmpq.solve.stage import solve
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir


def main() -> int:
    """Command line without dependencies beyond the solve path."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--budget", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--solver")
    parser.add_argument("--time-limit", type=float, metavar="SECONDS")
    args = parser.parse_args()
    try:
        plan = read_plan(RunDir(args.run))
        budgets = parse_budgets(args.budget) or plan.config.budgets
        values = solve(
            RunDir(args.run), budgets, settings_of(plan, name=args.solver, time_limit_s=args.time_limit)
        )
    except (UserError, Infeasible) as error:
        print(f"hpcmpq: {error}", file=sys.stderr)
        return 3 if isinstance(error, Infeasible) else 2
    print(f"predicted loss {values['predicted_loss']:.6g}, gap {values['gap']}, {values['termination']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
