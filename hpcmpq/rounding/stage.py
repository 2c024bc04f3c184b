"""The reround stage: the solution's weights rounded again, kept if held-out samples say that it lowers the loss.

Attempts stand in `reround` of `solution.json`. Each is compared, sample by sample, with the weights that the solution
has by then; look j may be lucky with a chance of `hpcmpq.refine.descent.LUCK` / 2ʲ.
"""

import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np

from hpcmpq.calibrate.mended import check_plan_mended
from hpcmpq.errors import DamagedFile, UserError
from hpcmpq.executors import Executor
from hpcmpq.models.data.kept_samples import planned_splits
from hpcmpq.models.data.samples import Splits
from hpcmpq.models.load import pick_device
from hpcmpq.plan import Plan, content_hash
from hpcmpq.quantized.solved import open_as_planned
from hpcmpq.refine.descent import check_held_out, is_better
from hpcmpq.refine.portfolio import mean_and_stderr, paired
from hpcmpq.rounding import BEST, find_rounding_method
from hpcmpq.rounding.again_units import NOTHING_TO_ROUND, measured_in_units
from hpcmpq.rounding.attempt import RoundingAttempt, fitted_on
from hpcmpq.rounding.cuts import Cuts
from hpcmpq.rounding.taking import Overtaken, never
from hpcmpq.space import Member
from hpcmpq.store.json_files import placed_artefact, read_json, write_artefact
from hpcmpq.store.measured_losses import kept_codes, with_kept_loss, without_losses
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.solution_file import read_solution, solution_now

CUTS = Cuts()
"""How the work is cut."""

Made = tuple[frozenset[str], np.ndarray, np.ndarray]
"""Names of the weights that have codes, and the losses on held-out samples before and after, float64 [N] each."""


