"""What `hpcmpq run` ends with: the assignment, what it won, and what other budgets would give."""

import shlex
from typing import Any

from hpcmpq.cli.console import rows, say
from hpcmpq.store.of_solution import read_frontier
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.solution_file import read_solution


def summary(run: RunDir, evaluation: dict[str, Any]) -> None:
    """What the whole run found, and measured in the end."""
    solution = read_solution(run)
    rows(("group", "format"), solution["assignment"].items(), title="assignment")
    objective = evaluation["objective"]
    measured = evaluation[objective]
    original = f", the original {measured['original']:.6g}" if measured["original"] else ""
    say(
        f"predicted {objective} {solution['predicted_loss']:.6g} on calibration samples; measured on others "
        f"{measured['quantized']:.6g}, uniform {evaluation['uniform_format']} {measured['uniform']:.6g}{original}"
    )
    costs = solution["costs"]
    say(
        f"{costs['average_bits']:.4g} bits per searched weight with scales; size_bytes {costs['size_bytes']:,.0f}, "
        f"uniform {evaluation['uniform_costs']['size_bytes']:,.0f}"
    )
    _against_uniform(evaluation, costs["size_bytes"])
    if (frontier := read_frontier(run, read_plan(run))) is not None:
        _other_budgets(run, solution, frontier)
    say(f"checkpoint: {run.checkpoint_path}, not packed; `hpcmpq export {run.path} --format ...` packs it")
    say(f"report: {run.report_path}")


def _against_uniform(evaluation: dict[str, Any], size_bytes: float) -> None:
    """By how much the mix of a size beats, or does not beat, the uniform model that is at least as large."""
    larger = evaluation["uniform_costs"]["size_bytes"] / size_bytes - 1
    beside = f", which is {100 * larger:.0f} % larger" if larger >= 0.01 else ""
    for name in dict.fromkeys((evaluation["objective"], "ce")):
        found = evaluation["paired"].get(name, {}).get("quantized - uniform")
        if found is None or found["interval"] is None:
            continue
        uniform = evaluation[name]["uniform"] - (evaluation[name]["original"] or 0.0)
        low, high = found["interval"]
        if low <= 0 <= high:
            verdict = "cannot be told apart from"
        else:
            verdict = "is lower than" if high < 0 else "is higher than"
        part = abs(found["difference"]) / uniform if uniform > 0 else 0.0
        share = f", {100 * part:.0f} % of its increase" if 0 < part <= 1 else ""
        say(
            f"{name} of the mix {verdict} that of uniform {evaluation['uniform_format']}{beside}: "
            f"{found['difference']:+.3g} (95 % interval {low:+.3g} to {high:+.3g}){share}"
        )


def _other_budgets(run: RunDir, solution: dict[str, Any], frontier: dict[str, Any]) -> None:
    """What the next smaller and larger budget of the frontier would give, and the command to try one."""
    name = frontier["cost"]
    limit = solution["budgets"].get(name)
    points = [point for point in frontier["points"] if point.get("predicted_loss") is not None]
    if limit is None or not points:
        return
    step = 1e-9 * max(1.0, abs(limit))
    smaller = max((p for p in points if p["limit"] < limit - step), key=lambda p: p["limit"], default=None)
    larger = min((p for p in points if p["limit"] > limit + step), key=lambda p: p["limit"], default=None)
    parts = [
        f"{name} {point['limit']:.4g} would give {point['predicted_loss']:.3g}"
        for point in (smaller, larger)
        if point is not None
    ]
    if parts:
        tried, place = (smaller or larger or {})["limit"], shlex.quote(str(run.path))
        say(f"predicted: {', '.join(parts)} in place of {solution['predicted_loss']:.3g}")
        say(f"to try one, without measuring again: `hpcmpq solve {place} --budget {name}={tried:.12g}`")
