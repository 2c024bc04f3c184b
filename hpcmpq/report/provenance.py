"""Where the numbers come from and how to get them again: model, data, settings, files, environment, commands."""

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from hpcmpq.report.experts import balance_sentence
from hpcmpq.report.findings import Findings
from hpcmpq.report.tables import Column, Table, share_of
from hpcmpq.store.attempts import read_processes_of
from hpcmpq.store.of_solution import is_exported_to
from hpcmpq.store.original import checked_source
from hpcmpq.wording import show_bytes

WEIGHTS = (".safetensors", ".gguf", ".onnx", ".data", ".bin")
"""Ends of the names of files that hold weights."""

Facts = list[tuple[str, str]]


def given_model(findings: Findings) -> dict[str, Any]:
    """What RUN/original was made of: `path`, `form`, perhaps `name`; empty where the plan's model is what was given."""
    path, kept = findings.plan.config.model.path, findings.run.original_path
    if path is None or Path(path).name != kept.name:
        return {}
    return checked_source(findings.run)


def model_name(findings: Findings) -> str:
    """The last part of the path that was given, the name of a model in memory, or the model's factory."""
    model, given = findings.plan.config.model, given_model(findings)
    return str(model.factory or given.get("name") or Path(str(given.get("path") or model.path)).name)


def _model(findings: Findings) -> str:
    model, given = findings.plan.config.model, given_model(findings)
    if given.get("path"):
        return f"{given['path']} ({given['form']}), dequantized to {model.dtype}"
    return f"{model.factory or given.get('name') or model.path}, {model.dtype}"


def measured_facts(findings: Findings) -> Facts:
    """(term, value) on what was measured and how."""
    plan, quadratic, evaluation = findings.plan, findings.quadratic, findings.evaluation
    calibration, quantizer = plan.config.calibration, plan.config.quantizer
    numel = sum(group.numel for group in plan.space.groups)
    group_size = quantizer.group_size
    facts = [
        ("Model", _model(findings)),
        (
            "Searched",
            f"{numel:,} weights in {len(plan.space.groups)} groups, {plan.space.num_options} options; "
            f"{show_bytes(plan.fixed_bytes)} stay as they are",
        ),
        (
            "Rounding",
            f"{quantizer.rounding}, {'symmetric' if quantizer.symmetric else 'asymmetric'}, range by "
            f"{quantizer.range}, one scale per {f'{group_size} weights' if group_size else 'output channel'}"
            + (f"; {balance_sentence(plan.balanced)}" if plan.balanced else ""),
        ),
        ("Sensitivity", f"{quadratic.method} of {findings.objective_label}"),
        (
            "Calibration data",
            f"{calibration.data}: {quadratic.num_samples} samples"
            + (f" of {plan.tokens_per_sample} tokens" if plan.tokens_per_sample else "")
            + (f", {calibration.held_out} held out for refinement" if calibration.held_out else ""),
        ),
    ]
    if evaluation is not None:
        data = plan.config.evaluation.data or "held-out part of the calibration data"
        facts.append(("Evaluation data", f"{data}: {evaluation['num_samples']} samples never calibrated on"))
    for term, name in (("Weights", "model.weights"), ("Samples", "calibration.samples")):
        if name in plan.facts:
            facts.append((f"{term}, SHA-256", f"{plan.facts[name][:16]}…"))
    return [*facts, ("Run fingerprint", f"{plan.fingerprint[:16]}…")]


def environment_facts(findings: Findings) -> Facts:
    """(term, value) of versions and machines."""
    facts = [(name, value[:12]) for name, value in findings.plan.environment.items()]
    hosts = sorted({process.host for process in read_processes_of(findings.plan, findings.run)})
    if hosts:
        shown = ", ".join(hosts[:4]) + (f" and {len(hosts) - 4} more" if len(hosts) > 4 else "")
        facts.append(("calibrated on", shown))
    if findings.plan.times is not None:
        facts.append(("timed on", timing_machine(findings.plan.times)))
    return facts


def timing_machine(times: Mapping[str, Any]) -> str:
    """The machine that sub-graphs were timed on."""
    machine, count = times["machine"], times["machine"]["threads"]
    return f"{machine['processor']} ({machine['device']}, {count} thread{'' if count == 1 else 's'})"


