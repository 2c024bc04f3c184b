"""A small transformer's run directory, written by the package's own functions without a model."""

from pathlib import Path

import numpy as np

from hpcmpq.calibrate.reduce import mirror
from hpcmpq.config import parse_config
from hpcmpq.plan import Plan, content_hash, make_units, plan_to_json
from hpcmpq.problem import Solution, Termination
from hpcmpq.quadratic import QuadraticModel
from hpcmpq.settings import SolverConfig
from hpcmpq.solve.formulate import make_problem, uniform_choices
from hpcmpq.solve.outcome import describe
from hpcmpq.solve.shrinkage import shrunk
from hpcmpq.space import Group, Member, SearchSpace
from hpcmpq.store.json_files import read_json, write_json
from hpcmpq.store.quadratic_file import write_quadratic
from hpcmpq.store.run_dir import RunDir

FORMATS = ("int2", "int3", "int4", "int5", "int6", "int7", "int8")
SHAPES = {
    "self_attn.q_proj": (128, 128),
    "self_attn.k_proj": (128, 128),
    "self_attn.v_proj": (128, 128),
    "self_attn.o_proj": (128, 128),
    "mlp.gate_proj": (384, 128),
    "mlp.up_proj": (384, 128),
    "mlp.down_proj": (128, 384),
}
NUM_BLOCKS = 4
LOSS0 = 0.0


def write_run(path: Path, *, solved: bool = True, frontier: bool = False, evaluated: bool = False) -> RunDir:
    """Write a planned and reduced run, and on request its later artefacts."""
    run = RunDir(path)
    plan, model = synthetic_plan(), synthetic_model()
    write_json(run.plan_path, plan_to_json(plan))
    write_quadratic(run.quadratic_path, model, model.linear_P, plan.fingerprint)
    if solved:
        write_json(run.solution_path, solution_values(plan, model, 3.0))
    if frontier:
        limits = (2.25, 2.5, 3.0, 3.5, 4.0, 5.0)
        points = [solution_values(plan, model, limit) for limit in limits]
        write_json(run.frontier_path, frontier_values(points))
    if evaluated:
        write_json(run.evaluation_path, evaluation_values(plan, model))
    return run


def round_again(run: RunDir) -> None:
    """Say in `solution.json` that its weights were rounded again, and in `evaluation.json` that it is of others."""
    solution = read_json(run.solution_path, "")
    attempt = {
        "method": "qep", "strength": 0.5, "num_weights": 1, "held_out_loss": 0.25, "held_out_loss_stderr": 0.01,
        "held_out_loss_before": 0.5, "difference": -0.25, "difference_stderr": 0.01, "kept": True, "seconds": 1.0,
    }  # fmt: skip
    made = {"codes": "c" * 16, "parameters": [], "method": "qep", "strength": 0.5}
    assignment = content_hash(dict(solution["assignment"]))
    solution["reround"] = {**made, "assignment": assignment, "history": [attempt]}
    write_json(run.solution_path, solution)
    if run.evaluation_path.exists():
        write_json(run.evaluation_path, {**read_json(run.evaluation_path, ""), "codes": None})


def synthetic_plan() -> Plan:
    """28 groups in 4 blocks, seven formats each."""
    config = parse_config(
        {
            "model": {"path": "models/tiny-llama"},
            "calibration": {"data": "text.txt", "num_samples": 64, "sequence_length": 128},
            "budgets": {"weight_bits": 3.0},
        }
    )
    groups = tuple(
        Group(
            f"model.layers.{block}.{kind}",
            (Member(f"model.layers.{block}.{kind}.weight", rows, columns, macs=rows * columns),),
            block,
        )
        for block in range(NUM_BLOCKS)
        for kind, (rows, columns) in SHAPES.items()
    )
    fingerprint = content_hash("synthetic")
    return Plan(
        config=config,
        space=SearchSpace(groups, (FORMATS,) * len(groups)),
        units=make_units(fingerprint, len(groups), 64, groups_per_unit=len(groups), samples_per_unit=8),
        facts={"objective": "kl"},
        fingerprint=fingerprint,
        import_paths=(),
        fixed_bytes=132_000,
        environment={"python": "3.11.7", "hpcmpq": "0.1.0", "torch": "2.13.0", "commit": "0123456789abcdef"},
    )


