"""What each stage took: wall time, and the work behind it as far as its artefacts say."""

import logging
from collections.abc import Callable

from hpcmpq.report.display import show, show_operations
from hpcmpq.report.findings import Findings
from hpcmpq.report.tables import Column, Table, share_of
from hpcmpq.store.attempts import failures, read_processes_of, unit_seconds
from hpcmpq.store.jobs_file import read_submissions
from hpcmpq.store.json_files import read_json
from hpcmpq.store.of_solution import read_cost
from hpcmpq.wording import show_bytes

log = logging.getLogger(__name__)


def stage_table(findings: Findings) -> Table:
    """Wall time of the stages that ran here, and what they did."""
    timings = {name: float(values["seconds"]) for name, values in findings.timings.items() if name in WORK}
    names = sorted({*timings, *(name for name in WORK if WORK[name](findings))}, key=list(WORK).index)
    total = sum(timings.values())
    rows = tuple(
        (name, timings.get(name), share_of(timings.get(name, 0.0), total), WORK[name](findings))
        for name in names
    )
    columns = (
        Column("stage", "Stage"),
        Column("seconds", "Wall time", "seconds"),
        Column("share", "Share", "bar"),
        Column("work", "Work", "prose"),
    )
    caption = (
        f"Wall time of each stage's last run, {show(total, 'seconds')} in all, and the work it did. A stage that was "
        "resumed shows the time of its last part."
        if timings
        else "The work of each stage; none ran here by a command, so wall times are not known."
    )
    return Table("stages", caption, columns, rows)


def usage_table(findings: Findings) -> Table | None:
    """What Slurm accounted for each job, from RUN/usage.json; None where nobody asked, or of jobs of another run."""
    path, command = findings.run.file("usage.json"), f"hpcmpq status {findings.run.path} --usage"
    if not path.exists():
        return None
    values = read_json(path, command)
    submitted = {
        number for submission in read_submissions(findings.run) for number in submission["jobs"].values()
    }
    if not all(job["number"] in submitted for job in values["jobs"]):
        log.warning("%s is of jobs that were not submitted for this run; run `%s` to ask anew", path, command)
        return None
    names = (
        "job",
        "starts",
        "queued_s",
        "elapsed_s",
        "cpu_s",
        "allocated_cpu_s",
        "peak_bytes",
        "requested_bytes",
    )
    rows = tuple(
        (*(job[name] for name in names), job["gpu_hours"], job["energy_j"], job["advice"])
        for job in values["jobs"]
    )
    columns = (
        Column("job", "Job"),
        Column("starts", "Starts", "count"),
        Column("queued_s", "Queued", "seconds"),
        Column("elapsed_s", "Elapsed", "seconds"),
        Column("cpu_s", "CPU time", "seconds"),
        Column("allocated_cpu_s", "Allocated", "seconds"),
        Column("peak_bytes", "Memory on a node", "bytes"),
        Column("requested_bytes", "Requested", "bytes"),
        Column("gpu_hours", "GPU hours", "number"),
        Column("energy_j", "Energy (J)", "number"),
        Column("advice", "Next time", "prose"),
    )
    caption = (
        f"What the Slurm jobs used, and what to request the next time; {values['num_files']:,} files and "
        f"{values['num_directories']:,} directories, {show_bytes(values['bytes'])}."
    )
    return Table("usage", caption, columns, rows)


def _plan(findings: Findings) -> str:
    space, whole = findings.plan.space, findings.plan.whole_space
    screened = (
        "" if whole is None else f" of {whole.num_options}; the others were ruled out (sensitivity.screen)"
    )
    return f"{_count(len(space.groups), 'group')}, {space.num_options} options{screened}"


def _round(findings: Findings) -> str:
    quantizer = findings.plan.config.quantizer
    return f"codes of every option by {quantizer.rounding}" if quantizer.stores_codes else ""


