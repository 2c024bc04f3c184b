"""What the values of JSON artefacts are, to tell one of an earlier version, without a checksum, from a damaged one.

Only what stages read; a key that is not there is noticed where it is read.
"""

import math
from pathlib import Path
from typing import Any

ArtefactKind = Any
"""A type; a tuple of kinds, one of which fits; a list with the kind of its items; a dict {key: kind}, or {EACH: kind}
of all its values.
"""

EACH = "*"

_NUMBER = (int, float)
_NUMBER_OR_NONE = (int, float, type(None))
_NUMBERS = {EACH: _NUMBER}
_ASSIGNMENT = {EACH: str}
_WHOLE_OR_NONE = (int, type(None))
_TEXT_OR_NONE = (str, type(None))
_INTERVAL = ([_NUMBER], type(None))
_COUNT = dict.fromkeys(("num_samples", "num_higher", "num_lower", "num_equal"), int)
_PAIRED = {**dict.fromkeys(("difference", "stderr"), _NUMBER_OR_NONE), "interval": _INTERVAL, **_COUNT}
_COMPARED = {"intervals": {EACH: {EACH: _INTERVAL}}, "paired": {EACH: {EACH: _PAIRED}}}
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
    "budgets": _NUMBERS,
    "fingerprint": str,
    "times": str,
}
_CANDIDATE = {"name": str, "chosen": bool, "held_out_loss": _NUMBER}
_INTERACTIONS = {
    **dict.fromkeys(("groups_changed", "num_groups"), int),
    **dict.fromkeys(("lowered_by", "lowered_by_stderr"), _NUMBER),
    **dict.fromkeys(("share", "share_stderr"), _NUMBER_OR_NONE),
}
_GAINED = {
    **dict.fromkeys(("gain", "cost", "unit", "limit_on"), str),
    **dict.fromkeys(("original", "reached", "saved", "saved_share", "limit"), _NUMBER),
    "bound": _NUMBER_OR_NONE,
}
_REFINE = {
    "evaluations": int,
    "solved_assignment": _ASSIGNMENT,
    "history": [dict],
    "link": {"predicted": [_NUMBER], "measured": [_NUMBER], "intercept": _NUMBER, "slope": _NUMBER},
}
_REROUND = {
    "codes": _TEXT_OR_NONE,
    "parameters": [str],
    "assignment": str,
    "history": [
        {"kept": bool, "held_out_loss": _NUMBER, "num_weights": int, "method": str, "strength": _NUMBER}
    ],
}
_PART = {"groups": [str], "operations": int, "result": str, "class": _TEXT_OR_NONE}
_COMBINATION = {"formats": [str], "seconds": _NUMBER}
_PHASE = {
    "parts": [_PART],
    "classes": {EACH: {"combinations": [_COMBINATION], "original": dict, "tied": [list]}},
    "shared_s": _NUMBER,
    "original_s": _NUMBER,
}

_MEMBER = {
    "parameter": str,
    **dict.fromkeys(("num_rows", "num_columns", "macs"), int),
    "transposed": bool,
    "active": _NUMBER,
}
_GROUP = {"name": str, "members": [_MEMBER], "block": _WHOLE_OR_NONE, "products": [dict]}
_UNIT = {"id": str, **dict.fromkeys(("group_start", "group_stop", "sample_start", "sample_stop"), int)}
_TIMING = {"seconds": _NUMBER, "finished": str, "fingerprint": _TEXT_OR_NONE}
_STAGES_WITH_PEAKS = ("round", "refine", "reround", "evaluate", "export", "solve")
_PROOF_LINE = {
    **dict.fromkeys(("node", "steps", "dimension", "rank", "options"), int),
    **dict.fromkeys(("seconds", "step_s", "gap"), _NUMBER),
}

