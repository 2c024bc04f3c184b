"""Names of artefacts' values, and sizes, in the words of people."""

from collections.abc import Mapping
from typing import Any

LABELS = {
    "kl": "KL divergence to the original",
    "ce": "cross-entropy",
    "mse": "mean squared output distance",
    "weight_bits": "bits per weight",
    "average_bits": "bits per weight with scales",
    "size_bytes": "checkpoint size in bytes",
    "bops": "bit operations",
    "macs": "16-bit multiply-accumulates",
    "active_bytes": "bytes of weights read for a token",
    "active_macs": "16-bit multiply-accumulates of a token",
    "kv_bytes_per_token": "bytes of keys and values kept for a token",
    "mac_time": "16-bit multiply-accumulates by width of both factors",
    "latency_s": "latency in seconds",
    "predicted_cross_terms": "part of it from interactions",
    "bound": "proven lower bound of it",
    "gap": "gap to the bound",
}


def label(name: str) -> str:
    """A metric, cost or loss in words.

    Example:
        >>> label("kl"), label("predicted_loss")
        ('KL divergence to the original', 'predicted loss')
    """
    return LABELS.get(name, name.replace("_", " "))


def show_bytes(value: float) -> str:
    """Bytes in decimal units, as file managers count them.

    Example:
        >>> show_bytes(800), show_bytes(1310720), show_bytes(5e9), show_bytes(2.5e13)
        ('800 B', '1.31 MB', '5 GB', '25 TB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 1000:
            return f"{value:.3g} {unit}" if value < 999.5 else f"{value:.0f} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def other_objective(solver: Mapping[str, Any], interacting: bool = True) -> str:
    """What a solver minimised, and its bound is one on, where that is not the predicted loss; else nothing.

    Args:
        solver: Its settings.
        interacting: Whether the predicted loss has interactions; without any, leaving them out changes nothing.

    Example:
        >>> other_objective({"drop_cross_terms": True, "robust_k": 0.0})
        'the loss without interactions'
        >>> other_objective({"drop_cross_terms": False, "robust_k": 1.5})
        'the mean loss and 1.5 standard deviations over batches'
    """
    dropped, deviations = solver.get("drop_cross_terms") and interacting, solver.get("robust_k", 0.0)
    if not (dropped or deviations):
        return ""
    words = f"the mean loss and {deviations:g} standard deviations over batches" if deviations else "the loss"
    return f"{words} without interactions" if dropped else words


def proven_gap(solution: Mapping[str, Any]) -> str:
    """The gap of a solution, and what it is one of where that is not the predicted loss."""
    if solution["gap"] is None:
        return "no bound"
    interacting = abs(solution["predicted_cross_terms"]) > 1e-9 * abs(solution["predicted_loss"])
    other = other_objective(solution["solver"], interacting)
    return f"proven gap {100 * solution['gap']:.3g} %" + (f" of {other}" if other else "")