def _calibrate(findings: Findings) -> str:
    """Processes and seconds from the attempts, operations and memory as planned, bytes of the shards."""
    plan, parts = findings.plan, []
    processes = read_processes_of(plan, findings.run)
    if processes:
        seconds = sum(unit_seconds(processes).values())
        hosts = len({process.host for process in processes})
        parts.append(
            f"{_count(len(plan.units), 'work unit')} started from {_count(len(processes), 'process')} on "
            f"{_count(hosts, 'host')}, {show(seconds, 'seconds')} of measurement in all"
        )
        broken = sum(attempt.error is not None for process in processes for attempt in process.attempts)
        if broken:
            left = len(failures(processes))
            parts.append(f"{_count(broken, 'failed attempt')}, {left or 'none'} of them not made up for")
    if (cost := read_cost(findings.run, plan)) is not None:
        parts.append(
            f"planned as {cost['forwards']:.0f} passes of the whole model over the calibration samples, "
            f"{show_operations(cost['flops'])}, {show_bytes(cost['peak_bytes'])} a worker"
            + (f", {show(cost['seconds'], 'seconds')} on one" if cost["seconds"] else "")
        )
    return "; ".join(parts)


def _reduce(findings: Findings) -> str:
    shards = [path for unit in findings.plan.units if (path := findings.run.shard_path(unit.id)).exists()]
    if not shards:
        return ""
    return (
        f"{_count(len(shards), 'shard')} of {show_bytes(sum(path.stat().st_size for path in shards))} in all"
    )


def _time(findings: Findings) -> str:
    times = findings.plan.times
    if times is None:
        return ""
    kinds = sum(len(phase["classes"]) for phase in times["phases"].values())
    return f"{_count(kinds, 'kind')} of sub-graph in {', '.join(times['phases'])}"


def _solve(findings: Findings) -> str:
    solution = findings.solution
    return f"{show(float(solution['seconds']), 'seconds')} in the solver {solution['solver']['name']}"


def _frontier(findings: Findings) -> str:
    if findings.frontier is None:
        return ""
    points = findings.frontier["points"]
    seconds = sum(float(point["seconds"]) for point in points)
    return f"{_count(len(points), 'budget')}, {show(seconds, 'seconds')} in the solver"


def _refine(findings: Findings) -> str:
    refine = findings.solution.get("refine")
    if refine is None:
        return ""
    points = len(refine.get("link", {}).get("predicted", ()))
    measured = f"{refine['evaluations']} neighbours and answers measured, " if "evaluations" in refine else ""
    return f"{measured}{points} on held-out samples"


def _reround(findings: Findings) -> str:
    attempts = findings.solution.get("reround", {}).get("history", [])
    if not attempts:
        return ""
    kept = findings.solution["reround"].get("method")
    last = attempts[-1]
    return (
        f"{_count(len(attempts), 'attempt')}, the last of {_count(last['num_weights'], 'weight')} by {last['method']}; "
        f"{kept or 'none'} kept"
    )


def _export(findings: Findings) -> str:
    folders = [findings.run.checkpoint_path, *sorted(findings.run.file("exports").glob("*"))]
    return ", ".join(folder.name for folder in folders if folder.is_dir())


def _evaluate(findings: Findings) -> str:
    evaluation = findings.evaluation
    if evaluation is None:
        return ""
    parts = [
        f"three models on {evaluation['num_tokens']:,} labels of {_count(evaluation['num_samples'], 'sample')}"
    ]
    parts.append(f"engine {evaluation['engine']}, {_count(evaluation['world_size'], 'process')}")
    if tasks := evaluation.get("tasks"):
        parts.append(_count(len(tasks), "task"))
    if peak := evaluation.get("peak_bytes"):
        most = show_bytes(max(peak) if isinstance(peak, list) else peak)
        parts.append(f"at most {most} of memory a process beyond the loaded program")
    return ", ".join(parts)


def _count(number: int, noun: str) -> str:
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


WORK: dict[str, Callable[[Findings], str]] = {
    "plan": _plan,
    "round": _round,
    "calibrate": _calibrate,
    "reduce": _reduce,
    "time": _time,
    "solve": _solve,
    "frontier": _frontier,
    "refine": _refine,
    "reround": _reround,
    "export": _export,
    "evaluate": _evaluate,
    "report": lambda _: "",
}
"""Stage, in order: what its artefacts say about the work it did; empty where they say nothing."""
