"""Two run directories side by side: `hpcmpq compare`."""

from typing import Any

from hpcmpq.store.of_solution import read_evaluation
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.solution_file import read_solution

LOSSES = ("predicted_loss", "predicted_cross_terms", "expected_loss", "measured_loss", "bound", "gap")
METRICS = ("loss", "kl", "ce", "mse", "perplexity", "accuracy")


def compare(first: RunDir, second: RunDir) -> dict[str, Any]:
    """What two solved runs have in common and what not, as plain JSON values.

    Every entry of ``budgets``, ``costs``, ``losses``, ``settings`` and ``evaluation`` is a pair, with None where a
    run lacks the value; an evaluation of an older solution than the run's is left out. ``formats`` holds the groups
    of both runs whose format differs.

    Raises:
        UserError: If a run has no plan or no solution.
    """
    pair = (_read(first), _read(second))
    solutions = [run["solution"] for run in pair]
    notes = _notes(pair[0], pair[1])
    assignments = [solution["assignment"] for solution in solutions]
    shared = [group for group in assignments[0] if group in assignments[1]]
    return {
        "runs": [str(first.path), str(second.path)],
        "notes": notes,
        "settings": _pairs(*(run["settings"] for run in pair)),
        "budgets": _pairs(*(solution["budgets"] for solution in solutions)),
        "costs": _pairs(*(solution["costs"] for solution in solutions)),
        "losses": _pairs(*({n: s[n] for n in LOSSES if s.get(n) is not None} for s in solutions)),
        "evaluation": _pairs(*(run["evaluation"] for run in pair)),
        "num_shared_groups": len(shared),
        "formats": {g: [a[g] for a in assignments] for g in shared if assignments[0][g] != assignments[1][g]},
    }


def _read(run: RunDir) -> dict[str, Any]:
    plan = read_plan(run)
    solution = read_solution(run)
    config = plan.config
    return {
        "plan": plan,
        "path": run.path,
        "solution": solution,
        "settings": {
            "model": config.model.path or config.model.factory,
            "data": config.calibration.data,
            "objective": config.objective,
            "sensitivity": config.sensitivity.method,
            "solver": solution["solver"]["name"],
        },
        **_evaluation(run, solution),
    }


def _evaluation(run: RunDir, solution: dict[str, Any]) -> dict[str, Any]:
    """``evaluation`` {"metric of model": value} of this very solution, empty without one, and its ``samples``."""
    values = read_evaluation(run, solution)
    if values is None:
        return {"evaluation": {}, "samples": None}
    metrics = {
        f"{metric} of {model}": values[metric][model]
        for metric in METRICS
        if metric in values
        for model in ("original", "quantized", "uniform")
    }
    return {"evaluation": metrics, "samples": (values["num_samples"], values.get("samples_hash"))}


def _notes(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """A sentence for each reason to take the numbers with care."""
    notes = []
    plans = first["plan"], second["plan"]
    weights = [plan.facts.get("model.weights") for plan in plans]
    if weights[0] != weights[1]:
        notes.append("The runs have different models: losses and costs of the two cannot be compared.")
    names = [{group.name for group in plan.space.groups} for plan in plans]
    if names[0] != names[1]:
        notes.append(
            f"The runs have different groups: {len(names[0] & names[1])} are in both, {len(names[0] - names[1])} "
            f"only in the first and {len(names[1] - names[0])} only in the second."
        )
    if first["settings"]["objective"] != second["settings"]["objective"]:
        notes.append("The runs have different objectives: predicted losses cannot be compared.")
    elif plans[0].fingerprint != plans[1].fingerprint:
        notes.append(
            "The runs were measured differently: their predictions come from different measurements."
        )
    notes += _notes_on_samples(first, second)
    missing = [run["path"] for run in (first, second) if not run["evaluation"]]
    notes += [f"{p} has no evaluation of its solution; `hpcmpq evaluate {p}` makes one." for p in missing]
    return notes


def _notes_on_samples(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Whether two evaluations are of different samples, or may be."""
    if first["samples"] is None or second["samples"] is None or first["path"] == second["path"]:
        return []
    (num_first, hash_first), (num_second, hash_second) = first["samples"], second["samples"]
    known = hash_first is not None and hash_second is not None
    if num_first != num_second or (known and hash_first != hash_second):
        return [
            f"The runs were evaluated on different samples, {num_first} and {num_second}: measured losses cannot "
            "be compared."
        ]
    if known:
        return []
    old = first["path"] if hash_first is None else second["path"]
    return [
        "The runs may have been evaluated on different samples: an earlier version did not record them; "
        f"`hpcmpq evaluate {old}` does."
    ]


def _pairs(first: dict[str, Any], second: dict[str, Any]) -> dict[str, list[Any]]:
    return {name: [first.get(name), second.get(name)] for name in {**first, **second}}
