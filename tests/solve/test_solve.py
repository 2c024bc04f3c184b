"""From plan, quadratic model and settings to the problem and `solution.json`, without torch."""

import json
from dataclasses import replace

import numpy as np
import pytest

from hpcmpq.api import stages
from hpcmpq.errors import Infeasible, UserError
from hpcmpq.problem import Problem, Solution, Termination
from hpcmpq.quadratic import quadratic_increase
from hpcmpq.settings import SolverConfig
from hpcmpq.solve.constraints import allowed_options
from hpcmpq.solve.formulate import constrained, plan_costs, uniform_choices
from hpcmpq.solve.frontier import frontier, sweep
from hpcmpq.solve.frontier_points import SolvedPoints
from hpcmpq.solve.outcome import none_found
from hpcmpq.solve.reliability import reliability
from hpcmpq.solve.settings import parse_budget
from hpcmpq.solve.shrinkage import shrunk
from hpcmpq.solve.stage import solve
from hpcmpq.solvers import make_solver
from hpcmpq.solvers.robust import robust_value
from hpcmpq.store.json_files import read_json
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.quadratic_file import read_quadratic, write_quadratic
from tests.synthetic_run import synthetic_model, synthetic_plan, write_run

pytestmark = pytest.mark.slow

FAST = {"time_limit_s": 3.0}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("solve"), solved=False)


def test_solution_keeps_its_budgets_and_beats_uniform(run):
    values = solve(run, {"weight_bits": 3.0, "size_bytes": 600_000}, SolverConfig(**FAST))
    assert values["costs"]["weight_bits"] <= 3.0 + 1e-9
    assert values["costs"]["size_bytes"] <= 600_000
    assert values["bound"] <= values["objective"] <= values["uniform"]["int3"]["predicted_loss"] * (1 + 1e-9)
    assert values["gap"] == pytest.approx((values["objective"] - values["bound"]) / values["objective"])
    assert read_json(run.solution_path, "x") == json.loads(json.dumps(values))
    proof = read_json(run.file("proof.json"), "x")
    assert proof["lines"] and proof["part_s"]["eigen-decomposition"] > 0
    for line in proof["lines"]:
        assert line["proven"] <= values["objective"] * (1 + 1e-9) <= line["objective"] * (1 + 2e-9)
        assert line["steps"] > 0 and line["rank"] <= line["dimension"]
    assert proof["detail"] == values["detail"]


def test_costs_agree_with_a_hand_count():
    plan = synthetic_plan()
    choice_G = uniform_choices(plan.space)["int4"]
    offset_G = np.searchsorted(plan.space.group_P, np.arange(len(plan.space.groups)))
    value = {name: cost.value(choice_G, offset_G) for name, cost in plan_costs(plan).items()}
    numel = 4 * (4 * 128 * 128 + 3 * 384 * 128)
    assert value["weight_bits"] == pytest.approx(4)
    assert value["average_bits"] == pytest.approx(4 + 16 / 64)
    assert value["size_bytes"] == pytest.approx(numel * 4.25 / 8 + plan.fixed_bytes)
    assert value["bops"] == pytest.approx(numel * 4 * 16)
    assert value["macs"] == pytest.approx(numel * 4 / 16)


@pytest.mark.parametrize(
    ("settings", "check"),
    [
        ({"fixed": {"*.q_proj": "int8"}}, lambda g, f: f == "int8" if g.endswith("q_proj") else True),
        ({"forbidden": {"*": ["int2", "int4"]}}, lambda g, f: f not in ("int2", "int4")),
        ({"min_bits": {"*.layers.0.*": 4}}, lambda g, f: f >= "int4" if ".layers.0." in g else True),
        ({"max_bits": {"*": 3}}, lambda g, f: f <= "int3"),
    ],
)
def test_constraints_of_the_config_hold(run, settings, check):
    values = solve(run, {"weight_bits": 4.0}, SolverConfig(**FAST, **settings))
    assert all(check(group, name) for group, name in values["assignment"].items())


def test_fewest_and_most_bits_may_be_had():
    space = synthetic_plan().space
    allowed_P = allowed_options(space, SolverConfig(min_bits={"*": 3}, max_bits={"*.q_proj": 5}))
    for option, allowed in zip(space.options, allowed_P, strict=True):
        most = 5 if space.groups[option.group].name.endswith("q_proj") else 8
        assert allowed == (3 <= int(option.format[3:]) <= most)


def test_ties_choose_one_format(run):
    rules = (("*.0.self_attn.q_proj", "*.0.self_attn.k_proj", "*.0.self_attn.v_proj"),)
    chosen = solve(run, {"weight_bits": 3.3}, SolverConfig(**FAST, tie=rules))["assignment"]
    assert (
        len({name for group, name in chosen.items() if ".0.self_attn" in group and "o_proj" not in group})
        == 1
    )


