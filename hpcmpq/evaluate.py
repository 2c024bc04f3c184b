"""The evaluate stage: quality of original, quantized and uniform models on samples never calibrated on."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from hpcmpq.config import parse_config
from hpcmpq.errors import UserError
from hpcmpq.measure import Comparison, Measured, metric_names
from hpcmpq.models.calibration import load_splits
from hpcmpq.models.load import load_model
from hpcmpq.store import RunDir, read_json, read_plan, write_json
from hpcmpq.variants import Variants

MODELS = ("original", "quantized", "uniform")


def evaluate(run: RunDir) -> dict[str, Any]:
    """Measure the solved assignment beside the original and a uniform one; write `evaluation.json`.

    Returns:
        Its values: `loss` (task loss where there are labels, else the objective), `kl` or `mse`, and
        `perplexity` (sequences) or `accuracy` (one label a sample), each for original, quantized and uniform.

    Raises:
        UserError: If nothing is solved yet, or no sample is left to evaluate on.
    """
    plan = read_plan(run)
    config = parse_config(plan.config, "plan.json")
    solution = read_json(run.solution_path, f"hpcmpq solve {run.path}")
    model = load_model(config.model, import_paths=plan.import_paths)
    samples = load_splits(config, plan.import_paths).evaluation
    if not len(samples):
        raise UserError(
            "no evaluation sample is left: lower calibration.num_samples or held_out, or set evaluation.data"
        )
    samples = samples.to(next(model.parameters()).device)
    uniform_format = baseline_format(solution)
    uniform = dict.fromkeys(solution["assignment"], uniform_format)
    start = time.monotonic()
    comparison = Comparison(
        Variants(model, plan.space, config.quantizer),
        samples,
        metric_names(config.objective, samples.labelled),
        config.calibration.samples_per_pass,
    )
    measured = comparison.measure([{}, solution["assignment"], uniform])
    values = {
        "format_version": 1,
        **summarise(dict(zip(MODELS, measured, strict=True))),
        "uniform_format": uniform_format,
        "uniform_costs": solution["uniform"][uniform_format]["costs"],
        "num_tokens": int(measured[0].labels_N.sum()),
        "num_samples": len(samples),
        "objective": config.objective,
        "engine": "torch",
        "world_size": 1,
        "seconds": time.monotonic() - start,
        "assignment": solution["assignment"],
        "fingerprint": plan.fingerprint,
    }
    write_json(run.evaluation_path, values)
    solution["measured_loss"] = values[config.objective]["quantized"]
    write_json(run.solution_path, solution)
    return values


def baseline_format(solution: Mapping[str, Any]) -> str:
    """The smallest uniform format at least as large as the solution, or the largest there is.

    Size is the solution's first budgeted cost, or its payload bits.
    """
    cost = next(iter(solution["budgets"]), "weight_bits")
    reached = solution["costs"][cost]
    sizes = {name: uniform["costs"][cost] for name, uniform in solution["uniform"].items()}
    if not sizes:
        raise UserError("the groups share no format, so there is no uniform assignment to compare with")
    at_least = [name for name, size in sizes.items() if size >= reached * (1 - 1e-9)]
    return min(at_least, key=sizes.__getitem__) if at_least else max(sizes, key=sizes.__getitem__)


def summarise(measured: Mapping[str, Measured]) -> dict[str, dict[str, float]]:
    """{metric: {model: value}} over all samples, and `stderr` of each over samples."""
    names = list(measured["original"].values)
    table = {name: {key: float(m.values[name].mean()) for key, m in measured.items()} for name in names}
    stderr = {name: {key: _stderr(m.values[name]) for key, m in measured.items()} for name in names}
    loss = "ce" if "ce" in table else names[0]
    summary = {"loss": table[loss], **table}
    if loss == "ce":
        tokens_per_sample = measured["original"].labels_N.mean()
        if tokens_per_sample > 1:
            summary["perplexity"] = {key: float(np.exp(min(v, 700.0))) for key, v in table["ce"].items()}
        else:
            summary["accuracy"] = {
                key: float(m.correct_N.sum() / max(1, m.labels_N.sum())) for key, m in measured.items()
            }
    return {**summary, **{f"{name}_stderr": values for name, values in stderr.items()}}


def _stderr(value_N: np.ndarray) -> float:
    return float(value_N.std(ddof=1) / np.sqrt(len(value_N))) if len(value_N) > 1 else 0.0
