"""What the values of JSON artefacts are, to tell one of an earlier version, without a checksum, from a damaged one.

Only what stages read; a key that is not there is noticed where it is read.
"""

from typing import Any

ArtefactKind = Any
"""A type or several; a list with the kind of its items; a dict {key: kind}, or {EACH: kind} of all its values."""

EACH = "*"

_NUMBER = (int, float)
_NUMBER_OR_NONE = (int, float, type(None))
_NUMBERS = {EACH: _NUMBER}
_ASSIGNMENT = {EACH: str}
_INTERVALS = {EACH: {EACH: (list, type(None))}}
_SOLVER = {"name": str, "shrink": (int, float, str), "robust_k": _NUMBER, "drop_cross_terms": bool}
_ANSWER = {
    "assignment": _ASSIGNMENT,
    "objective": _NUMBER,
    "bound": _NUMBER_OR_NONE,
    "gap": _NUMBER_OR_NONE,
    "termination": str,
    "detail": str,
    "seconds": _NUMBER,
    "costs": _NUMBERS,
    "predicted_loss": _NUMBER,
}
_REFINE = {
    "evaluations": int,
    "solved_assignment": _ASSIGNMENT,
    "history": [dict],
    "link": {"predicted": [_NUMBER], "measured": [_NUMBER], "intercept": _NUMBER, "slope": _NUMBER},
}
_REROUND = {
    "codes": (str, type(None)),
    "parameters": [str],
    "assignment": str,
    "history": [{"kept": bool, "held_out_loss": _NUMBER}],
}
_PART = {"groups": [str], "class": (str, type(None))}
_COMBINATION = {"formats": [str], "seconds": _NUMBER}
_PHASE = {
    "parts": [_PART],
    "classes": {EACH: {"combinations": [_COMBINATION], "original": dict, "tied": [list]}},
    "shared_s": _NUMBER,
    "original_s": _NUMBER,
}

KINDS: dict[str, ArtefactKind] = {
    "solution.json": {
        **_ANSWER,
        "fingerprint": str,
        "budgets": _NUMBERS,
        "solver": _SOLVER,
        "uniform": {EACH: {"predicted_loss": _NUMBER, "feasible": bool, "costs": _NUMBERS}},
        "measured_loss": _NUMBER_OR_NONE,
        "expected_loss": _NUMBER_OR_NONE,
        "evaluated_loss": _NUMBER_OR_NONE,
        "portfolio": [{"name": str, "held_out_loss": _NUMBER}],
        "interactions": dict,
        "refine": _REFINE,
        "reround": _REROUND,
    },
    "evaluation.json": {
        **dict.fromkeys(("loss", "kl", "ce", "mse", "perplexity", "accuracy"), {EACH: _NUMBER_OR_NONE}),
        **dict.fromkeys(("kl_stderr", "ce_stderr", "mse_stderr"), {EACH: _NUMBER_OR_NONE}),
        "intervals": _INTERVALS,
        "paired": {EACH: {EACH: dict}},
        "assignment": _ASSIGNMENT,
        "objective": str,
        "num_samples": int,
        "num_tokens": (int, type(None)),
        "uniform_format": str,
        "uniform_costs": _NUMBERS,
    },
    "frontier.json": {
        "cost": str,
        "unit": str,
        "other_budgets": _NUMBERS,
        "solver": _SOLVER,
        "points": [{**_ANSWER, "limit": _NUMBER}],
        "uniform": {EACH: {"cost": _NUMBER, "predicted_loss": _NUMBER}},
    },
    "time.json": {"machine": dict, "generated_tokens": int, "rounds": int, "phases": {EACH: _PHASE}},
    "cost.json": {"seconds": _NUMBER_OR_NONE, "engine": str, "peak_parts": _NUMBERS},
    "proof.json": {"lines": [dict], "part_s": _NUMBERS, "detail": str},
    "jobs.json": {"submissions": [{"jobs": {EACH: str}}]},
}
"""{name of an artefact: kind of its object}."""


def misfit(value: Any, kind: ArtefactKind, place: str = "its content") -> str | None:
    """In words what is of another kind than it should be, or None where nothing is.

    Example:
        >>> misfit({"costs": {"bops": 3.0}, "new": 1}, {"costs": {EACH: (int, float)}, "gap": float})
        >>> misfit({"costs": {"bops": "3"}}, {"costs": {EACH: (int, float)}})
        "bops is '3'"
    """
    if isinstance(kind, dict):
        if not isinstance(value, dict):
            return f"{place} is {str(value)[:40]!r}"
        kinds = dict.fromkeys(value, kind[EACH]) if EACH in kind else kind
        entries = [(value[key], kinds[key], str(key)) for key in kinds if key in value]
    elif isinstance(kind, list):
        if not isinstance(value, list):
            return f"{place} is {str(value)[:40]!r}"
        entries = [(item, kind[0], f"an entry of {place}") for item in value]
    else:
        fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        return None if fits else f"{place} is {str(value)[:40]!r}"
    return next((found for entry in entries if (found := misfit(*entry)) is not None), None)
