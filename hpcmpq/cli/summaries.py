"""What the command line prints after each stage, in a sentence or a table."""

from collections.abc import Iterable
from typing import Any

from rich.table import Table
from rich.text import Text

from hpcmpq.batch.status import Status
from hpcmpq.calibrate.reduce import Reduction
from hpcmpq.cli.console import rows, say, show, table
from hpcmpq.plan import Plan
from hpcmpq.report.experts import balance_sentence, tokens_of_experts
from hpcmpq.wording import proven_gap, show_bytes


def planned(plan: Plan) -> None:
    """What will be measured."""
    space = plan.space
    numel = sum(group.numel for group in space.groups)
    say(
        f"{len(space.groups)} groups with {numel:,} weights, {space.num_options} options, "
        f"{plan.config.sensitivity.method} sensitivities of {plan.config.objective} "
        f"in {len(plan.units)} work units"
    )
    if plan.config.sensitivity.screen:
        say(
            "a first pass of calibrate will rule out options that these budgets cannot choose (sensitivity.screen); "
            "what follows is for all of them"
        )
    if around := plan.facts.get("calibration.special_tokens"):
        say(f"samples begin and end as the tokenizer has it: {around}")
    elif not plan.config.calibration.special_tokens:
        say("samples without the tokenizer's special tokens (calibration.special_tokens)")
    if plan.balanced:
        say(balance_sentence(plan.balanced))


def cost(values: dict[str, Any]) -> None:
    """What calibration will cost."""
    sizes = ((name.partition("_peak_bytes"), size) for name, size in values.items() if size is not None)
    beside = ", ".join(f"{show_bytes(size)} to {stage}" for (stage, peak, _), size in sizes if peak)
    times = {"": values["seconds"], " to round before": values.get("round_seconds")}
    took = " and ".join(f"{duration(s)}{what}" for what, s in times.items() if s is not None)
    say(
        f"calibration by {values['engine']}: {values['forwards']:.1f} forward passes of all samples, "
        f"{values['flops'] / 1e12:.3g} TFLOP, {show_bytes(values['shard_bytes'])} on disk, at most "
        f"{show_bytes(values['peak_bytes'])} of tensors in a worker{f' ({beside})' * bool(beside)}"
        f"{f', about {took} and start-up on one worker like this' * bool(took)}"
        + (f"; reround by one process about {duration(s)}" if (s := values.get("reround_seconds")) else "")
    )


def reduced(reduction: Reduction) -> None:
    """What was measured."""
    model = reduction.model
    original = f", {model.objective} of the original {model.loss0:.6g}" if model.loss0 else ""
    check = (
        f", asymmetry of measured second derivatives {reduction.asymmetry:.2g}" if reduction.asymmetry else ""
    )
    say(f"quadratic model of {model.objective} from {model.num_samples} samples{original}{check}")
    if model.tokens_LE is not None:
        enough, sentence = tokens_of_experts(model.tokens_LE)
        say(
            f"{sentence}{'' if enough else '; give more samples (calibration.num_samples)'}",
            None if enough else "yellow",
        )
    if model.num_samples == 1 and model.quad_PP.any():
        say(
            "One sample gives no standard errors, so its cross terms are taken as they are, noise and all. Give more "
            "(calibration.num_samples), or set solver.drop_cross_terms: true.",
            "yellow",
        )


def solved(solution: dict[str, Any]) -> None:
    """What was chosen."""
    budgets = ", ".join(
        f"{name} {solution['costs'][name]:.6g} of {limit:.6g}" for name, limit in solution["budgets"].items()
    )
    say(
        f"predicted loss {solution['predicted_loss']:.6g} at {budgets or 'no budget'}; {proven_gap(solution)} "
        f"({solution['termination']}, {solution['seconds']:.1f} s)"
    )
    if solution["predicted_loss"] < 0:
        say(
            "A loss below 0 cannot be: the samples are too few to tell small effects from noise. Give more "
            "(calibration.num_samples)"
            + (", or set solver.shrink: auto and solve again." if solution["solver"]["shrink"] == 0 else "."),
            "yellow",
        )


