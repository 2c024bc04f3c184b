"""The options of a run with the weights that its solution really has: rounded again, where that was kept.

`reround` in `solution.json` names the codes: `codes`, their directory in RUN/rerounded/, or None; `parameters`, the
weights that they are of; and `assignment`, a hash of the assignment that they were made for.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from hpcmpq.models.streaming import Streamed, load_streamed
from hpcmpq.plan import Plan
from hpcmpq.quantized.stored_codes import SolutionCodes, StoredCodes
from hpcmpq.quantized.variants import Variants, open_variants
from hpcmpq.store.measured_losses import kept_codes
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.solution_file import read_solution


def open_solved(
    run: RunDir,
    plan: Plan,
    model: nn.Module | None = None,
    *,
    streamed: Streamed | None = None,
    check_outputs: bool = True,
) -> Variants:
    """As `hpcmpq.quantized.variants.open_variants`; the solution's assignment has the weights that are served.

    Raises:
        PlanMismatch: If the model has changed since it was planned for.
    """
    variants = open_variants(run, plan, model, streamed=streamed, check_outputs=check_outputs)
    if not run.solution_path.exists():
        return variants
    return replace(variants, solved=solution_codes(run, plan, read_solution(run)))


def open_as_planned(run: RunDir, plan: Plan) -> Variants:
    """As `open_solved`, with the model as the config has it: in memory, or one block at a time."""
    streamed = load_streamed(plan.config.model) if plan.config.model.stream else None
    return open_solved(run, plan, streamed=streamed)


def solution_codes(run: RunDir, plan: Plan, solution: Mapping[str, Any]) -> SolutionCodes | None:
    """The codes that `kept_codes` names."""
    name = kept_codes(solution)
    if name is None:
        return None
    found = solution["reround"]
    return SolutionCodes(
        dict(solution["assignment"]),
        codes_called(run, name, found["method"], found["strength"]),
        frozenset(found["parameters"]),
        StoredCodes(run, plan.fingerprint),
    )


def codes_called(run: RunDir, name: str, method: str, strength: float) -> StoredCodes:
    """The codes of one attempt to round again."""
    command = f"hpcmpq reround {run.path} --method {method} --strength {strength}"
    return StoredCodes(run, name, f"rerounded/{name}", command)
