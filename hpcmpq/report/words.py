"""Findings as sentences."""

from hpcmpq.report.curves import uniform_curve
from hpcmpq.report.display import STYLE_OF_COST, show, show_cost, show_interval
from hpcmpq.report.findings import Z95, Findings
from hpcmpq.wording import label

NEGLIGIBLE = 1e-4
"""Share of another loss below which a comparison says nothing."""

TERMINATIONS = {
    "optimal": "The solver proved that no assignment within the budgets has a lower predicted loss.",
    "time_limit": "The solver ran out of time; a longer solver.time_limit_s may lower the loss or the gap.",
    "feasible": "The solver tried all it knows; what is left between objective and bound is not proven.",
}


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
    theirs = evaluation["uniform_costs"].get(cost)  # none of what was timed since, say
    uniform_size = "" if theirs is None else f" at {show_cost(cost, theirs)}"
    counted = "tokens" if "perplexity" in evaluation else "samples"
    comparison = f"{_compare(quantized - original, uniform - original)} that of uniform {name}"
    if findings.is_uniform and findings.formats[0].name == name:
        comparison = f"no mix of formats was found to be better than uniform {name}"
    elif original != 0:
        comparison = f"its increase over the original is {comparison}"
    return (
        f"At {size}, the measured {metric} is {show(quantized, 'loss')} on {evaluation['num_tokens']:,} "
        f"held-out {counted}: {comparison} ({show(uniform, 'loss')}{uniform_size}){_resolved(findings)}."
    )


def _resolved(findings: Findings) -> str:
    """Whether the samples can tell the two models apart, where that was measured."""
    found = findings.paired("quantized - uniform")
    if found is None or found["interval"] is None or findings.is_uniform:
        return ""
    low, high = found["interval"]
    return f", a difference {'within' if low <= 0 <= high else 'beyond'} the noise of {found['num_samples']} samples"


def summary_numbers(findings: Findings) -> list[tuple[str, str, str]]:
    """(title, number, note) of the few numbers that matter most."""
    solution, cost, evaluation = findings.solution, findings.main_cost, findings.evaluation
    limit = solution["budgets"].get(cost)
    style = STYLE_OF_COST.get(cost, "seconds" if cost.endswith("_s") else "number")
    note = "no budget was set" if limit is None else f"of {show(limit, style)} allowed"
    title = "Checkpoint size" if cost == "size_bytes" else label(cost).capitalize()
    numbers = [(title, show(solution["costs"][cost], style), note)]
    if cost != "size_bytes":
        numbers.append(("Checkpoint size", show(solution["costs"]["size_bytes"], "bytes"), "with scales"))
    stderr = findings.predicted_stderr
    note = (
        "from the quadratic model"
        if stderr is None
        else f"± {show(Z95 * stderr, 'loss')} over calibration batches"
    )
    numbers.append((f"Predicted {findings.objective_short}", show(solution["predicted_loss"], "loss"), note))
    measured = show(findings.measured("quantized"), "loss")
    numbers.append((f"Measured {findings.objective_short}", measured, _measured_note(findings)))
    for name in ("perplexity", "accuracy"):
        if evaluation is not None and name in evaluation:
            style = "share" if name == "accuracy" else "loss"
            values = evaluation[name]
            numbers.append(
                (
                    name.capitalize(),
                    show(values["quantized"], style),
                    f"original {show(values['original'], style)}",
                )
            )
    gap, other = solution["gap"], findings.other_objective
    least = f"the least of {other}" if other else "the best possible prediction"
    note = "no bound" if gap is None else f"to {least}"
    note += "" if findings.solved_gap is None else ", after refinement by measured loss"
    numbers.append(("Proven gap", show(gap, "share"), note))
    return numbers