def proof(values: dict[str, Any]) -> None:
    """How the bound came about: every line of the whole problem, the last of every part, and what limits it."""
    lines = values["lines"]
    last_of = {line["node"]: line for line in lines if line["node"] > 1}
    rows(
        ("seconds", "node", "steps", "s/step", "dimension", "rank", "options", "gap"),
        [
            (
                f"{line['seconds']:.1f}",
                *(str(line[name]) for name in ("node", "steps")),
                f"{line['step_s']:.3g}",
                *(str(line[name]) for name in ("dimension", "rank", "options")),
                f"{100 * line['gap']:.4f} %",
            )
            for line in [*(line for line in lines if line["node"] == 1), *last_of.values()]
        ],
        title="proof",
    )
    parts = sorted(values["part_s"].items(), key=lambda part: -part[1])
    say("seconds: " + (", ".join(f"{name} {seconds:.1f}" for name, seconds in parts) or "not recorded"))
    if values["detail"]:
        say(values["detail"])


def timed(values: dict[str, Any]) -> None:
    """What was measured, and how well."""
    for phase, found in values["phases"].items():
        parts = [part for part in found["parts"] if part["groups"]]
        count = sum(len(own["combinations"]) + 1 for own in found["classes"].values())
        say(
            f"{phase}: {1e3 * found['original_s']:.4g} ms unquantized in {len(parts)} sub-graphs of "
            f"{len(found['classes'])} kinds; {count} combinations, {values['rounds']} rounds, median deviation "
            f"{100 * found['noise']:.2g} %"
        )
        for reason in found["no_kernel"]:
            say(f"no kernel for {reason}")


def gained(solution: dict[str, Any]) -> None:
    """What a largest gain came to."""
    found = solution["maximized"]
    bound = "no bound" if found["bound"] is None else f"at most {found['bound']:.6g}"
    say(
        f"{found['gain']} {found['saved']:.6g} {found['unit']} ({100 * found['saved_share']:.3g} % of the original, "
        f"{bound}) at a predicted loss of {solution['predicted_loss']:.6g} ({solution['termination']})"
    )


def refined(solution: dict[str, Any]) -> None:
    """What measured losses changed."""
    refinement = solution["refine"]
    accepted = [move for move in refinement["history"] if move["accepted"]]
    low, high = solution.get("expected_interval", (0, 0))  # none of weights that were rounded again
    interval = f" (90 % interval {low:.6g} to {high:.6g})"
    expected = f", expected {solution['expected_loss']:.6g}{interval}" if "expected_loss" in solution else ""
    say(
        f"{refinement['evaluations']} assignments measured, {len(accepted)} of {len(refinement['history'])} proposed "
        f"changes kept; on held-out samples loss {solution['measured_loss']:.6g}{expected}"
    )


def rerounded(solution: dict[str, Any]) -> None:
    """What rounding again came to."""
    last = solution["reround"]["history"][-1]
    verdict = "kept" if last["kept"] else "not kept, chance explains that"
    say(
        f"{last['num_weights']} weights rounded again by {last['method']}: on held-out samples loss "
        f"{last['held_out_loss']:.6g}, {last['held_out_loss_before']:.6g} before, difference {last['difference']:+.3g} "
        f"± {last['difference_stderr']:.2g}: {verdict}"
    )


def evaluated(values: dict[str, Any]) -> None:
    """Measured quality, side by side."""
    counted = "samples" if values["num_tokens"] == values["num_samples"] else "tokens"
    table = Table("model", title=f"{values['num_tokens']:,} {counted} never calibrated on")
    metrics = [
        n for n in ("loss", "kl", "mse", "perplexity", "accuracy", "top1_agreement", "kl_p99") if n in values
    ]
    for name in metrics:
        table.add_column(name, justify="right")
    for model in ("original", "quantized", "uniform"):
        label = f"uniform {values['uniform_format']}" if model == "uniform" else model
        table.add_row(label, *(f"{values[name][model]:.6g}" for name in metrics))
    show(table)
    _paired(values)
    if values.get("tasks"):
        show(task_table(values))


