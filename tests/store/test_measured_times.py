"""A solution within times that were measured is of those: measured again, gone or damaged, no later stage is silent."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest

from hpcmpq.batch.status import read_status
from hpcmpq.errors import DamagedFile, PlanMismatch
from hpcmpq.formats import FORMATS
from hpcmpq.plan import plan_to_json
from hpcmpq.report import write_report
from hpcmpq.report.compare import compare
from hpcmpq.settings import SolverConfig
from hpcmpq.solve.largest_gain import LossLimit, maximize
from hpcmpq.solve.stage import solve
from hpcmpq.store.json_files import read_json, write_artefact
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.solution_file import read_solution
from tests.synthetic_run import write_run

QUICK = SolverConfig(time_limit_s=1.0)
LATENCIES = {"latency_s", "prefill_s"}


def measure(run: RunDir, bit_s: float) -> None:
    """Write `time.json` of a machine that takes so many seconds for each bit of a group's format."""
    plan = read_plan(run)
    formats = plan.space.formats[0]
    rows = [{"formats": [name], "seconds": bit_s * FORMATS[name].num_bits} for name in formats]
    phase: dict[str, Any] = {
        "parts": [
            {"groups": [group.name], "operations": 1, "result": "", "class": "one"}
            for group in plan.space.groups
        ],
        "classes": {"one": {"combinations": rows, "original": {"seconds": 16 * bit_s}, "tied": [[0]]}},
        "shared_s": bit_s,
        "original_s": 16 * bit_s * len(plan.space.groups),
    }
    machine = {"processor": "a", "device": "cpu", "threads": 1}
    facts = {"fingerprint": plan.fingerprint, "machine": machine, "generated_tokens": 0, "rounds": 1}
    write_artefact(run.time_path, {**facts, "phases": {"prefill": phase}})


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = write_run(tmp_path / "run")
    measure(made, 1e-4)
    return made


def limit(run: RunDir, bits: float) -> float:
    """Seconds of so many bits a group."""
    return 1e-4 * (1 + bits * len(read_plan(run).space.groups))


SOLVED = {
    "budget": lambda run: solve(run, {"weight_bits": 5.0, "latency_s": limit(run, 3)}, QUICK),
    "budget of a phase": lambda run: solve(run, {"prefill_s": limit(run, 3)}, QUICK),
    "gain": lambda run: maximize(run, "time_gain", LossLimit(1e3, "loss", 1e3), {}, QUICK),
}
AFTER = {
    "measured again": (lambda run: measure(run, 2e-4), r"other times than those in .*; run `hpcmpq solve"),
    "removed": (lambda run: run.time_path.unlink(), r"not there any more.*; run `hpcmpq time .*` and `hpcmpq solve"),
    "of another plan": (
        lambda run: write_artefact(run.time_path, {**read_json(run.time_path, ""), "fingerprint": "another"}),
        r"other times than those in .*; run `hpcmpq time .*` and `hpcmpq solve",
    ),
}  # fmt: skip


@pytest.mark.parametrize("solved", SOLVED)
@pytest.mark.parametrize("after", AFTER)
def test_a_solution_within_other_times_is_refused_and_not_done(run: RunDir, solved: str, after: str):
    SOLVED[solved](run)
    assert read_solution(run)["costs"]["latency_s"] <= limit(run, 3) * 1.001
    change, said = AFTER[after]
    change(run)
    for read in (read_solution, write_report, lambda run: compare(run, run)):
        with pytest.raises(PlanMismatch, match=said):
            read(run)
    assert not {stage.name: stage.done for stage in read_status(run).stages}["solve"]
    measure(run, 1e-4)
    assert read_solution(run)["costs"].keys() >= LATENCIES


def test_damaged_times_are_said_to_be(run: RunDir):
    SOLVED["budget"](run)
    run.time_path.write_bytes(run.time_path.read_bytes()[:-40])
    with pytest.raises(DamagedFile, match=r"time\.json is damaged .*; run `hpcmpq time"):
        read_solution(run)


def test_tokens_that_a_request_generates_by_now_are_other_times(run: RunDir):
    SOLVED["budget"](run)
    plan = read_plan(run, with_times=False)
    timing = dataclasses.replace(plan.config.timing, generated_tokens=3)
    config = dataclasses.replace(plan.config, timing=timing)
    write_artefact(run.plan_path, plan_to_json(dataclasses.replace(plan, config=config)))
    with pytest.raises(PlanMismatch, match="latency_s by other times"):
        read_solution(run)


def test_latencies_that_no_budget_is_on_are_left_out_with_a_notice(
    run: RunDir, caplog: pytest.LogCaptureFixture
):
    solve(run, {"weight_bits": 3.0}, QUICK)
    before = read_solution(run)
    assert before["costs"].keys() >= LATENCIES and not caplog.text
    measure(run, 2e-4)
    caplog.set_level(logging.WARNING)
    after = read_solution(run)
    assert (
        "are by other times than those in" in caplog.text and "and left out; run `hpcmpq solve" in caplog.text
    )
    assert after["costs"] == {k: v for k, v in before["costs"].items() if k not in LATENCIES}
    assert after["assignment"] == before["assignment"] and "times" not in after
    assert not any(LATENCIES & each["costs"].keys() for each in after["uniform"].values())


def test_a_solution_that_names_no_times_is_taken(run: RunDir):
    """As those of earlier versions, and those that were solved before anything was timed."""
    SOLVED["budget"](run)
    values = {name: value for name, value in read_json(run.solution_path, "").items() if name != "times"}
    write_artefact(run.solution_path, values)
    measure(run, 2e-4)
    assert read_solution(run)["costs"] == values["costs"]
