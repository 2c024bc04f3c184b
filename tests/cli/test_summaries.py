"""What people read after a stage says what the numbers are, and when they cannot be."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcmpq.calibrate.reduce import Reduction
from hpcmpq.cli import console, run_summary, summaries
from hpcmpq.plan import UnitOutcome, WorkUnit
from hpcmpq.store.run_dir import RunDir
from tests.synthetic_run import synthetic_model


def solution(predicted: float, shrink: float | str = "auto") -> dict[str, Any]:
    return {
        "predicted_loss": predicted,
        "predicted_cross_terms": 0.0,
        "costs": {"weight_bits": 3.0},
        "budgets": {"weight_bits": 3.0},
        "gap": 0.0,
        "termination": "optimal",
        "seconds": 1.0,
        "solver": {"shrink": shrink},
    }


def evaluation(num_tokens: int, interval: list[float]) -> dict[str, Any]:
    pair = {"difference": sum(interval) / 2, "interval": interval}
    return {
        "objective": "kl",
        "num_samples": 24,
        "num_tokens": num_tokens,
        "uniform_format": "int3",
        "kl": {"original": 0.0, "quantized": 0.1, "uniform": 0.2},
        "paired": {"kl": {"quantized - uniform": pair}},
    }


def test_a_proof_says_all_of_the_whole_problem_the_end_of_each_part_and_what_limits_it(capsys):
    def line(node: int, steps: int, gap: float) -> dict[str, Any]:
        sizes = {"dimension": 31, "rank": 7, "options": 40}
        return {
            "seconds": 1.5,
            "node": node,
            "steps": steps,
            "step_s": 0.1,
            **sizes,
            "gap": gap,
        }

    lines = [line(1, 10, 0.5), line(1, 20, 0.25), line(2, 30, 0.125), line(2, 55, 0.0625)]
    summaries.proof(
        {"lines": lines, "part_s": {"search": 1.0, "projection": 2.0}, "detail": "branching limits"}
    )
    printed = capsys.readouterr().out
    assert [f"{100 * one['gap']:.4f} %" in printed for one in lines] == [True, True, False, True]
    assert "projection 2.0, search 1.0" in printed and "branching limits" in printed
    summaries.proof({"lines": [], "part_s": {}, "detail": ""})
    assert "not recorded" in capsys.readouterr().out


def test_a_predicted_loss_that_cannot_be_is_questioned(capsys):
    summaries.solved(solution(0.01))
    assert "cannot be" not in capsys.readouterr().out
    summaries.solved(solution(-0.01))
    said = " ".join(capsys.readouterr().out.split())
    assert "predicted loss -0.01" in said
    assert "A loss below 0 cannot be" in said
    assert "solver.shrink" not in said
    summaries.solved(solution(-0.01, shrink=0.0))
    assert "solver.shrink: auto" in " ".join(capsys.readouterr().out.split())


def test_experts_that_saw_few_tokens_are_pointed_out(capsys):
    for fewest, advice in ((120, False), (7, True)):
        model = dataclasses.replace(synthetic_model(), tokens_LE=np.array([[300, 200], [fewest, 400]]))
        summaries.reduced(Reduction(model, model.linear_P, 0.0))
        said = " ".join(capsys.readouterr().out.split())
        assert f"{fewest} to 400 calibration tokens went to each of 2 experts in 2 layers" in said
        assert ("1 had fewer than 100, the fewest expert 0 of mixture 1" in said) == advice
        assert ("give more samples" in said) == advice


@pytest.mark.parametrize(("num_samples", "warned"), [(1, True), (2, False)])
def test_cross_terms_of_one_sample_are_questioned(capsys, num_samples, warned):
    model = dataclasses.replace(synthetic_model(), num_samples=num_samples)
    summaries.reduced(Reduction(model, model.linear_P, 0.0))
    said = " ".join(capsys.readouterr().out.split())
    assert ("solver.drop_cross_terms: true" in said) == warned


@pytest.mark.parametrize(("num_tokens", "counted"), [(24, "24 samples"), (2_400, "2,400 tokens")])
def test_predictions_of_a_whole_sample_are_counted_as_samples(capsys, num_tokens, counted):
    summaries.evaluated(evaluation(num_tokens, [-0.2, 0.1]))
    assert f"{counted} never calibrated on" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("interval", "verdict"), [([-0.2, 0.1], "within noise"), ([-0.2, -0.1], "lower"), ([0.1, 0.2], "higher")]
)
def test_uniform_is_compared_with_its_interval(capsys, interval, verdict):
    summaries.evaluated(evaluation(24, interval))
    said = " ".join(capsys.readouterr().out.split())
    assert "kl of quantized - uniform int3, which is at least as large" in said
    assert said.endswith(verdict)


def test_progress_is_told_in_lines_where_nobody_sees_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(console, "LINE_EVERY_S", 0.0)
    with console.counter("refine", "evaluations") as count:
        for done in (2, 2, 7):
            count(done, 12)
        count(12, 12)
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition(",")[0] for line in lines if "left" in line and "refine: " in line] == [
        "refine: 7 of 12 evaluations",
        "refine: 12 of 12 evaluations",
    ]
    assert "refine: 12 of 12 evaluations, about 0 s left" in lines


def test_progress_of_several_runs_is_told_of_each_and_of_all(capsys, monkeypatch):
    monkeypatch.setattr(console, "LINE_EVERY_S", 0.0)
    unit = WorkUnit("3fa9", 0, 1, 0, 1)
    with console.progress_of(["runs/[a]", "runs/b"], "unit") as show:
        for done in (1, 2):
            show("runs/[a]", "calibrate", UnitOutcome(unit, 1.0), done, 4)
        show("runs/b", "round", UnitOutcome(unit, 0.0, "boom", final=False), 3, 6)
        show("runs/b", "calibrate", UnitOutcome(unit, 1.0), 4, 6)
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition(",")[0] for line in lines if ", about " in line] == [
        "runs/[a]: 2 of 4 units",
        "all runs: 2 of 4 units",
        "all runs: 5 of 10 units",
        "runs/b: 4 of 6 units",
        "all runs: 6 of 10 units",
    ]
    assert f"runs/b: unit {unit}: boom; trying again" in lines


def test_a_stage_with_nothing_to_do_says_so(capsys):
    with console.progress("calibrate", "unit"):
        pass
    said = capsys.readouterr().out
    assert "every unit is done already" in said
    assert "0/?" not in said


def test_nothing_is_said_to_be_done_that_was_not_to_begin(capsys):
    with console.progress("calibrate", "unit", at_most=0):
        pass
    assert capsys.readouterr().out.split("\n") == ["", "no unit is begun with --at-most 0", ""]


@pytest.mark.parametrize(
    "bars",
    [
        lambda: console.progress("calibrate", "unit"),
        lambda: console.progress_of(["runs/a", "runs/b"], "unit"),
        lambda: console.counter("refine", "evaluations"),
    ],
)
def test_no_empty_bar_is_left_where_a_stage_is_refused(bars, capsys):
    with pytest.raises(ValueError, match="no plan"), bars():
        raise ValueError("no plan")
    assert not capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ([-0.2, 0.1], "cannot be told apart from that of uniform int3"),
        (
            [-0.15, -0.05],
            "is lower than that of uniform int3: -0.1 (95 % interval -0.15 to -0.05), 50 % of its",
        ),
        ([0.05, 0.15], "is higher than that of uniform int3: +0.1"),
    ],
)
def test_a_run_ends_with_what_the_mix_won(capsys, interval, verdict):
    values = {**evaluation(24, interval), "uniform_costs": {"size_bytes": 1000.0}}
    run_summary._against_uniform(values, 1000.0)
    assert f"kl of the mix {verdict}" in " ".join(capsys.readouterr().out.split())


def test_a_larger_uniform_model_is_said_to_be_larger(capsys):
    values = {**evaluation(24, [-0.2, 0.1]), "uniform_costs": {"size_bytes": 1500.0}}
    run_summary._against_uniform(values, 1000.0)
    assert "that of uniform int3, which is 50 % larger: " in " ".join(capsys.readouterr().out.split())


def test_a_run_ends_with_what_other_budgets_would_give(tmp_path: Path, capsys):
    """Points at 2, 3 and 4 bits, one of them without an answer: 3 is the budget, 4 the next one that is solved."""
    points = [(2.0, None), (2.5, 0.08), (3.0, 0.03), (4.0, 0.007), (5.0, 0.001)]
    values = {
        "cost": "weight_bits",
        "points": [{"limit": limit, "predicted_loss": loss} for limit, loss in points],
    }
    run_summary._other_budgets(RunDir(tmp_path), solution(0.03), values)
    said = " ".join(capsys.readouterr().out.split())
    assert "weight_bits 2.5 would give 0.08, weight_bits 4 would give 0.007 in place of 0.03" in said
    assert "--budget weight_bits=2.5`" in said
    run_summary._other_budgets(RunDir(tmp_path), {**solution(0.03), "budgets": {"bops": 1e9}}, values)
    assert not capsys.readouterr().out


def test_the_command_for_another_budget_can_be_pasted(tmp_path: Path, capsys):
    run = RunDir(tmp_path / "my run")
    run.path.mkdir()
    frontier = {"cost": "size_bytes", "points": [{"limit": 123456789.0, "predicted_loss": 0.08}]}
    run_summary._other_budgets(run, {**solution(0.03), "budgets": {"size_bytes": 2e8}}, frontier)
    said = "".join(capsys.readouterr().out.split())
    assert f"solve'{run.path}'--budgetsize_bytes=123456789`".replace(" ", "") in said


@pytest.mark.parametrize(("seconds", "says"), [(90.0, "like this; reround by one process about"), (None, "")])
def test_a_plan_says_how_long_rounding_again_takes_where_it_is_known(capsys, seconds, says):
    summaries.cost(
        {
            "engine": "wavefront", "forwards": 3.0, "flops": 1e12, "shard_bytes": 10, "peak_bytes": 20, "seconds": 5.0,
            "reround_seconds": seconds,
        }
    )  # fmt: skip
    text = " ".join(capsys.readouterr().out.split())
    assert says in text and ("reround" in text) == bool(says)