def agreement(findings: Findings) -> list[str]:
    """How prediction and measurement agree."""
    solution, sentences = findings.solution, []
    low_high = solution.get("expected_interval")
    if low_high is not None:
        points = len(solution.get("refine", {}).get("link", {}).get("predicted", ()))
        sentences.append(
            f"{points or 'Several'} assignments around this one were measured on held-out samples, and a curve was "
            f"fitted from predicted to measured increase. It expects {show(solution['expected_loss'], 'loss')}, "
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
    ends = findings.interval("quantized")
    between = "" if ends is None else f", 95 % interval {show_interval(ends)}"
    sentences.append(f"Evaluation measured {show(measured, 'loss')}{between}, on samples of its own.")
    rise = measured - original
    if rise > 0 and findings.increase > 0:
        sentences.append(
            f"Predicted over measured increase is {findings.increase / rise:.2f}. Predictions come from "
            "calibration samples and measurements from samples that calibration never saw."
        )
    return sentences


def ending(findings: Findings) -> str:
    """Why the solver stopped, and what that means."""
    found = findings.solution.get("maximized")
    if found is None:
        text = TERMINATIONS.get(findings.solution["termination"], findings.solution["termination"])
        solved = findings.solution.get("refine", {}).get("solved_assignment", findings.solution["assignment"])
        changed = solved != findings.solution["assignment"]
        return f"{text} Refinement then chose this one by measured loss." if changed else text
    best = (
        "" if found["bound"] is None else f"; no assignment saves more than {show(found['bound'], 'number')}"
    )
    return (
        f"The solver looked for the largest {found['gain'].replace('_', ' ')} within a limit on the loss: "
        f"{label(found['cost'])} falls from {show(found['original'], 'number')} to {show(found['reached'], 'number')}, "
        f"{show(found['saved_share'], 'share')} less{best}."
    )


def solver_facts(findings: Findings) -> list[tuple[str, str]]:
    """(term, value) on the solver."""
    solution, other = findings.solution, findings.other_objective
    detail = f": {solution['detail']}" if solution["detail"] else ""
    facts = [
        ("Solver", str(solution["solver"]["name"])),
        ("Ended", solution["termination"].replace("_", " ") + detail),
        ("Objective", show(solution["objective"], "loss")),
        ("Lower bound", show(solution["bound"], "loss") + (f", on {other}" if other else "")),
        ("Gap", show(solution["gap"], "share")),
        ("Time", show(float(solution["seconds"]), "seconds")),
    ]
    refine = solution.get("refine")
    if refine is not None and "evaluations" in refine:
        kept = refine.get("solved_assignment") == solution["assignment"]
        facts.append(
            (
                "Refinement",
                f"{refine['evaluations']} assignments measured; {'kept the solution' if kept else 'changed it'}",
            )
        )
    if "maximized" in solution:
        found = solution["maximized"]
        facts.append((f"Limit on {found['limit_on'].replace('_', ' ')}", show(found["limit"], "loss")))
    return facts


def closest_uniform(findings: Findings) -> str | None:
    """How the prediction compares with the uniform assignment of at least this size."""
    reached = findings.solution["costs"].get(findings.size_cost)
    if reached is None:
        return None
    larger = [point for point in uniform_curve(findings) if point[1] >= reached * (1 - 1e-9)]
    if not larger:
        return None
    name, _, predicted = larger[0]
    ours, theirs = findings.increase, predicted - findings.quadratic.loss0
    if theirs < NEGLIGIBLE * ours:
        return None  # a format that is the original's own
    return f"The predicted increase is {_compare(ours, theirs)} that of uniform {name}."


def _compare(ours: float, theirs: float) -> str:
    if theirs <= 0:
        return "not comparable in per cent with"
    if ours / theirs > 2:
        return f"{ours / theirs:.3g} times"
    change = ours / theirs - 1
    if abs(change) < 0.005:
        return "within half a per cent of"
    return f"{show(abs(change), 'share')} {'below' if change < 0 else 'above'}"


def _measured_note(findings: Findings) -> str:
    if findings.evaluation is None:
        return "not measured yet"
    ends = findings.interval("quantized")
    return "on held-out samples" if ends is None else f"{show_interval(ends)} (95 %), held-out samples"