def test_ties_compare_formats_where_targets_narrow_groups_to_different_lists():
    plan = synthetic_plan()
    narrowed = tuple(("int4", "bf16") if g % 2 == 0 else ("bf16",) for g in range(len(plan.space.groups)))
    plan = replace(plan, space=replace(plan.space, formats=narrowed))
    num_options = plan.space.num_options
    settings = SolverConfig(**FAST, tie=(("*.0.self_attn.q_proj", "*.0.self_attn.k_proj"),))
    # int4 is the better choice of every group that has it: only the tie asks for bf16.
    losses_P = np.array([0.0 if option.format == "int4" else 1.0 for option in plan.space.options])
    problem = constrained(plan, losses_P, np.zeros((num_options, num_options)), {}, settings)
    answer = make_solver("quadratic").solve(problem, time_limit_s=5, seed=0)
    assert answer.choice_G is not None and problem.is_feasible(answer.choice_G)
    chosen = plan.space.assignment(answer.choice_G)
    assert chosen["model.layers.0.self_attn.q_proj"] == "bf16"
    assert sum(name == "int4" for name in chosen.values()) == 13


@pytest.mark.parametrize(
    ("budgets", "settings", "message"),
    [
        ({"weight_bit": 3.0}, {}, "unknown budget 'weight_bit'; known: weight_bits"),
        ({"weight_bits": 3.0}, {"fixed": {"*.nothing": "int8"}}, "matches no group"),
        ({"weight_bits": 3.0}, {"fixed": {"*": "int9"}}, "unknown format 'int9'"),
        ({"weight_bits": 3.0}, {"min_bits": {"*": 9}}, "leave no format for group"),
        ({"weight_bits": float("nan")}, {}, "finite"),
        ({"weight_bits": 3.0}, {"name": "magic"}, "unknown solver 'magic'"),
        ({"weight_bits": 3.0}, {"robust_k": 1.0}, "at least two calibration batches"),
        ({"weight_bits": 3.0}, {"name": "greedy"}, "cross terms"),
    ],
)
def test_wrong_settings_say_what_is_wrong(run, budgets, settings, message):
    with pytest.raises(UserError, match=message):
        solve(run, budgets, SolverConfig(**{**FAST, **settings}))


def test_an_unreachable_budget_says_the_smallest_value(run):
    with pytest.raises(Infeasible, match=r"\b2\b"):
        solve(run, {"weight_bits": 1.5}, SolverConfig(**FAST))


@pytest.mark.parametrize("name", ["greedy", "diagonal", "linear"])
def test_solvers_without_cross_terms_run_when_they_are_dropped(run, name):
    values = solve(run, {"weight_bits": 3.0}, SolverConfig(**FAST, name=name, drop_cross_terms=True))
    assert values["costs"]["weight_bits"] <= 3.0 + 1e-9
    assert values["predicted_loss"] > values["objective"]  # the prediction keeps the cross terms


@pytest.mark.parametrize("shrink", ["auto", 3.0, 0.0])
def test_solutions_are_optimal_and_predicted_with_shrunk_cross_terms(run, shrink):
    values = solve(run, {"weight_bits": 3.0}, SolverConfig(**FAST, shrink=shrink))
    model = synthetic_model()
    factor = {"auto": reliability_of(model), 3.0: 1 - (3 * 0.1) ** 2, 0.0: 1.0}[shrink]
    choice_G = synthetic_plan().space.choice(values["assignment"])
    predicted = quadratic_increase(model.linear_P, factor * model.quad_PP, choice_G)
    assert values["predicted_loss"] == pytest.approx(predicted, rel=1e-9)
    assert values["objective"] == pytest.approx(predicted, rel=1e-9)
    cross_terms = predicted - model.linear_P[choice_G].sum()
    assert values["predicted_cross_terms"] == pytest.approx(cross_terms, rel=1e-9)


def reliability_of(model):
    group_P = synthetic_plan().space.group_P
    errors = model.stderr_quad_PP, model.linear_P, model.stderr_linear_P
    return reliability(model.quad_PP, *errors, group_P, np.array(model.option_format), model.num_samples)


def test_batches_and_errors_are_shrunk_by_the_same_factors():
    model = synthetic_model()
    model = replace(model, batch_quad_BPP=np.stack([0.5 * model.quad_PP, 1.5 * model.quad_PP]))
    ours = shrunk(model, "auto")
    np.testing.assert_allclose(ours.batch_quad_BPP.mean(0), ours.quad_PP, rtol=1e-12)
    np.testing.assert_allclose(ours.stderr_quad_PP, 0.1 * np.abs(ours.quad_PP), rtol=1e-12)
    assert not np.allclose(ours.quad_PP, model.quad_PP)


def test_a_quadratic_of_other_options_than_the_plan_has_is_refused(run, tmp_path):
    other = write_run(tmp_path, solved=False)
    values = read_json(other.plan_path, "x")
    values["groups"][0]["name"] = "renamed"
    other.plan_path.write_text(json.dumps(values))
    with pytest.raises(UserError, match="is of other options than the 196 that are measured by now"):
        solve(other, {"weight_bits": 3.0}, SolverConfig(**FAST))


