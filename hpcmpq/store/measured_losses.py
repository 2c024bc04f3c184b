"""Which measured losses of a run are of the weights that its solution has: rounded again, where that was kept."""

import logging
from collections.abc import Mapping
from typing import Any

from hpcmpq.plan import content_hash

_log = logging.getLogger(__name__)


def kept_codes(solution: Mapping[str, Any]) -> str | None:
    """The name of the codes that replace the options' under the solution's assignment, or None."""
    found = solution.get("reround") or {}
    name: str | None = found.get("codes")
    if name is None:
        return None
    if found["assignment"] != content_hash(dict(solution["assignment"])):
        _log.warning(
            "weights were rounded again for another assignment, and this one does not use them; run `hpcmpq reround` "
            "again"
        )
        return None
    return name


def is_evaluated_by(evaluation: Mapping[str, Any], solution: Mapping[str, Any]) -> bool:
    """Whether an evaluation measured the solution's weights for its plan; of older ones, as far as they say."""
    if evaluation.get("assignment") != solution["assignment"]:
        return False
    own = solution.get("fingerprint")
    if own is not None and evaluation.get("fingerprint", own) != own:
        return False
    return "codes" not in evaluation or evaluation["codes"] == kept_codes(solution)


def with_kept_loss(solution: dict[str, Any]) -> dict[str, Any]:
    """`solution.json` with the held-out loss of its weights where they were rounded again; else as it is.

    Refinement measures and expects what the options' codes do, so its losses are no others' than theirs.
    """
    if kept_codes(solution) is None:
        return solution
    kept = next(each for each in reversed(solution["reround"]["history"]) if each["kept"])
    losses = {
        "measured_loss": kept["held_out_loss"],
        "measured_loss_stderr": kept.get("held_out_loss_stderr"),
    }
    return {**without_losses(solution, "expected", "measured"), **losses}


def without_losses(solution: Mapping[str, Any], *kinds: str) -> dict[str, Any]:
    """`solution.json` without losses that other weights have: ``expected``, ``measured``, ``evaluated``.

    Example:
        >>> without_losses({"assignment": {}, "measured_loss": 0.2, "measured_loss_stderr": 0.01}, "measured")
        {'assignment': {}}
    """
    gone = {f"{kind}_{value}" for kind in kinds for value in ("loss", "loss_stderr", "interval")}
    return {name: value for name, value in solution.items() if name not in gone}