def _paired(values: dict[str, Any]) -> None:
    """The objective of the quantized and the uniform model, sample by sample."""
    found = values["paired"].get(values["objective"], {}).get("quantized - uniform")
    if found is None or found["interval"] is None:
        return
    low, high = found["interval"]
    verdict = "within noise" if low <= 0 <= high else "lower" if high < 0 else "higher"
    say(
        f"{values['objective']} of quantized - uniform {values['uniform_format']}, which is at least as large: "
        f"{found['difference']:.3g} (95 % interval {low:.3g} to {high:.3g}), {verdict}"
    )


def task_table(values: dict[str, Any]) -> Table:
    """First metric of each task, the quantized model's with its interval."""
    table = Table("task", "metric", title="tasks, 95 % intervals")
    for name in ("original", "quantized", "", f"uniform {values['uniform_format']}"):
        table.add_column(name, justify="right")
    for name, task in values["tasks"].items():
        metric = next(iter(task["paired"]))
        ends = task["intervals"][metric]["quantized"]
        interval = "" if ends is None else f"{ends[0]:.4g} to {ends[1]:.4g}"
        original, quantized, uniform = (
            f"{task[metric][m]:.4g}" for m in ("original", "quantized", "uniform")
        )
        table.add_row(name, metric, original, quantized, interval, uniform)
    return table


def status(state: Status) -> list[Table | Text]:
    """Stages, units, failures and jobs, to be shown once or drawn again and again."""
    parts: list[Table | Text] = []
    lines = []
    for stage in state.stages:
        words = "done" if stage.done else "not yet"
        if stage.name == "calibrate":
            words = f"{state.num_done} of {state.num_units} units"
        lines.append((stage.name, words, "" if stage.seconds is None else f"{stage.seconds:.1f}"))
    if lines:
        parts.append(table(("stage", "state", "seconds"), lines))
    if state.units_per_s is not None and state.busy_workers is not None:
        left = (
            "" if state.seconds_left is None else f", about {duration(state.seconds_left)} left at that rate"
        )
        memory = "" if state.memory_bytes is None else f", {show_bytes(state.memory_bytes)} of memory here"
        parts.append(
            Text(
                f"{3600 * state.units_per_s:,.0f} units per hour by {state.busy_workers:.1f} workers{left}{memory}"
            )
        )
    parts += [Text(f"failed: unit {unit}: {error}") for unit, error in state.failed.items()]
    for node, count in state.bad_nodes.items():
        noun = "unit" if count == 1 else "units"
        parts.append(Text(f"node {node}: {count} {noun} failed twice there and on no other node"))
    parts += [Text(f"damaged: {sentence}") for sentence in state.damaged]
    if state.expert_tokens:
        enough, sentence = tokens_of_experts(state.expert_tokens)
        parts.append(Text(f"experts: {sentence}", "" if enough else "yellow"))
    if state.jobs:
        parts.append(table(("job", "id", "state"), state.jobs))
    return parts


def examined(checks: Iterable[tuple[str, str, str, str]]) -> None:
    """A line for each (state, part, what was found, what to do)."""
    colours = {"ok": "green", "missing": "yellow", "wrong": "red"}
    for state, part, found, fix in checks:
        line = Text.assemble((f"{state:8}", colours[state]), f"{part:18}{found}")
        say(line.append(" -> ", "dim").append(fix) if fix else line)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, the two largest that are not zero."""
    hours, minutes = int(seconds // 3600), int(seconds // 60 % 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds % 60:.0f} s" if minutes else f"{seconds:.0f} s"
