"""The refine stage: true-loss descent from the solution, and the link from predicted to measured loss.

Losses that decide are measured on calibration samples; losses that are reported on held-out ones.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from hpcmpq.config import parse_config
from hpcmpq.errors import UserError
from hpcmpq.models.data.kept_samples import planned_splits
from hpcmpq.models.data.samples import Samples
from hpcmpq.models.load import load_model
from hpcmpq.quadratic import QuadraticModel
from hpcmpq.quantized.losses import Comparison
from hpcmpq.quantized.variants import open_variants
from hpcmpq.refine.descent import TrueLoss, descend
from hpcmpq.refine.link import fit_link
from hpcmpq.solve.formulate import make_problem, uniform_choices
from hpcmpq.solve.outcome import assignment_values, objective_value
from hpcmpq.solve.settings import settings_of
from hpcmpq.solve.shrinkage import shrunk
from hpcmpq.solvers import make_solver
from hpcmpq.space import SearchSpace
from hpcmpq.store.json_files import write_artefact
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.quadratic_file import read_quadratic
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.solution_file import read_solution

EVALUATIONS_PER_GROUP = 4
"""Default budget: the neighbours of two assignments."""


def refine(run: RunDir, on_evaluation: Callable[[int, int], None]) -> dict[str, Any]:
    """Refine `solution.json` in place; returns its new values.

    Adds `measured_loss` with its standard error (held-out samples), `expected_loss` and `expected_interval`
    (the link at the predicted loss), and `refine`: evaluations, history of moves and the points of the link.

    Raises:
        UserError: If nothing is solved yet, there are no held-out samples, or the data have changed.
    """
    plan = read_plan(run)
    config = parse_config(plan.config, "plan.json")
    solution = read_solution(run)
    settings = settings_of(plan, **solution["solver"])
    quadratic = shrunk(read_quadratic(run.quadratic_path), settings.shrink)
    problem = make_problem(plan, quadratic, solution["budgets"], settings)
    model = load_model(config.model, import_paths=plan.import_paths)
    splits = planned_splits(config, plan)
    if not len(splits.held_out):
        raise UserError("refine needs held-out samples: set calibration.held_out above 0 and plan again")
    variants = open_variants(run, plan, model)
    device = next(model.parameters()).device

    def losses_on(samples: Samples) -> Callable[[list[dict[str, str]]], list[np.ndarray]]:
        comparison = Comparison(
            variants, samples.to(device), (config.objective,), config.calibration.samples_per_pass
        )
        return lambda assignments: [m.values[config.objective] for m in comparison.measure(assignments)]

    on_calibration, on_held_out = losses_on(splits.calibration), losses_on(splits.held_out)
    true_loss = TrueLoss(
        lambda choice_G: on_calibration([plan.space.assignment(choice_G)])[0],
        config.refine.max_evaluations or EVALUATIONS_PER_GROUP * len(plan.space.groups),
        on_evaluation,
    )
    start_G = plan.space.choice(solution["assignment"])
    uniforms = [c for c in uniform_choices(plan.space).values() if problem.is_feasible(c)]
    choice_G, history = descend(
        problem, start_G, uniforms[-1:], true_loss, make_solver(settings.name), settings.seed
    )
    points = link_choices(plan.space, quadratic, choice_G, config.refine.link_points, settings.seed)
    loss0_N, measured_N, *point_losses = on_held_out(
        [{}, *(plan.space.assignment(c) for c in (choice_G, *points))]
    )
    predicted_n = np.array([quadratic.predicted_loss(c) - quadratic.loss0 for c in points])
    measured_n = np.array([loss_N.mean() - loss0_N.mean() for loss_N in point_losses])
    objective = objective_value(problem, quadratic, settings, choice_G)
    values = assignment_values(plan, quadratic, problem, choice_G, objective, solution["bound"])
    increase = values["predicted_loss"] - quadratic.loss0
    link = fit_link(predicted_n, measured_n, increase)
    loss0 = float(loss0_N.mean())
    solution.update(
        values,
        expected_loss=loss0 + link.measured(increase),
        expected_interval=[loss0 + limit for limit in link.interval(increase)],
        measured_loss=float(measured_N.mean()),
        measured_loss_stderr=float(measured_N.std(ddof=min(1, len(measured_N) - 1)) / len(measured_N) ** 0.5),
        refine={
            "evaluations": len(true_loss.known),
            "solved_assignment": solution["assignment"],
            "history": history,
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
    write_artefact(run.solution_path, solution)
    return solution


def link_choices(
    space: SearchSpace, quadratic: QuadraticModel, centre_G: np.ndarray, count: int, seed: int
) -> list[np.ndarray]:
    """`count` assignments spread over predicted losses around a solution: random shifts of its options.

    Shift k moves every group by a random number of formats around a mean that runs from two formats down to
    two up, so that the points bracket the solution.
    """
    random = np.random.default_rng(seed)
    offset_G = np.searchsorted(space.group_P, np.arange(len(space.groups)))
    size_G = np.bincount(space.group_P)
    choices = []
    for mean_shift in np.linspace(-2.0, 2.0, count):
        shift_G = np.rint(random.normal(mean_shift, 0.7, len(offset_G))).astype(np.int64)
        choices.append(offset_G + np.clip(centre_G - offset_G + shift_G, 0, size_G - 1))
    return choices
