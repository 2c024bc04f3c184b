"""What a reader should know before using the result: each finding as a check that passes, warns or is open.

Differences count as found when their 95 % interval over samples leaves out zero.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from hpcmpq.report.display import STYLE_OF_COST, cost_title, show, show_interval
from hpcmpq.report.experts import tokens_of_experts
from hpcmpq.report.findings import Z95, Findings
from hpcmpq.report.paired import Verdict, judge, paired_with_uniform
from hpcmpq.store.metric_names import higher_is_better
from hpcmpq.wording import label

CLOSED_GAP, TIGHT_GAP = 1e-5, 0.01
NOISY_SHARE = 0.1
"""Half a 95 % interval over the measured increase that is still a firm measurement."""

CLOSE_RATIO = 1.25
"""Measured over predicted increase, or its inverse, that still counts as agreement where no interval was fitted."""

ROUNDING = 1e-9


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        state: How it went; "open" where nothing was measured yet.
        title: What is asked, in a few words.
        sentence: The answer with its numbers; commands in backticks.
    """

    state: Verdict
    title: str
    sentence: str


def all_checks(findings: Findings) -> list[Check]:
    """Every check that the artefacts allow, most important first."""
    checks = [
        _budgets(findings),
        _against_uniform(findings),
        *_other_metrics(findings),
        _prediction(findings),
        *_interactions(findings),
    ]
    checks += [_optimality(findings), *_calibration(findings), *_experts(findings), *_evaluation(findings)]
    return checks


def _budgets(findings: Findings) -> Check:
    budgets, costs = findings.solution["budgets"], findings.solution["costs"]
    if not budgets:
        return Check("open", "Budgets", "No budget was set, so nothing limits the size of this assignment.")
    parts: list[str] = []
    state: Verdict = "passes"
    for name, limit in budgets.items():
        style = STYLE_OF_COST.get(name, "number")
        reached = costs.get(name)
        if reached is None or reached > limit + ROUNDING * abs(limit):
            state = "fails"
        parts.append(f"{cost_title(name)} {show(reached, style)} of {show(limit, style)}")
    return Check(state, "Budgets", f"{'; '.join(parts)}.")


def _against_uniform(findings: Findings) -> Check:
    title, evaluation = "Better than uniform", findings.evaluation
    if evaluation is None:
        return Check("open", title, findings.missing["evaluation"])
    name, found = evaluation["uniform_format"], findings.paired("quantized - uniform")
    cost = findings.main_cost
    style = STYLE_OF_COST.get(cost, "number")
    sizes = (
        f"{cost_title(cost)} {show(findings.solution['costs'][cost], style)} against "
        f"{show(evaluation['uniform_costs'].get(cost), style)}"
    )
    if findings.is_uniform and findings.formats[0].name == name:
        return Check(
            "take care",
            title,
            f"The assignment is uniform {name}: no mix of formats was predicted to be better.",
        )
    if found is None or found["interval"] is None:
        return Check(
            "open", title, "The evaluation holds no paired differences; " + _again(findings, "evaluate")
        )
    state, words = judge(found, higher_is_better=False)
    return Check(
        state,
        title,
        f"Measured {findings.objective_label} {words} uniform {name} ({sizes}): the difference is "
        f"{show(found['difference'], 'signed')}, 95 % interval {show_interval(found['interval'], 'signed')} over "
        f"{found['num_samples']} samples.",
    )


def _other_metrics(findings: Findings) -> Iterator[Check]:
    """Every other metric and task against the uniform model: only those where it does worse are named."""
    evaluation = findings.evaluation
    if evaluation is None or "paired" not in evaluation:
        return
    worse, count = [], 0
    for where, metric, found in paired_with_uniform(evaluation):
        is_above = where is None and metric in (findings.objective, "loss")
        if is_above or found["interval"] is None:
            continue
        count += 1
        state, _ = judge(found, higher_is_better(metric))
        if state == "fails":
            name = label(metric) if where is None else f"{metric} on {where}"
            worse.append(
                f"{name} by {show(abs(found['difference']), 'loss')} (95 % interval of the difference "
                f"{show_interval(found['interval'], 'signed')})"
            )
    uniform = f"uniform {evaluation['uniform_format']}"
    if worse:
        yield Check(
            "take care",
            "Other metrics",
            f"Worse than {uniform} in {'; '.join(worse)}. The solver minimised {findings.objective_label} alone.",
        )
    elif count:
        metrics = "metric is" if count == 1 else f"{count} metrics are"
        yield Check(
            "passes", "Other metrics", f"The other {metrics} not measurably worse than with {uniform}."
        )


