"""The reround stage: the solution's weights rounded again, kept if held-out samples say that it lowers the loss.

Attempts stand in `reround` of `solution.json`. Each is compared, sample by sample, with the weights that the solution
has by then; look j may be lucky with a chance of `hpcmpq.refine.descent.LUCK` / 2ʲ.
"""

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from hpcmpq.calibrate.mended import check_plan_mended
from hpcmpq.errors import UserError
from hpcmpq.models.data.kept_samples import planned_splits
from hpcmpq.models.load import pick_device
from hpcmpq.plan import content_hash
from hpcmpq.quantized.losses import Comparison
from hpcmpq.quantized.solved import codes_called, open_as_planned
from hpcmpq.quantized.stored_codes import SolutionCodes, StoredCodes
from hpcmpq.refine.descent import check_held_out, is_better
from hpcmpq.refine.portfolio import mean_and_stderr, paired
from hpcmpq.rounding import BEST, find_rounding_method
from hpcmpq.rounding.again import RoundingAgain
from hpcmpq.store.json_files import write_artefact
from hpcmpq.store.measured_losses import kept_codes, with_kept_loss, without_losses
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.solution_file import read_solution


def reround(
    run: RunDir, method: str | None, strength: float | None, on_weight: Callable[[int, int], None]
) -> dict[str, Any]:
    """Round the weights of `solution.json` again, and keep it where it is better; returns the solution's new values.

    Interrupted, the same call goes on with the weights that are left.

    Args:
        run: A solved run directory.
        method: A name in `hpcmpq.rounding.METHODS`, or None for the config's.
        strength: Of the method, from 0 to 1; None for the config's, or the method's own.
        on_weight: Called with the weights done and of all.

    Raises:
        UserError: If nothing is solved yet, there are no held-out samples, or nothing can be rounded again.
    """
    plan = read_plan(run)
    config = plan.config
    solution = read_solution(run)
    name = method or config.reround.method or BEST
    chosen = find_rounding_method(name)
    planned = config.reround.strength if name == config.reround.method else None
    strength = next(given for given in (strength, planned, chosen.strength) if given is not None)
    splits = planned_splits(plan)
    check_held_out(len(splits.held_out), "reround")
    samples = splits.calibration if splits.rounding is None else splits.rounding
    assignment = dict(solution["assignment"])
    attempt = content_hash(
        [plan.fingerprint, assignment, name, strength, samples.digest(), config.calibration.samples_per_pass]
    )[:16]
    own = codes_called(run, attempt, name, strength)
    variants = open_as_planned(run, plan)
    device = pick_device(config.model.device)
    check_plan_mended(plan, variants.model, samples[:2].to(device).inputs, str(run.path))
    start = time.monotonic()
    again = RoundingAgain(
        replace(variants, solved=None),
        assignment,
        list(samples.to(device).passes(config.calibration.samples_per_pass)),
        chosen,
        strength,
        own,
        on_weight,
    )
    if not again.wanted:
        raise UserError(
            "no weight of the solution can be rounded again: it takes linear layers in integer formats and types of "
            "llama.cpp"
        )
    repaired = attempt == kept_codes(solution)
    if repaired and all(own.has(m) for m in again.wanted if m.parameter in solution["reround"]["parameters"]):
        return solution
    parameters = again.run()
    if repaired:
        return solution
    solved = SolutionCodes(assignment, own, parameters, StoredCodes(run, plan.fingerprint))
    comparison = Comparison(
        variants, splits.held_out.to(device), (config.objective,), config.calibration.samples_per_pass
    )
    before_N = _losses(comparison, assignment)
    after_N = _losses(replace(comparison, variants=replace(variants, solved=solved)), assignment)
    solution["reround"] = _with_attempt(
        solution.get("reround") or {},
        content_hash(assignment),
        {"codes": attempt, "parameters": sorted(parameters), "method": name, "strength": strength},
        before_N,
        after_N,
        time.monotonic() - start,
    )
    if solution["reround"]["history"][-1]["kept"]:
        solution = with_kept_loss(without_losses(solution, "evaluated"))
    write_artefact(run.solution_path, solution)
    _remove_others(run, kept_codes(solution))
    return solution


def _with_attempt(
    found: dict[str, Any],
    assignment: str,
    made: dict[str, Any],
    before_N: np.ndarray,
    after_N: np.ndarray,
    seconds: float,
) -> dict[str, Any]:
    """The value of `reround` after another attempt, which replaces what was kept where it is better."""
    if found.get("assignment") != assignment:
        found = {}  # of another solution
    history = list(found.get("history", ()))
    (loss, loss_stderr), (change, stderr) = mean_and_stderr(after_N), paired(after_N, before_N)
    kept = is_better(after_N, before_N, len(history) + 1)
    history.append(
        {
            "method": made["method"],
            "strength": made["strength"],
            "num_weights": len(made["parameters"]),
            "held_out_loss": loss,
            "held_out_loss_stderr": loss_stderr,
            "held_out_loss_before": float(before_N.mean()),
            "difference": change,
            "difference_stderr": stderr,
            "kept": kept,
            "seconds": seconds,
        }
    )
    return {"codes": None, **(made if kept else found), "assignment": assignment, "history": history}


def _losses(comparison: Comparison, assignment: dict[str, str]) -> np.ndarray:
    [measured] = comparison.measure([assignment])
    [values_N] = measured.values.values()
    return values_N


def _remove_others(run: RunDir, kept: str | None) -> None:
    """Remove the codes of attempts that were not kept, and of other solutions."""
    for directory in (run.path / "rerounded").iterdir():
        if directory.name != kept and directory.is_dir():
            shutil.rmtree(directory)
