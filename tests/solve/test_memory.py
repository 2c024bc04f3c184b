"""Memory that solving really takes, as the kernel counts it, against the prediction; what fits is done."""

import ctypes
import resource
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.instances import Shape, make_instance
from hpcmpq.calibrate.reduce import batches_kept
from hpcmpq.plan import plan_to_json
from hpcmpq.planning.cost_estimate import PEAK_FACTOR
from hpcmpq.problem import Problem, Solution, Termination
from hpcmpq.quadratic import QuadraticModel
from hpcmpq.solve.memory import solve_peak_bytes
from hpcmpq.solve.settings import settings_of
from hpcmpq.solve.stage import solve
from hpcmpq.solvers import memory, quadratic
from hpcmpq.solvers.memory import Room, convex_bytes, lifted_bytes, room
from hpcmpq.solvers.proof import record
from hpcmpq.solvers.quadratic import QuadraticSolver
from hpcmpq.space import Group, Member, SearchSpace
from hpcmpq.store.json_files import write_json
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.quadratic_file import write_quadratic
from hpcmpq.store.run_dir import RunDir
from tests.calling import ROOT
from tests.synthetic_run import FORMATS, synthetic_plan

OTHER_BYTES = 4e7
"""Resident beside matrices: what CP-SAT and BLAS take, pages that malloc keeps."""


def write_run(path: Path, num_groups: int, num_batches: int) -> RunDir:
    """A planned and reduced run with a hard quadratic of so many groups of seven formats."""
    problem, plan = make_instance(Shape(num_groups)), synthetic_plan()
    sizes = np.diff(problem.budgets[0].cost.linear_P.reshape(num_groups, 7)[:, :2], axis=1).ravel()
    numel_G = np.rint(1e6 * sizes / sizes.sum()).astype(int)
    groups = tuple(
        Group(f"layers.{g}", (Member(f"layers.{g}.weight", 1, int(n), macs=int(n)),), g)
        for g, n in enumerate(numel_G)
    )
    plan = replace(plan, space=SearchSpace(groups, (FORMATS,) * num_groups))
    model = QuadraticModel(
        option_group=tuple(plan.space.groups[option.group].name for option in plan.space.options),
        option_format=tuple(option.format for option in plan.space.options),
        linear_P=problem.linear_P,
        quad_PP=problem.quad_PP,
        stderr_linear_P=0.05 * problem.linear_P,
        stderr_quad_PP=0.1 * np.abs(problem.quad_PP),
        loss0=0.0,
        objective="kl",
        method="secant",
        num_samples=64,
        batch_linear_BP=np.tile(problem.linear_P, (num_batches, 1)),
        batch_quad_BPP=np.tile(problem.quad_PP, (num_batches, 1, 1)),
    )
    run = RunDir(path)
    write_json(run.plan_path, plan_to_json(plan))
    write_quadratic(run.quadratic_path, model, model.linear_P, plan.fingerprint)
    return run


def status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def resident_peak(run: RunDir, time_limit_s: float) -> int:
    """The most resident bytes of stage solve beyond what this process had."""
    settings = settings_of(read_plan(run), time_limit_s=time_limit_s)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts anew
    before = status("VmRSS")
    solve(run, {"weight_bits": 4.0}, settings)
    return status("VmHWM") - before


def print_peak(first: str, path: str) -> None:
    """For a process of its own: pages that other tests left would be counted in this one."""
    resident_peak(RunDir(Path(first)), 2.0)  # what is imported late is there from now on
    print("\n", resident_peak(RunDir(Path(path)), 8.0))