def _prediction(findings: Findings) -> Check:
    title = "Prediction holds"
    measured, original = findings.measured("quantized"), findings.measured("original")
    if measured is None or original is None or findings.evaluation is None:
        return Check("open", title, findings.missing["evaluation"])
    expected = findings.solution.get("expected_interval")
    ends = findings.interval("quantized") or [measured, measured]
    if expected is not None:
        agrees = ends[0] <= expected[1] and expected[0] <= ends[1]
        verb = "agrees with" if agrees else "lies outside"
        return Check(
            "passes" if agrees else "take care",
            title,
            f"Measured {show(measured, 'loss')} (95 % interval {show_interval(ends)}) {verb} what refinement "
            f"expected: {show_interval(expected)} with 90 % coverage.",
        )
    rise = measured - original
    if rise <= 0 or findings.increase <= 0:
        return Check(
            "take care", title, "The loss did not rise, so predicted and measured rise cannot be compared."
        )
    ratio = rise / findings.increase
    close = 1 / CLOSE_RATIO <= ratio <= CLOSE_RATIO
    return Check(
        "passes" if close else "take care",
        title,
        f"The measured increase is {ratio:.2f} times the predicted one; {_again(findings, 'refine')} to fit an "
        "interval.",
    )


def _interactions(findings: Findings) -> Iterator[Check]:
    """The additivity gate: what cross terms are of the prediction, and what they won by measured loss."""
    found = findings.solution.get("interactions")
    if found is None:
        return
    fall, spread = found["lowered_by"], Z95 * found["lowered_by_stderr"]
    verb = "lowered" if fall >= 0 else "raised"
    sentence = (
        f"Interactions changed {found['groups_changed']} of {found['num_groups']} groups and {verb} the measured "
        f"loss by {show(abs(fall), 'loss')} ± {show(spread, 'loss')} (95 %, held-out samples)"
    )
    if found["share"] is not None:
        error = found["share_stderr"]
        between = "" if error is None else f" ± {show(Z95 * error, 'share')}"
        sentence += f"; they are {show(found['share'], 'share')}{between} of the predicted increase"
    portfolio = findings.solution.get("portfolio", [])
    chosen = next((candidate["name"] for candidate in portfolio if candidate["chosen"]), None)
    if chosen is not None:
        sentence += f". Of {len(portfolio)} assignments measured beside one another, that called {chosen!r} was lowest"
    yield Check("take care" if fall < -spread else "passes", "Interactions pay", f"{sentence}.")


def _optimality(findings: Findings) -> Check:
    title, gap = "Nothing better missed", findings.solution["gap"]
    if "maximized" in findings.solution:
        return Check("open", title, "The solver looked for the largest gain; its bound is under Solver.")
    if gap is None:
        return Check("open", title, "The solver proved no bound.")
    solved, other = findings.solved_gap, findings.other_objective
    loss = other or "predicted loss"
    if solved is not None:
        return Check(
            "passes" if solved <= TIGHT_GAP else "take care",
            title,
            f"Refinement moved on from the solver's answer by measured loss. That answer was within "
            f"{show(solved, 'share')} of the least possible prediction, this one is within {show(gap, 'share')}.",
        )
    if gap <= CLOSED_GAP:
        return Check(
            "passes",
            title,
            f"The solver proved that no assignment within the budgets has {'less of ' if other else 'a lower '}{loss}."
            + (" That is what it minimised; the predicted loss itself has no bound." if other else ""),
        )
    state: Verdict = "passes" if gap <= TIGHT_GAP else "take care"
    return Check(
        state,
        title,
        f"No assignment within the budgets has {'' if other else 'a '}{loss} more than {show(gap, 'share')} lower"
        + (
            ", as the solver proved."
            if state == "passes"
            else "; a longer solver.time_limit_s may close the gap."
        ),
    )


def _calibration(findings: Findings) -> Iterator[Check]:
    """How far the predicted loss depends on which samples calibrated."""
    stderr = findings.predicted_stderr
    if stderr is None or findings.increase <= 0:
        return
    share = Z95 * stderr / findings.increase
    sentence = (
        f"The predicted increase varies by ± {show(share, 'share')} (95 %) over "
        f"{len(findings.quadratic.batch_linear_BP)} disjoint batches of the {findings.quadratic.num_samples} samples"
    )
    yield _enough("calibration", sentence, share <= 2 * NOISY_SHARE)


def _experts(findings: Findings) -> Iterator[Check]:
    """Whether calibration showed every expert of a mixture enough tokens."""
    if findings.quadratic.tokens_LE is not None:
        enough, sentence = tokens_of_experts(findings.quadratic.tokens_LE)
        yield _enough("calibration", sentence, enough)


def _evaluation(findings: Findings) -> Iterator[Check]:
    """How well the measured increase is known."""
    found = findings.paired("quantized - original")
    if found is None or found["interval"] is None or found["difference"] <= 0:
        return
    share = 0.5 * (found["interval"][1] - found["interval"][0]) / found["difference"]
    sentence = (
        f"The measured increase of {findings.objective_short} over the original is known to ± "
        f"{show(share, 'share')} (95 %) from {found['num_samples']} held-out samples"
    )
    yield _enough("evaluation", sentence, share <= NOISY_SHARE)


def _enough(section: str, sentence: str, firm: bool) -> Check:
    """Whether the samples that a section of the config asks for make a number firm."""
    advice = "." if firm else f"; a larger {section}.num_samples would make it firmer."
    return Check("passes" if firm else "take care", f"Enough {section}", sentence + advice)


def _again(findings: Findings, command: str) -> str:
    return f"run `hpcmpq {command} {findings.run.path}`"