def synthetic_model() -> QuadraticModel:
    """Losses that fall fourfold a bit, with features shared along the residual stream."""
    space = synthetic_plan().space
    generator = np.random.default_rng(0)
    bits_P = np.array([int(option.format[3:]) for option in space.options])
    weight_G = np.array([group.numel for group in space.groups]) / 16384
    sensitivity_G = weight_G * generator.lognormal(0.0, 0.8, len(space.groups))
    linear_P = 0.02 * sensitivity_G[space.group_P] * 4.0 ** (2 - bits_P)
    shared_P = generator.normal(0.4, 0.4, len(space.groups))[space.group_P]
    phi_RP = generator.normal(size=(24, space.num_options)) + 0.3 * shared_P
    phi_RP *= np.sqrt(2 * linear_P / (phi_RP**2).sum(0))
    quad_PP = mirror(0.5 * phi_RP.T @ phi_RP, space.group_P)
    empty = np.zeros((0, space.num_options))
    return QuadraticModel(
        option_group=tuple(space.groups[option.group].name for option in space.options),
        option_format=tuple(option.format for option in space.options),
        linear_P=linear_P,
        quad_PP=quad_PP,
        stderr_linear_P=0.05 * linear_P,
        stderr_quad_PP=0.1 * np.abs(quad_PP),
        loss0=LOSS0,
        objective="kl",
        method="secant",
        num_samples=64,
        batch_linear_BP=empty,
        batch_quad_BPP=np.zeros((0, *quad_PP.shape)),
    )


def solution_values(plan: Plan, model: QuadraticModel, limit: float) -> dict:
    """What the solve stage writes for a greedy choice within `limit` payload bits per weight."""
    settings = SolverConfig()
    model = shrunk(model, settings.shrink)
    problem = make_problem(plan, model, {"weight_bits": limit}, settings)
    choice_G = problem.offset_G.copy()
    while True:
        better = [choice_G + (np.arange(len(choice_G)) == g) for g in range(len(choice_G))]
        better = [c for g, c in enumerate(better) if c[g] < problem.offset_G[g] + len(FORMATS)]
        better = [c for c in better if problem.is_feasible(c)]
        if not better:
            break
        choice_G = min(better, key=problem.objective)
    objective = problem.objective(choice_G)
    costs = {b.cost.name: b.cost.value(choice_G, problem.offset_G) for b in problem.budgets}
    solution = Solution(
        Termination.FEASIBLE, choice_G, objective, 0.96 * objective, costs, 1.7, "search ended"
    )
    return describe(plan, model, problem, solution, {"weight_bits": limit}, settings)


def frontier_values(points: list[dict]) -> dict:
    """What the frontier stage writes for solutions over a range of budgets."""
    kept = ("assignment", "objective", "bound", "gap", "termination", "seconds", "predicted_loss")
    return {
        "format_version": 1,
        "cost": "weight_bits",
        "unit": "bits",
        "other_budgets": {},
        "points": [
            {
                "limit": point["budgets"]["weight_bits"],
                **{name: point[name] for name in kept},
                "costs": {"weight_bits": point["costs"]["weight_bits"]},
            }
            for point in points
        ],
        "uniform": {
            name: {"cost": uniform["costs"]["weight_bits"], "predicted_loss": uniform["predicted_loss"]}
            for name, uniform in points[0]["uniform"].items()
        },
        "fingerprint": synthetic_plan().fingerprint,
    }


def evaluation_values(plan: Plan, model: QuadraticModel) -> dict:
    """What the evaluate stage writes, with measured losses a few per cent off the predicted ones."""
    solution = solution_values(plan, model, 3.0)
    quantized = 1.04 * solution["predicted_loss"]
    uniform = 0.97 * model.predicted_loss(uniform_choices(plan.space)["int3"])
    kl = {"original": 0.0, "quantized": quantized, "uniform": uniform}
    ce = {name: 1.21 + value for name, value in kl.items()}
    return {
        "format_version": 1,
        "loss": ce,
        "kl": kl,
        "ce": ce,
        "perplexity": {name: float(np.exp(value)) for name, value in ce.items()},
        "kl_stderr": {"original": 0.0, "quantized": 0.03 * quantized, "uniform": 0.03 * uniform},
        "ce_stderr": dict.fromkeys(ce, 0.02),
        "uniform_format": "int3",
        "uniform_costs": solution["uniform"]["int3"]["costs"],
        "num_tokens": 8128,
        "num_samples": 64,
        "samples_hash": content_hash("samples"),
        "objective": "kl",
        "engine": "torch",
        "world_size": 1,
        "seconds": 2.5,
        "assignment": solution["assignment"],
        "fingerprint": plan.fingerprint,
    }
