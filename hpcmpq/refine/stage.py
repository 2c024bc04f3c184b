"""The refine stage: true-loss descent from the solution, and the link from predicted to measured loss.

A portfolio of assignments is measured on held-out samples first, and its best is the start. Moves are proposed by
expansions on calibration samples, and kept only where the loss on held-out samples falls.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from hpcmpq.errors import UserError
from hpcmpq.executors import Executor
from hpcmpq.models.data.kept_samples import planned_splits
from hpcmpq.problem import Problem
from hpcmpq.quadratic import QuadraticModel
from hpcmpq.refine.asking import Asking
from hpcmpq.refine.descent import LOCAL_SOLVE_S, Measurements, check_held_out, descend
from hpcmpq.refine.link import fit_link
from hpcmpq.refine.portfolio import (
    Candidate,
    describe_candidates,
    interactions,
    lowest,
    make_candidates,
    mean_and_stderr,
    narrow_options,
)
from hpcmpq.settings import SolverConfig
from hpcmpq.solve.formulate import make_problem, uniform_choices
from hpcmpq.solve.outcome import assignment_values, objective_value
from hpcmpq.solve.settings import settings_of
from hpcmpq.solve.shrinkage import shrunk
from hpcmpq.solvers import make_solver, on_host
from hpcmpq.space import SearchSpace
from hpcmpq.store.json_files import write_artefact
from hpcmpq.store.measured_losses import with_kept_loss, without_losses
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.quadratic_file import read_quadratic
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.solution_file import read_solution, solution_now

NEIGHBOUR_BUDGETS = (0.85, 0.9, 0.95, 1.05, 1.1, 1.15)
"""Factors on all budgets whose solutions are points of the link."""

LOCAL_SOLVER = "quadratic"
"""Of the problems around an assignment, which have cross terms whatever `solver` made of the quadratic model."""

EVALUATIONS_PER_GROUP = 4
"""Default budget: about two rounds, of two neighbours a group each."""


def refine(
    run: RunDir,
    executor: Executor,
    on_evaluation: Callable[[int, int], None],
    part: tuple[int, int] = (0, 1),
) -> dict[str, Any]:
    """Refine `solution.json` in place; returns its new values.

    What is measured lies in RUN/refine until the end, so that the same command goes on where one was interrupted.
    Several processes that share the run directory measure together and come to the same end; one that comes after it
    changes nothing.

    Adds `measured_loss` with its standard error (held-out samples), `expected_loss` and `expected_interval`
    (the link at the predicted loss), `portfolio`, `interactions`, and `refine`: evaluations, history of moves and the
    points of the link.

    Args:
        run: A solved run directory.
        executor: Where units run.
        on_evaluation: Called with the neighbours and answers measured so far and their maximum.
        part: (i, n): of n processes that share the run directory this is number i.

    Raises:
        UserError: If nothing is solved yet, the solution does not meet its budgets (after an edit, or with times
            measured since), there are no held-out samples, the data have changed, or something else was solved
            meanwhile.
        IncompleteCalibration: If a unit failed for good; all others are on disk.
    """
    plan = read_plan(run)
    config = plan.config
    solution = read_solution(run)
    if part[1] > 1 and "refine" in solution:
        return solution
    as_measured = read_quadratic(run.quadratic_path, plan)
    settings = settings_of(plan, **solution["solver"])
    quadratic = shrunk(as_measured, settings.shrink)

    def problem_of(changed: SolverConfig) -> Problem:
        return make_problem(plan, shrunk(as_measured, changed.shrink), solution["budgets"], changed)

    problem = problem_of(settings)
    start_G = plan.space.choice(solution["assignment"])
    _check_budgets(run, problem, start_G)
    splits = planned_splits(plan)
    check_held_out(len(splits.held_out), "refine")
    asking = Asking(replace(run, measuring="refine"), plan, splits, executor, part)
    asked_for = [solution["assignment"], solution["budgets"], asdict(settings)]

    def on_held_out(assignments: list[dict[str, str]]) -> list[np.ndarray]:
        return asking.losses("held_out", assignments)

    assignment_of = plan.space.assignment
    uniforms = uniform_choices(plan.space)

    def candidate_values() -> list[tuple[str, list[int]]]:
        narrow_P = narrow_options(plan.space, start_G)
        found = make_candidates(start_G, settings, problem_of, uniforms, narrow_P)
        return [(candidate.name, candidate.choice_G.tolist()) for candidate in found]

    candidates = [
        Candidate(name, np.array(choice))
        for name, choice in asking.agreed(["candidates", *asked_for], candidate_values)
    ]
    loss0_N, *candidate_losses = on_held_out([{}, *(assignment_of(c.choice_G) for c in candidates)])
    chosen = lowest(candidate_losses)
    descent = descend(
        problem,
        candidates[chosen].choice_G,
        candidate_losses[chosen],
        Measurements(
            asking.around,
            lambda choices: asking.losses("calibration", [assignment_of(choice_G) for choice_G in choices]),
            lambda choices: on_held_out([assignment_of(choice_G) for choice_G in choices]),
            config.refine.max_evaluations or EVALUATIONS_PER_GROUP * len(plan.space.groups),
            on_evaluation,
            lambda key, make: asking.agreed([*key, *asked_for], make),
        ),
        make_solver(LOCAL_SOLVER),
        settings.shrink,
        settings.seed,
        min(settings.time_limit_s, LOCAL_SOLVE_S),
    )
    choice_G, measured_N = descent.choice_G, descent.loss_N

    def points_values() -> list[list[int]]:
        return [choice.tolist() for choice in solved_choices(problem, settings, choice_G)]

    points = [
        *link_choices(plan.space, quadratic, choice_G, config.refine.link_points, settings.seed),
        *map(np.array, asking.agreed(["points", choice_G.tolist(), *asked_for], points_values)),
    ]
    point_losses = on_held_out([assignment_of(c) for c in points])
    predicted_n = np.array([quadratic.predicted_loss(c) - quadratic.loss0 for c in points])
    measured_n = np.array([loss_N.mean() - loss0_N.mean() for loss_N in point_losses])
    asking.end()
    if part[1] > 1 and _is_of(now := read_solution(run), solution):
        return now  # which another of the processes has written
    solution = solution_now(run, solution, f"hpcmpq refine {run.path}", "budgets", "solver")
    objective = objective_value(problem, quadratic, settings, choice_G)
    values = assignment_values(plan, quadratic, problem, choice_G, objective, solution["bound"])
    increase = values["predicted_loss"] - quadratic.loss0
    link = fit_link(predicted_n, measured_n, increase)
    loss0, (measured_loss, measured_stderr) = float(loss0_N.mean()), mean_and_stderr(measured_N)
    solution.update(
        values,
        expected_loss=loss0 + link.measured(increase),
        expected_interval=[loss0 + limit for limit in link.interval(increase)],
        measured_loss=measured_loss,
        measured_loss_stderr=measured_stderr,
        portfolio=describe_candidates(candidates, candidate_losses, chosen, quadratic, assignment_of),
        interactions=interactions(candidates, candidate_losses, quadratic),
        refine={
            "evaluations": descent.evaluations,
            "solved_assignment": solution["assignment"],
            "history": descent.history,
            "kept": any(move["accepted"] for move in descent.history),
            "link": {
                "intercept": link.intercept,
                "slope": link.slope,
                "scale": "log" if link.logarithmic else "linear",
                "loss0": loss0,
                "predicted": predicted_n.tolist(),
                "measured": measured_n.tolist(),
            },
        },
    )
    if solution["assignment"] != solution["refine"]["solved_assignment"]:
        solution = without_losses(solution, "evaluated")
    solution = with_kept_loss(solution)
    write_artefact(run.solution_path, solution)
    if part[1] == 1:
        shutil.rmtree(run.file("refine"), ignore_errors=True)
    return solution


def _is_of(refined: Mapping[str, Any], solution: Mapping[str, Any]) -> bool:
    """Whether a solution is what was made of another by refining it."""
    start = refined.get("refine", {}).get("solved_assignment")
    return bool(start == solution["assignment"] and refined["budgets"] == solution["budgets"])


def _check_budgets(run: RunDir, problem: Problem, choice_G: np.ndarray) -> None:
    """Raise `UserError` unless a choice keeps its budgets, since every answer of refinement does."""
    if not problem.is_feasible(choice_G):
        costs = problem.costs(choice_G)
        over = [
            f"{b.cost.name} {costs[b.cost.name]:.6g} is above {b.limit:.6g}"
            for b in problem.budgets
            if costs[b.cost.name] > b.limit
        ]
        why = "; ".join(over) or "it has forbidden formats"
        raise UserError(
            f"the solution does not meet its budgets: {why}; run `hpcmpq solve {run.path}`, or that with other budgets"
        )


def solved_choices(problem: Problem, settings: SolverConfig, known_G: np.ndarray) -> list[np.ndarray]:
    """Answers of the solver at neighbouring budgets: as optimised as the solution is, unlike random shifts of it.

    A solver picks assignments whose predictions are too low (the optimiser's curse); a link that has seen such
    points only by chance expects too little of the solution.
    """
    choices: dict[bytes, np.ndarray] = {known_G.tobytes(): known_G}
    for factor in NEIGHBOUR_BUDGETS:
        budgets = tuple(replace(budget, limit=budget.limit * factor) for budget in problem.budgets)
        found = make_solver(on_host(settings.name)).solve(
            replace(problem, budgets=budgets),
            time_limit_s=min(settings.time_limit_s, LOCAL_SOLVE_S),
            seed=settings.seed,
        )
        if found.choice_G is not None:
            choices.setdefault(found.choice_G.tobytes(), found.choice_G)
    return list(choices.values())[1:]


def link_choices(
    space: SearchSpace, quadratic: QuadraticModel, centre_G: np.ndarray, count: int, seed: int
) -> list[np.ndarray]:
    """`count` assignments spread over predicted losses around a solution: random shifts of its options.

    Shift k moves every group by a random number of formats around a mean that runs from two formats down to
    two up, so that the points bracket the solution.
    """
    random = np.random.default_rng(seed)
    offset_G = space.offset_G
    size_G = np.bincount(space.group_P)
    choices = []
    for mean_shift in np.linspace(-2.0, 2.0, count):
        shift_G = np.rint(random.normal(mean_shift, 0.7, len(offset_G))).astype(np.int64)
        choices.append(offset_G + np.clip(centre_G - offset_G + shift_G, 0, size_G - 1))
    return choices