KINDS: dict[str, ArtefactKind] = {
    "solution.json": {
        **_ANSWER,
        "solver": _SOLVER,
        "uniform": {EACH: {"predicted_loss": _NUMBER, "feasible": bool, "costs": _NUMBERS}},
        "measured_loss": _NUMBER_OR_NONE,
        "expected_loss": _NUMBER_OR_NONE,
        "evaluated_loss": _NUMBER_OR_NONE,
        "portfolio": [_CANDIDATE],
        "interactions": _INTERACTIONS,
        "maximized": _GAINED,
        "refine": _REFINE,
        "reround": _REROUND,
    },
    "evaluation.json": {
        **dict.fromkeys(("loss", "kl", "ce", "mse", "perplexity", "accuracy"), {EACH: _NUMBER_OR_NONE}),
        **dict.fromkeys(("kl_stderr", "ce_stderr", "mse_stderr"), {EACH: _NUMBER_OR_NONE}),
        **_COMPARED,
        "assignment": _ASSIGNMENT,
        "objective": str,
        "num_samples": int,
        "num_tokens": _WHOLE_OR_NONE,
        "uniform_format": str,
        "uniform_costs": _NUMBERS,
        **dict.fromkeys(("engine", "fingerprint", "samples_hash"), str),
        "world_size": int,
        "codes": _TEXT_OR_NONE,
        "tasks": {EACH: _COMPARED},
    },
    "frontier.json": {
        "cost": str,
        "unit": str,
        "other_budgets": _NUMBERS,
        "solver": _SOLVER,
        "points": [{**_ANSWER, "limit": _NUMBER}],
        "uniform": {EACH: {"cost": _NUMBER, "predicted_loss": _NUMBER}},
        "fingerprint": str,
        "num_options": int,
        "planned_solver": _SOLVER,
        "times": _TEXT_OR_NONE,
    },
    "time.json": {
        "fingerprint": str,
        "machine": {"processor": str, "device": str, "threads": int},
        "generated_tokens": int,
        "rounds": int,
        "phases": {EACH: _PHASE},
    },
    "cost.json": {
        **dict.fromkeys(("forwards", "flops", "shard_bytes", "peak_bytes"), _NUMBER),
        **dict.fromkeys(("seconds", "round_seconds", "reround_seconds"), _NUMBER_OR_NONE),
        **{f"{stage}_peak_bytes": _NUMBER_OR_NONE for stage in _STAGES_WITH_PEAKS},
        "engine": str,
        "peak_parts": _NUMBERS,
        "fingerprint": str,
    },
    "proof.json": {"lines": [_PROOF_LINE], "part_s": _NUMBERS, "detail": str, "fingerprint": str},
    "jobs.json": {"submissions": [{"jobs": {EACH: str}, "scheduler": str}]},
    "plan.json": {
        "fingerprint": str,
        "config": dict,
        "import_paths": [str],
        **dict.fromkeys(("tokens_per_sample", "num_options"), int),
        "fixed_bytes": _NUMBER,
        **dict.fromkeys(("active_fixed_bytes", "original_bits"), _NUMBER_OR_NONE),
        "facts": dict,
        **dict.fromkeys(("environment", "weights"), {EACH: str}),
        "original": {"settings": dict, "outputs": [_NUMBER], "spread": _NUMBER, "device": str},
        "balanced": dict,
        "groups": [_GROUP],
        "formats": [[str]],
        "units": [_UNIT],
    },
    "usage.json": {"jobs": [dict], **dict.fromkeys(("num_files", "num_directories", "bytes"), int)},
    "screen/": {"fingerprint": str, "options": [int], "cost": [_NUMBER], "asked": str},
    "times/": {
        "identity": dict,
        "combinations": {EACH: {EACH: [_NUMBER]}},
        "shared": [_NUMBER],
        "round": str,
    },
    "timings/": _TIMING,
    "timings.json": {EACH: _TIMING},
}
"""{name of an artefact, or of the folder of several: kind of its object}."""


def kind_of(path: Path) -> ArtefactKind:
    """The kind of the object in an artefact; anything where it is not known."""
    return KINDS.get(path.name) or KINDS.get(f"{path.parent.name}/", {})


def misfit(value: Any, kind: ArtefactKind, place: str = "its content") -> str | None:
    """In words what is of another kind than it should be, or None where nothing is.

    Example:
        >>> misfit({"costs": {"bops": 3.0}, "new": 1}, {"costs": {EACH: (int, float)}, "gap": float})
        >>> misfit({"costs": {"bops": "3"}}, {"costs": {EACH: (int, float)}})
        "bops is '3'"
    """
    if isinstance(kind, tuple):
        fits = any(misfit(value, each, place) is None for each in kind)
        return None if fits else f"{place} is {str(value)[:40]!r}"
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
        fits = fits and not (isinstance(value, float) and not math.isfinite(value))
        return None if fits else f"{place} is {str(value)[:40]!r}"
    return next((found for entry in entries if (found := misfit(*entry)) is not None), None)