def reround(
    run: RunDir,
    method: str | None,
    strength: float | None,
    on_weight: Callable[[int, int], None],
    executor: Executor | None = None,
    part: tuple[int, int] = (0, 1),
) -> dict[str, Any]:
    """Round the weights of `solution.json` again, and keep it where it is better; returns the solution's new values.

    Interrupted, the same call goes on with the weights that are left. Codes and losses are the same bits for any number
    of workers; this process alone makes them too, with one thread.

    Args:
        run: A solved run directory.
        method: A name in `hpcmpq.rounding.METHODS`, or None for the config's.
        strength: Of the method, from 0 to 1; None for the config's, or the method's own.
        on_weight: Called with the weights done and of all.
        executor: Where steps run in work units; None for this process alone.
        part: (i, n): of n processes that share the run directory this is number i.

    Raises:
        UserError: If nothing is solved yet, there are no held-out samples, nothing can be rounded again, or something
            else was solved meanwhile.
        IncompleteCalibration: If a unit failed for good; all others are on disk.
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
    samples = fitted_on(splits).digest()
    assignment = dict(solution["assignment"])
    facts = [plan.fingerprint, assignment, name, strength, samples, config.calibration.samples_per_pass]
    codes, before = content_hash(facts)[:16], kept_codes(solution)
    attempt = RoundingAttempt(
        codes, name, strength, assignment, samples, None if before is None else solution["reround"], CUTS
    )
    repairs, is_over = codes == before, never
    start, outcome = time.monotonic(), _Outcome(run, attempt)
    if repairs:
        wanted = _weights(plan, solution["reround"])
        attempt.remove_damaged(run, wanted)
        is_over = partial(attempt.stored(run).are_there, wanted)
        if is_over():
            return solution
    elif part[1] > 1:
        is_over = partial(outcome.is_there, plan)
        if is_over():
            return outcome.applied(solution)
    try:
        if executor is None:
            parameters, before_N, after_N = _made_here(run, plan, attempt, splits, on_weight, repairs)
        else:
            parameters, before_N, after_N = measured_in_units(
                run, plan, attempt, splits, executor, on_weight, is_over, part, repairs
            )
    except (Overtaken, UserError):
        if not is_over():
            raise
        if not repairs:
            return outcome.applied(solution)
    leftovers = run.file("reround/shards" if part[1] > 1 else "reround")
    if repairs:
        shutil.rmtree(leftovers, ignore_errors=True)
        return solution
    found = _with_attempt(
        solution.get("reround") or {},
        content_hash(assignment),
        {"codes": codes, "parameters": sorted(parameters), "method": name, "strength": strength},
        before_N,
        after_N,
        time.monotonic() - start,
    )
    if part[1] > 1:
        solution = outcome.placed(solution, found)
    else:
        solution = _with(solution_now(run, solution, f"hpcmpq reround {run.path}"), found)
        write_artefact(run.solution_path, solution)
    shutil.rmtree(leftovers, ignore_errors=True)
    _remove_others(run, kept_codes(solution))
    return solution


def _made_here(
    run: RunDir,
    plan: Plan,
    attempt: RoundingAttempt,
    splits: Splits,
    on_weight: Callable[[int, int], None],
    repairs: bool,
) -> Made:
    """All by this process; without losses where damaged codes are made anew."""
    config, variants, samples = plan.config, open_as_planned(run, plan), fitted_on(splits)
    device = pick_device(config.model.device)
    check_plan_mended(plan, variants.model, samples[:2].to(device).inputs, str(run.path))
    again = attempt.again(run, variants, list(samples.to(device).passes(config.calibration.samples_per_pass)))
    if not again.wanted:
        raise UserError(NOTHING_TO_ROUND)
    attempt.remove_damaged(run, again.wanted)
    parameters = again.run(on_weight)
    if repairs:
        return parameters, np.empty(0), np.empty(0)
    weights = attempt.before_it(run, plan), attempt.after_it(run, plan, parameters)
    before_N, after_N = attempt.losses(plan, variants, splits.held_out.to(device), weights)
    return parameters, before_N, after_N


def _weights(plan: Plan, found: Mapping[str, Any]) -> list[Member]:
    """Those that have codes of an attempt, by what is said of it in `solution.json`."""
    names = set(found["parameters"])
    return [m for g in plan.space.groups for m in g.members if m.parameter in names]


class _Outcome:
    """What came of an attempt that several processes share: the first that ends it says it, and others agree."""

    def __init__(self, run: RunDir, attempt: RoundingAttempt) -> None:
        self._run, self._codes, self._stored = run, attempt.codes, attempt.stored(run)
        self._path = run.file(f"reround/{attempt.codes}-outcome.json")

    def is_there(self, plan: Plan) -> bool:
        """Whether a process has ended it; a file that does not say so, or whose codes are gone, is removed."""
        if not self._path.exists():
            return False
        with suppress(DamagedFile):
            values = read_json(self._path, self._run.command)
            found = values["reround"]
            gone = found["codes"] == self._codes and not self._stored.are_there(_weights(plan, found))
            if values["codes"] == self._codes and not gone:
                return True
        self._path.unlink(missing_ok=True)
        return False

    def placed(self, solution: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
        """The solution after it: this process's outcome, or that of one that was first."""
        values = {"codes": self._codes, "reround": found, "of": content_hash(solution.get("reround"))}
        placed_artefact(self._path, values, self._run.command)
        return self.applied(solution)

    def applied(self, solution: dict[str, Any]) -> dict[str, Any]:
        """The solution after it, written; one that has gone on since stays as it is."""
        values = read_json(self._path, self._run.command)
        now = read_solution(self._run)
        if values["of"] != content_hash(now.get("reround")):
            return now
        now = _with(solution_now(self._run, solution, self._run.command), dict(values["reround"]))
        write_artefact(self._run.solution_path, now)
        return now


def _with(solution: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """The solution with another value of `reround`, whose last attempt is new."""
    solution = {**solution, "reround": found}
    return with_kept_loss(without_losses(solution, "evaluated")) if found["history"][-1]["kept"] else solution


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


def _remove_others(run: RunDir, kept: str | None) -> None:
    """Remove the codes of attempts that were not kept, and of other solutions."""
    for directory in (run.path / "rerounded").iterdir():
        if directory.name != kept and directory.is_dir():
            shutil.rmtree(directory, ignore_errors=True)
