"""Findings as sentences and as numbers with units."""

from typing import Any

from hpcmpq.report.findings import Findings, kind, label
from hpcmpq.report.tables import pair_table, uniform_curve
from hpcmpq.space import Group

Z95 = 1.96
"""Standard errors on either side of a mean that cover 95 % of a normal distribution."""

TERMINATIONS = {
    "optimal": "The solver proved that no assignment within the budgets has a lower predicted loss.",
    "time_limit": "The solver ran out of time; a longer solver.time_limit_s may lower the loss or the gap.",
    "node_limit": "The solver tried all it knows; what is left between objective and bound is not proven.",
}


def show(value: Any, style: str) -> str:
    """A value as people read it; an em dash for one that was not measured.

    Example:
        >>> show(1310720, "bytes"), show(0.0335127, "loss"), show(0.125, "share"), show(None, "loss")
        ('1.31 MB', '0.03351', '12.5 %', '—')
    """
    if value is None:
        return "—"
    if style == "text" or isinstance(value, str):
        return str(value)
    if style == "count":
        return f"{value:,}"
    if style == "bytes":
        return _bytes(float(value))
    if style == "bits":
        return f"{value:.3f}".rstrip("0").rstrip(".")
    if style == "seconds":
        return f"{value:.1f} s" if value < 120 else f"{value / 60:.1f} min"
    if style == "share":
        return f"{100 * value:.3g} %"
    if style == "ratio":
        return f"{value:.2f} ×"
    if style == "number":
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    return f"{value:.4g}"


def show_cost(name: str, value: float) -> str:
    """A cost with its unit.

    Example:
        >>> show_cost("weight_bits", 2.75), show_cost("size_bytes", 5.1e9)
        ('2.75 bits per weight', 'a checkpoint of 5.1 GB')
    """
    if name == "size_bytes":
        return f"a checkpoint of {_bytes(value)}"
    if name in ("weight_bits", "average_bits"):
        return f"{show(value, 'bits')} {label(name)}"
    return f"{show(value, 'number')} {label(name)}"


def headline(findings: Findings) -> str:
    """What the run found, in one or two sentences."""
    cost = findings.main_cost
    size = show_cost(cost, findings.solution["costs"][cost])
    metric = findings.objective_label
    quantized, evaluation = findings.measured("quantized"), findings.evaluation
    if quantized is None or evaluation is None:
        return (
            f"At {size}, the predicted {metric} is {show(findings.solution['predicted_loss'], 'loss')}. "
            "It has not been measured yet."
        )
    uniform, name = findings.measured("uniform"), evaluation["uniform_format"]
    assert uniform is not None
    original = findings.measured("original") or 0.0
    uniform_size = show_cost(cost, evaluation["uniform_costs"][cost])
    counted = "tokens" if "perplexity" in evaluation else "samples"
    comparison = f"{_compare(quantized - original, uniform - original)} uniform {name}"
    if all(chosen.name == name for chosen in findings.formats):
        comparison = f"no mix of formats was found to be better than uniform {name}"
    elif original != 0:
        comparison = f"its increase over the original is {comparison}"
    return (
        f"At {size}, the measured {metric} is {show(quantized, 'loss')} on {evaluation['num_tokens']:,} "
        f"held-out {counted}: {comparison} ({show(uniform, 'loss')} at {uniform_size})."
    )


def summary_numbers(findings: Findings) -> list[tuple[str, str, str]]:
    """(title, number, note) of the few numbers that matter most."""
    solution, cost = findings.solution, findings.main_cost
    limit = solution["budgets"].get(cost)
    style = {"size_bytes": "bytes", "weight_bits": "bits", "average_bits": "bits"}.get(cost, "number")
    note = "no budget was set" if limit is None else f"of {show(limit, style)} allowed"
    title = "Checkpoint size" if cost == "size_bytes" else label(cost).capitalize()
    numbers = [(title, show(solution["costs"][cost], style), note)]
    if cost != "size_bytes":
        numbers.append(("Checkpoint size", show(solution["costs"]["size_bytes"], "bytes"), "with scales"))
    predicted = solution["predicted_loss"]
    numbers.append(
        (f"Predicted {findings.objective_short}", show(predicted, "loss"), "from the quadratic model")
    )
    numbers.append(
        (
            f"Measured {findings.objective_short}",
            show(findings.measured("quantized"), "loss"),
            _measured_note(findings),
        )
    )
    gap = solution["gap"]
    numbers.append(
        ("Proven gap", show(gap, "share"), "no bound" if gap is None else "to the best possible prediction")
    )
    return numbers