def files_table(findings: Findings) -> Table | None:
    """The exported models with the bytes of their weight files; None if nothing was exported."""
    predicted = float(findings.solution["costs"]["size_bytes"])
    rows = []
    for folder in (findings.run.checkpoint_path, *sorted(findings.run.file("exports").glob("*"))):
        if not folder.is_dir():
            continue
        files = [path for path in folder.iterdir() if path.suffix in WEIGHTS and path.is_file()]
        num_bytes = sum(path.stat().st_size for path in files) or None
        packed = folder != findings.run.checkpoint_path and num_bytes is not None
        if folder == findings.run.checkpoint_path:
            content = "rounded weights in the model's own dtype, for any reader of the original"
        else:
            content = "packed weights for its engine" if packed else "the assignment as the tool takes it"
        current = is_exported_to(folder, findings.solution)
        if not current:
            content += "; of another solution than this one"
        share = share_of(float(num_bytes or 0), predicted) if packed and current else None
        rows.append((folder.relative_to(findings.run.path).as_posix(), content, num_bytes, share))
    if not rows:
        return None
    columns = (
        Column("folder", "Folder"),
        Column("content", "Content", "prose"),
        Column("bytes", "Weight files", "bytes"),
        Column("of_size_bytes", "Of the predicted size", "share"),
    )
    return Table("files", "Models that were written, in the run directory.", columns, tuple(rows))


def commands(findings: Findings) -> list[str]:
    """The commands that give this result again, from the config of the report."""
    run = shlex.quote(findings.run.path.name or "run")
    solution, timed = findings.solution, findings.plan.times is not None
    lines = [f"hpcmpq run config.yaml --run-dir {run}"]
    if timed or not _is_of_whole_run(findings):
        lines = [
            f"hpcmpq plan config.yaml --run-dir {run}",
            *(f"hpcmpq {stage} {run}" for stage in ("calibrate", "reduce", *(("time",) if timed else ()))),
            _maximize(solution, run) if "maximized" in solution else f"hpcmpq solve {run}",
            *([f"hpcmpq refine {run}"] if "refine" in solution else []),
            *(
                f"hpcmpq reround {run} --method {each['method']} --strength {each['strength']:.12g}"
                for each in solution.get("reround", {}).get("history", ())
            ),
            *(f"hpcmpq {stage} {run}" for stage in ("export", "evaluate")),
        ]
    if findings.frontier is not None:
        lines.append(_frontier(findings.frontier, run, findings.plan.config.solver.name))
    return [*lines, f"hpcmpq report {run}"]


def config_text(findings: Findings) -> str:
    """The resolved config with the budgets and solver settings of the solution, as YAML."""
    gained = findings.solution.get("maximized", {}).get("cost")
    config: dict[str, Any] = {
        **dataclasses.asdict(findings.plan.config),
        "budgets": {name: limit for name, limit in findings.solution["budgets"].items() if name != gained},
        "solver": findings.solution["solver"],
    }
    if path := given_model(findings).get("path"):
        config["model"] = {**config["model"], "path": path}
    return yaml.safe_dump(_plain(config), sort_keys=False, width=100)


def _is_of_whole_run(findings: Findings) -> bool:
    """Whether the solution is what `hpcmpq run` makes: refined where samples are held out, rounded again if asked."""
    solution, config = findings.solution, findings.plan.config
    attempts = [(each["method"], each["strength"]) for each in solution.get("reround", {}).get("history", ())]
    asked = config.reround.method, config.reround.strength
    as_asked = [(asked[0], strength if asked[1] is None else asked[1]) for _, strength in attempts[:1]]
    return (
        "maximized" not in solution
        and ("refine" in solution) == (config.calibration.held_out > 0)
        and (attempts == as_asked if config.rounds_again else not attempts)
    )


def _maximize(solution: Mapping[str, Any], run: str) -> str:
    found = solution["maximized"]
    option = "--max-loss-mse" if found["limit_on"] == "loss_mse" else "--max-loss"
    given = [
        f"--budget {name}={limit:.12g}"
        for name, limit in solution["budgets"].items()
        if name != found["cost"]
    ]
    return " ".join(
        ["hpcmpq solve", run, f"--maximize {found['gain']} {option} {found['limit']:.12g}", *given]
    )


def _frontier(frontier: Mapping[str, Any], run: str, planned_solver: str) -> str:
    limits = [float(point["limit"]) for point in frontier["points"]]
    step = (limits[-1] - limits[0]) / (len(limits) - 1) if len(limits) > 1 else 1.0
    others = [f"--budget {name}={limit:.12g}" for name, limit in frontier["other_budgets"].items()]
    solver = frontier["solver"]["name"] if "solver" in frontier else planned_solver
    if solver != planned_solver:
        others.append(f"--solver {solver}")
    return " ".join(
        [
            f"hpcmpq frontier {run} --cost {frontier['cost']}",
            f"--from {limits[0]:.10g} --to {limits[-1]:.10g} --step {step:.10g}",
            *others,
        ]
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