@pytest.mark.slow
@pytest.mark.parametrize(("num_groups", "num_batches"), [(80, 8), (150, 0)])
def test_a_solve_takes_what_is_predicted_from_its_groups_and_options(
    num_groups: int, num_batches: int, tmp_path: Path
):
    first, run = write_run(tmp_path / "first", 12, 2), write_run(tmp_path / "run", num_groups, num_batches)
    program = "import sys; from tests.solve.test_memory import print_peak; print_peak(*sys.argv[1:])"
    output = subprocess.run(
        [sys.executable, "-c", program, first.path, run.path],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    peak = int(output.splitlines()[-1])
    plan = read_plan(run)
    predicted = solve_peak_bytes(plan.space, plan.config.solver, num_batches)
    print(f"{num_groups} groups: {peak / 1e6:.0f} MB, predicted {predicted / 1e6:.0f}")
    assert peak < predicted + OTHER_BYTES
    # In these seconds a busy machine does not come to all that a proof may hold.
    assert predicted < 1.25 * PEAK_FACTOR * peak + OTHER_BYTES


def solved_within(room_bytes: float, monkeypatch: pytest.MonkeyPatch) -> Solution:
    limited = Room(room_bytes, "the memory of its Slurm job")
    monkeypatch.setattr(quadratic, "room", lambda: limited)
    monkeypatch.setattr(record, "room", lambda: limited)
    return QuadraticSolver().solve(make_instance(Shape(12)), time_limit_s=20.0, seed=0)


def test_where_time_leaves_no_room_for_the_relaxation_the_answer_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(quadratic, "first_bound_s", lambda compact: 1e9)
    answer = QuadraticSolver().solve(make_instance(Shape(12)), time_limit_s=2.0, seed=0)
    assert answer.detail.startswith("2 s leave no room for the relaxation")


def test_where_the_relaxation_does_not_fit_a_smaller_bound_is_taken(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "OTHER_BYTES", 0.0)  # as if it were large
    needed, convex = lifted_bytes(12, 7), convex_bytes(84)
    best = solved_within(2 * needed, monkeypatch)
    assert best.termination is Termination.OPTIMAL
    for left, name in ((0.9 * needed, "convex bound"), (0.9 * convex, "bound by least cross terms")):
        answer = solved_within(left, monkeypatch)
        assert answer.termination is not Termination.OPTIMAL
        assert answer.bound is not None and answer.bound < best.objective <= answer.objective * (1 + 1e-9)
        assert f"too large for more than a {name}" in answer.detail
        assert "the memory of its Slurm job leaves" in answer.detail
        assert set(answer.part_s) == {"search", name}


def test_branching_ends_where_no_more_nodes_fit(monkeypatch: pytest.MonkeyPatch):
    """Cross terms without structure, whose relaxation is not tight."""
    rng = np.random.default_rng(0)
    half_PP = rng.standard_normal((96, 96))
    group_P = np.repeat(np.arange(24), 4)
    quad_PP = np.where(group_P[:, None] != group_P, half_PP + half_PP.T, 0.0)
    problem = Problem(rng.standard_normal(96), quad_PP, group_P)
    monkeypatch.setattr(record, "room", lambda: Room(1e5, "the memory of its control group"))
    answer = QuadraticSolver().solve(problem, time_limit_s=300.0, seed=0)
    assert answer.bound is not None and answer.objective is not None and answer.bound < answer.objective
    assert answer.seconds < 250.0
    assert answer.detail == (
        "the memory limits the proof: the memory of its control group leaves no room for more than 1 node"
    )


SYSTEM = {
    "proc/self/status": "Name:\tpython\nVmSize:\t  9000000 kB\nVmRSS:\t   1000 kB\nVmData:\t 500 kB\n",
    "proc/meminfo": "MemTotal: 64000000 kB\nMemAvailable: 32000000 kB\n",
}


@pytest.mark.parametrize(
    ("files", "environment", "expected"),
    [
        ({}, {}, (32_000_000 * 1024, "the machine's free memory")),
        ({}, {"SLURM_MEM_PER_NODE": "4000"}, (4000 * 2**20 - 1_024_000, "the memory of its Slurm job")),
        (
            {},
            {"SLURM_MEM_PER_CPU": "500", "SLURM_CPUS_ON_NODE": "4"},
            (2000 * 2**20 - 1_024_000, "the memory of its Slurm job"),
        ),
        ({}, {"SLURM_MEM_PER_NODE": "0"}, (32_000_000 * 1024, "the machine's free memory")),
        (
            {
                "proc/self/cgroup": "0::/job/step\n",
                "cg/job/memory.max": "3000000\n",
                "cg/job/step/memory.max": "max\n",
            },
            {},
            (3_000_000 - 1_024_000, "the memory of its control group"),
        ),
        (
            {
                "proc/self/cgroup": "5:cpu,memory:/a\n4:pids:/a\n",
                "cg/memory/a/memory.limit_in_bytes": "5000000\n",
                "cg/memory/memory.limit_in_bytes": "9223372036854771712\n",
            },
            {},
            (5_000_000 - 1_024_000, "the memory of its control group"),
        ),
    ],
)
def test_the_least_limit_counts_less_what_the_process_has(
    files: dict[str, str], environment: dict[str, str], expected: tuple[int, str], tmp_path: Path
):
    for name, text in (SYSTEM | files).items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert room(tmp_path / "proc", tmp_path / "cg", environment) == expected


def test_limits_of_address_space_count_too_and_without_any_nothing_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert room(tmp_path, tmp_path, {}) == (float("inf"), "nothing")
    for name, text in SYSTEM.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    soft = {resource.RLIMIT_AS: 9_500_000 * 1024, resource.RLIMIT_DATA: resource.RLIM_INFINITY}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (soft[kind], resource.RLIM_INFINITY))
    assert room(tmp_path / "proc", tmp_path / "cg", {}) == (500_000 * 1024, "RLIMIT_AS")


def test_the_prediction_grows_with_options_and_batches():
    space = namedtuple("Sizes", "groups formats num_options")
    large = space((None,) * 2000, (FORMATS,) * 2000, 14000)
    settings = settings_of(synthetic_plan())
    assert solve_peak_bytes(large, settings) > 4e9  # type: ignore[arg-type]
    assert batches_kept(8, 14000) == 0 and batches_kept(8, 1000) == 8 and batches_kept(1, 1000) == 0