def agreement(findings: Findings) -> list[str]:
    """How prediction and measurement agree."""
    solution, sentences = findings.solution, []
    low_high = solution.get("expected_interval")
    if low_high is not None:
        sentences.append(
            f"The link fitted on measured assignments expects {show(solution['expected_loss'], 'loss')}, "
            f"between {show(low_high[0], 'loss')} and {show(low_high[1], 'loss')} with 90 % coverage."
        )
    else:
        sentences.append(
            f"No interval was fitted for the prediction; `hpcmpq refine {findings.run.path}` measures whole "
            "assignments and fits one."
        )
    measured, original = findings.measured("quantized"), findings.measured("original")
    if measured is None or original is None:
        return [*sentences, findings.missing["evaluation"]]
    rise = measured - original
    if rise > 0 and findings.increase > 0:
        sentences.append(
            f"Predicted over measured increase is {findings.increase / rise:.2f}. Predictions come from "
            "calibration samples and measurements from samples that calibration never saw."
        )
    return sentences


def pairs(findings: Findings) -> list[str]:
    """The strongest interactions, one sentence each."""
    names = {group.name: spoken_name(group) for group in findings.plan.space.groups}
    unique = len(set(names.values())) == len(names)
    sentences = []
    for first, first_format, second, second_format, loss, share in pair_table(findings).rows[:5]:
        shown = (names[first], names[second]) if unique else (first, second)
        effect = "add" if loss > 0 else "take off"
        beside = "" if share is None else f", {show(abs(share), 'share')} of the predicted increase"
        sentences.append(
            f"{shown[0]} in {first_format} and {shown[1]} in {second_format} together {effect} "
            f"{show(abs(loss), 'loss')} beyond what each does alone{beside}."
        )
    return sentences


def spoken_name(group: Group) -> str:
    """A group within a sentence.

    Example:
        >>> spoken_name(Group("model.layers.12.mlp.up_proj", (), 12))
        'up_proj of block 12'
    """
    last = kind(group).rsplit(".", 1)[-1]
    return last if group.block is None else f"{last} of block {group.block}"


def cross_terms(findings: Findings) -> str:
    """What all interactions together contribute."""
    total = findings.solution["predicted_cross_terms"]
    if findings.solution["solver"]["drop_cross_terms"]:
        return "This solution was found with interactions left out (solver.drop_cross_terms)."
    if findings.increase <= 0:
        return f"All interactions together change the predicted loss by {show(total, 'loss')}."
    return (
        f"All interactions together {'add' if total >= 0 else 'take off'} {show(abs(total), 'loss')}, "
        f"{show(abs(total) / findings.increase, 'share')} of the predicted increase over the original."
    )


def closest_uniform(findings: Findings) -> str | None:
    """How the prediction compares with the uniform assignment of at least this size."""
    reached = findings.solution["costs"][findings.size_cost]
    larger = [point for point in uniform_curve(findings) if point[1] >= reached * (1 - 1e-9)]
    if not larger:
        return None
    name, _, predicted = larger[0]
    ours, theirs = findings.increase, predicted - findings.quadratic.loss0
    return f"The predicted increase is {_compare(ours, theirs)} that of uniform {name}."


def _compare(ours: float, theirs: float) -> str:
    if theirs <= 0:
        return "not comparable in per cent with"
    change = ours / theirs - 1
    if abs(change) < 0.005:
        return "within half a per cent of"
    return f"{show(abs(change), 'share')} {'below' if change < 0 else 'above'}"


def _measured_note(findings: Findings) -> str:
    stderr = findings.stderr("quantized")
    if findings.evaluation is None:
        return "not measured yet"
    return (
        "on held-out samples"
        if stderr is None
        else f"± {show(Z95 * stderr, 'loss')} (95 %), held-out samples"
    )


def _bytes(value: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 1000:
            return f"{value:.3g} {unit}" if value < 999.5 else f"{value:.0f} {unit}"
        value /= 1000
    return f"{value:.3g} TB"