def test_budget_texts():
    assert parse_budget("size_bytes=5e9") == ("size_bytes", 5e9)
    for text in ("weight_bits", "weight_bits=", "=x", "weight_bits=three"):
        with pytest.raises(UserError, match="NAME=VALUE"):
            parse_budget(text)


def test_the_largest_gain_keeps_the_config_s_budgets(tmp_path):
    run = write_run(tmp_path / "run", solved=False)
    limit = read_plan(run).config.budgets["weight_bits"]
    values = stages.maximize(run, "mac_gain", (None, 0.001), {"weight_bits": 8.0}, time_limit_s=1.0)
    assert values["costs"]["weight_bits"] > limit  # so little loss takes more bits than the config allows
    with pytest.raises(Infeasible):
        stages.maximize(run, "mac_gain", (None, 0.001), {}, time_limit_s=1.0)


@pytest.mark.parametrize(
    "termination, words",
    [
        ("INFEASIBLE", "no assignment meets the budgets: why"),
        ("NO_SOLUTION", "was found within 3 s: why; raise"),
    ],
)
def test_what_is_not_found_in_time_is_not_called_infeasible(termination, words):
    assert words in str(
        none_found(Solution(Termination[termination], None, None, None, detail="why"), "the budgets", 3.0)
    )


def test_the_frontier_falls_and_its_bounds_hold(run):
    limits = np.array([2.0, 2.5, 3.0, 5.0, 8.0])
    settings = SolverConfig(time_limit_s=1.0)
    values = frontier(run, "weight_bits", limits, {}, settings, lambda done, total: None)
    objectives = [point["objective"] for point in values["points"]]
    bounds = [point["bound"] for point in values["points"]]
    assert objectives == sorted(objectives, reverse=True)
    assert bounds == sorted(bounds, reverse=True)
    assert all(bound <= objective for bound, objective in zip(bounds, objectives, strict=True))
    assert objectives[0] == pytest.approx(values["uniform"]["int2"]["predicted_loss"])
    assert objectives[-1] <= values["uniform"]["int8"]["predicted_loss"] * (1 + 1e-9)


def test_points_of_a_frontier_lend_solutions_upwards_and_bounds_downwards(monkeypatch, tmp_path):
    found = iter(
        [(0, 0.4), (2, 0.9), (1, 0.1)]
    )  # of rising limits: option chosen, its loss being 3, 2, 1; bound

    def find(problem: Problem, model: object, settings: SolverConfig, hint_G: np.ndarray | None) -> Solution:
        option, bound = next(found)
        choice_G = np.array([option])
        return Solution(Termination.TIME_LIMIT, choice_G, problem.objective(choice_G), bound)

    monkeypatch.setattr("hpcmpq.solve.frontier.find_solution", find)
    problem = Problem(np.array([3.0, 2.0, 1.0]), np.zeros((3, 3)), np.zeros(3, dtype=np.int64))
    points = sweep(
        [problem] * 3, synthetic_model(), SolverConfig(), lambda done, total: None, SolvedPoints(tmp_path)
    )
    assert [point.objective for point in points] == [3.0, 1.0, 1.0]
    assert [point.bound for point in points] == [0.9, 0.9, 0.1]


def test_the_frontier_is_as_robust_as_the_solution(tmp_path):
    run = write_run(tmp_path / "run", solved=False)
    model = read_quadratic(run.quadratic_path)
    factor_BP = np.random.default_rng(0).lognormal(0.0, 0.5, (3, len(model.linear_P)))
    batches = factor_BP * model.linear_P, np.stack([model.quad_PP] * 3)
    mean = replace(model, linear_P=batches[0].mean(0), batch_linear_BP=batches[0], batch_quad_BPP=batches[1])
    write_quadratic(run.quadratic_path, mean, mean.linear_P, synthetic_plan().fingerprint)
    settings = SolverConfig(robust_k=2.0, time_limit_s=1.0)
    batches = batches[0], shrunk(mean, settings.shrink).batch_quad_BPP
    values = frontier(run, "weight_bits", np.array([2.5, 4.0]), {}, settings, lambda done, total: None)
    for point in values["points"]:
        choice_G = synthetic_plan().space.choice(point["assignment"])
        assert point["objective"] == pytest.approx(robust_value(*batches, choice_G, 2.0))
        assert point["objective"] > point["predicted_loss"] * 1.01
        assert point["bound"] <= point["objective"]


def test_a_frontier_below_every_size_is_infeasible(run):
    with pytest.raises(Infeasible, match="no assignment meets weight_bits of up to 1.5"):
        frontier(run, "weight_bits", np.array([1.0, 1.5]), {}, SolverConfig(**FAST), lambda done, total: None)
