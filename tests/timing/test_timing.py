"""Kernels against their formats, what is measured of a sub-graph, resumption, and solving with measured times."""

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hpcmpq.config import parse_config
from hpcmpq.errors import PlanMismatch, UserError
from hpcmpq.formats import Quantizer
from hpcmpq.models.groups import find_groups
from hpcmpq.models.outputs import forward
from hpcmpq.plan import plan_to_json
from hpcmpq.planning.stage import prepare
from hpcmpq.problem import Budget, Cost, CostTerm, Problem, Termination
from hpcmpq.quantized.input_rounding import round_operands
from hpcmpq.settings import GroupsConfig, SolverConfig
from hpcmpq.solve.costs.latency import latency_costs, mac_time_cost, original_latency_s
from hpcmpq.solve.formulate import plan_costs
from hpcmpq.solve.frontier import frontier
from hpcmpq.solve.largest_gain import LossLimit, largest_gain, loss_limit, maximize
from hpcmpq.solve.stage import solve
from hpcmpq.solvers.least_cost import least_cost
from hpcmpq.space import Group, Member, SearchSpace
from hpcmpq.store.json_files import read_json, write_json
from hpcmpq.store.of_solution import read_frontier
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir
from hpcmpq.timing import kernels, measure_times, stage
from hpcmpq.timing.combinations import RULES, Combinations, choose_combinations
from hpcmpq.timing.kernels import FormatKernel, NoKernel, Operation, find_kernel
from hpcmpq.timing.measure import schedule
from hpcmpq.timing.passes import time_whole, timed_model
from hpcmpq.timing.subgraphs import trace_model
from tests.models_of_many_kinds import make
from tests.synthetic_run import synthetic_model, write_run

pytestmark = pytest.mark.slow

PER_CHANNEL = Quantizer(group_size=None)


class Small(nn.Module):
    """A linear layer and a strided, padded convolution whose shapes every kernel takes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.linear = nn.Linear(64, 32)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        x = self.conv(input).relu()  # [N, 16, 8, 8]
        return self.linear(x.flatten(2))


@pytest.fixture(scope="module")
def small() -> dict[str, Operation]:
    torch.manual_seed(0)
    model = Small().eval().requires_grad_(False)
    inputs = {"input": torch.randn(4, 3, 16, 16)}
    groups = find_groups(model, GroupsConfig(include=("*",)), inputs)
    trace = trace_model(model, groups, inputs)
    return {groups[g].name: Operation(trace, node, use) for node, (g, use) in trace.uses.items()}


@pytest.mark.parametrize(
    ("layer", "name", "quantizer"),
    [
        ("linear", "bf16", PER_CHANNEL),
        ("linear", "w8a8", PER_CHANNEL),
        ("linear", "w8a8", Quantizer(group_size=64, activations="static")),
        ("linear", "int8", PER_CHANNEL),
        ("linear", "int4", Quantizer(group_size=32)),
        ("linear", "int4", PER_CHANNEL),
        ("conv", "bf16", PER_CHANNEL),
        ("conv", "w8a8", PER_CHANNEL),
    ],
)
def test_a_kernel_computes_its_format(small, layer: str, name: str, quantizer: Quantizer):
    """`find_kernel` compares with the fake-quantized operation; here it is seen to pass, and to be no idle copy."""
    operation = small[layer]
    kernel = find_kernel(operation, name, quantizer)
    assert kernel is not None and kernel.conversion is not None
    shape = (4, 3, 16, 16) if layer == "conv" else (4, 16, 64)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    own = operation.trace.module  # the model's own parameters
    weight = operation.weight()
    bias = operation.bias()
    exact = (
        nn.functional.conv2d(x, weight, bias, 2, 1)
        if layer == "conv"
        else nn.functional.linear(x, weight, bias)
    )
    error = float((kernel.product(kernel.conversion(x)) - exact).norm() / exact.norm())
    assert own is not None
    assert 1e-4 < error < (0.2 if name == "int4" else 0.03)


def test_the_models_own_precision_needs_no_kernel(small):
    assert find_kernel(small["linear"], "fp32", PER_CHANNEL) is None


@pytest.mark.parametrize(
    ("layer", "name", "quantizer", "reason"),
    [
        ("linear", "int3", PER_CHANNEL, "torch has none for int3"),
        ("linear", "w4a8", PER_CHANNEL, "torch has none for w4a8"),
        ("linear", "int8", Quantizer(group_size=32), "symmetric scale per channel"),
        ("linear", "int4", Quantizer(group_size=32, symmetric=False), "zero points"),
        ("conv", "int8", PER_CHANNEL, "only linear layers"),
    ],
)
def test_what_has_no_kernel_says_why(small, layer: str, name: str, quantizer: Quantizer, reason: str):
    with pytest.raises(NoKernel, match=reason):
        find_kernel(small[layer], name, quantizer)


@pytest.mark.parametrize("num_inputs", [8, 24])
def test_int8_weights_of_inputs_that_crash_torch_have_no_kernel(num_inputs: int):
    model = nn.Sequential(nn.Linear(num_inputs, 16)).eval().requires_grad_(False)
    inputs = {"input": torch.randn(4, num_inputs)}
    groups = find_groups(model, GroupsConfig(include=("*",)), inputs)
    trace = trace_model(model, groups, inputs)
    [(node, (_, use))] = trace.uses.items()
    with pytest.raises(NoKernel, match=f"multiples of 16 inputs alone, this layer has {num_inputs}"):
        find_kernel(Operation(trace, node, use), "int8", PER_CHANNEL)


def test_a_kernel_that_computes_something_else_is_none(small, monkeypatch: pytest.MonkeyPatch):
    class Doubled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * nn.functional.linear(x, small["linear"].weight(), small["linear"].bias())

    monkeypatch.setitem(kernels.KERNELS, "bf16", lambda *_: FormatKernel(None, "", Doubled()))
    with pytest.raises(NoKernel, match="differs from its definition by 100 %"):
        find_kernel(small["linear"], "bf16", PER_CHANNEL)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("out of memory")]
)
def test_out_of_memory_does_not_count_as_no_kernel(small, monkeypatch, error):
    def fails(*_args: object) -> None:
        raise error

    monkeypatch.setitem(kernels.KERNELS, "bf16", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        find_kernel(small["linear"], "bf16", PER_CHANNEL)


def test_combinations_are_grouped_when_there_are_too_many():
    abc = [list("abc")] * 4  # queries, keys, values and output
    reads, shapes = ["x", "x", "x", "y"], ["s", "t", "t", "s"]
    found = choose_combinations(abc, reads, shapes, 3, 81)
    assert (found.rule, len(found.formats)) == (RULES[0], 81)
    found = choose_combinations(abc, reads, shapes, 3, 80)
    assert (found.rule, found.tied) == (RULES[1], ((0, 1, 2), (3,)))
    assert sorted(found.formats) == sorted((f, f, f, g) for f in "abc" for g in "abc")
    found = choose_combinations(abc, reads, shapes, 3, 8)
    assert (found.rule, found.tied, len(found.formats)) == (RULES[2], ((0, 1, 2, 3),), 3)
    experts = choose_combinations([list("ab")] * 40, list(range(40)), ["up", "down"] * 20, 2, 16)
    assert (experts.rule, len(experts.tied), len(experts.formats)) == (RULES[2], 2, 4)
    odd = choose_combinations([list("abc"), list("bc")], "xx", "ss", 3, 3)
    assert odd.formats == (("b", "b"), ("c", "c")), "tied groups share what both have"


@pytest.mark.parametrize("most_pieces", [4096, 3])
def test_a_round_runs_every_combination(monkeypatch: pytest.MonkeyPatch, most_pieces: int):
    monkeypatch.setattr("hpcmpq.timing.measure.MAX_PIECES", most_pieces)
    formats = tuple((name,) for name in "abcde")
    classes = {
        "k": ([1, 3], Combinations("", ((0,),), formats)),
        "l": ([2], Combinations("", ((0,),), formats[:1])),
    }
    seen = set()
    for number in range(3):
        passes = schedule(classes, 5, number)
        assert len(passes) == 3  # six combinations with the original on two parts
        run = [(part, *place) for step in passes for part, place in enumerate(step) if place is not None]
        assert {c for _, key, c in run if key == "k"} == set(range(6))
        assert {c for _, key, c in run if key == "l"} == {0, 1}
        assert all(step[0] is None and step[4] is None for step in passes)
        seen |= set(run)
    assert len({x for x in seen if x[1] == "k"}) > 6 or most_pieces == 3, "parts swap combinations"


def test_layers_that_read_the_same_value_share_its_rounding():
    model, inputs = make("llama", torch.float32)
    groups = find_groups(model, GroupsConfig(), inputs)
    timed = timed_model(
        model, SearchSpace(groups, (("w8a8", "bf16", "fp32"),) * len(groups)), PER_CHANNEL, inputs
    )
    first = next(place for place, part in enumerate(timed.parts) if part.groups)

    def conversions(*formats: str) -> int:
        names = dict(timed.piece(first, formats).module.named_modules())
        return sum(name.startswith("convert_") for name in names)

    assert conversions("bf16", "bf16", "bf16", "fp32") == 1
    assert conversions("w8a8", "w8a8", "w8a8", "w8a8") == 2, "one for q, k and v, one for o"
    assert conversions("w8a8", "bf16", "w8a8", "bf16") == 3
    classes = timed.classes(256)
    assert [len(parts) for parts, _ in classes.values()] == [3, 3], "three equal blocks"
    tied = [found.tied for _, found in timed.classes(20).values()]
    assert tied == [((0, 1, 2), (3,)), ((0, 1), (2,))]


def test_a_whole_model_computes_what_the_formats_say():
    model, inputs = make("residual", torch.float32)
    groups = find_groups(model, GroupsConfig(), inputs)
    timed = timed_model(
        model, SearchSpace(groups, (("w8a8", "bf16", "fp32"),) * len(groups)), PER_CHANNEL, inputs
    )
    assignment = dict(zip([g.name for g in groups], ["bf16", "w8a8", "w8a8"], strict=True))
    piece = timed.whole(assignment)
    values = {node: inputs[name] for name, node in timed.trace.inputs.items()}
    piece.run(values)
    from hpcmpq.quantized.variants import Variants

    space = SearchSpace(groups, (("w8a8", "bf16", "fp32"),) * len(groups))

    def rounded(name: str, format_name: str):
        module = model.get_submodule(name)
        return module.register_forward_pre_hook(lambda m, args: round_operands(m, args, format_name, None))

    hooks = [rounded("stem", "bf16"), rounded("first", "int8"), rounded("second", "int8")]
    variants = Variants(model, space, PER_CHANNEL)
    originals = {name: p.clone() for name, p in model.named_parameters()}
    for group in groups:
        for name, tensor in variants.quantized(group, assignment[group.name]).items():
            model.get_parameter(name).data.copy_(tensor)
    expected = forward(model, inputs)
    for hook in hooks:
        hook.remove()
    for name, p in model.named_parameters():
        p.data.copy_(originals[name])
    torch.testing.assert_close(values[timed.trace.output], expected, rtol=0.02, atol=0.02)
    assert time_whole(timed, piece) > 0


def two_part_times() -> dict:
    """Times of three groups: the first two in one sub-graph, the third in another; int8 has no kernel in it."""
    rows = [
        {"formats": ["int8", "int8"], "seconds": 1.0},
        {"formats": ["int8", "bf16"], "seconds": 2.5},
        {"formats": ["bf16", "int8"], "seconds": 2.25},
        {"formats": ["bf16", "bf16"], "seconds": 3.0},
    ]
    pair = {"tied": [[0], [1]], "combinations": rows}
    alone = {"tied": [[0]], "combinations": [{"formats": ["bf16"], "seconds": 0.5}]}
    parts = [
        {"groups": [], "class": None},
        {"groups": ["a", "b"], "class": "pair"},
        {"groups": ["c"], "class": "alone"},
    ]
    phase = {"parts": parts, "classes": {"pair": pair, "alone": alone}, "shared_s": 10.0, "original_s": 20.0}
    decode = {**phase, "shared_s": 1.0, "original_s": 2.0}
    return {"phases": {"prefill": phase, "decode": decode}, "generated_tokens": 4}


def three_groups() -> SearchSpace:
    groups = tuple(Group(name, (Member(f"{name}.weight", 8, 8, macs=64),)) for name in "abc")
    return SearchSpace(groups, (("int8", "bf16"),) * 3)


def test_tokens_to_generate_are_those_of_the_plan(tmp_path):
    """Changed after `hpcmpq time`, whose times are of one token each."""
    run = write_run(tmp_path / "run", solved=False)
    values = read_json(run.plan_path, "")
    values["config"]["timing"]["generated_tokens"] = 7
    write_json(run.plan_path, values)
    write_json(run.time_path, {"fingerprint": values["fingerprint"], **two_part_times()})
    times = read_plan(run).times
    assert times is not None and original_latency_s(times) == 20.0 + 7 * 2.0


def test_latency_is_the_sum_over_sub_graphs():
    costs = {cost.name: cost for cost in latency_costs(three_groups(), two_part_times())}
    offset_G = np.array([0, 2, 4])
    choice_G = np.array([0, 2, 5])  # int8, int8, bf16
    assert costs["prefill_s"].value(choice_G, offset_G) == 10.0 + 1.0 + 0.5
    assert costs["decode_s"].value(choice_G, offset_G) == 1.0 + 1.0 + 0.5
    assert costs["latency_s"].value(choice_G, offset_G) == 11.5 + 4 * 2.5
    assert costs["latency_s"].value(np.array([0, 2, 4]), offset_G) == np.inf, "no kernel, no time"
    assert original_latency_s(two_part_times()) == 28.0


def test_groups_that_were_measured_together_must_agree():
    times = two_part_times()
    pair = {
        "tied": [[0, 1]],
        "combinations": [{"formats": [f, f], "seconds": s} for f, s in (("int8", 1.0), ("bf16", 3.0))],
    }
    times["phases"]["prefill"]["classes"]["pair"] = pair
    cost = latency_costs(three_groups(), times)[1]
    offset_G = np.array([0, 2, 4])
    assert cost.value(np.array([1, 3, 5]), offset_G) == 10.0 + 3.0 + 0.5
    assert cost.value(np.array([0, 3, 5]), offset_G) == np.inf


def test_mac_time_counts_the_wider_factor():
    space = SearchSpace(three_groups().groups[:1], (("int4", "w8a8", "bf16", "fp32"),))
    assert mac_time_cost(space).linear_P.tolist() == [64.0, 32.0, 64.0, 128.0]


def random_problem(seed: int, cross: float) -> tuple[Problem, Cost]:
    """Five groups of three options, a loss that falls as a joint cost of pairs of groups rises."""
    random = np.random.default_rng(seed)
    group_P = np.repeat(np.arange(5), 3)
    linear_P = np.sort(random.exponential(1.0, (5, 3)))[:, ::-1].ravel()
    quad_PP = cross * random.normal(size=(15, 15))
    quad_PP = quad_PP + quad_PP.T
    quad_PP[group_P[:, None] == group_P[None, :]] = 0.0
    tables = [
        np.add.outer(*np.sort(random.exponential(1.0, (2, 3)))) + 0.2 * random.random((3, 3))
        for _ in range(2)
    ]
    tables[0][0, 2] = np.inf
    alone = np.sort(random.exponential(1.0, 3))
    terms = (CostTerm((0, 1), tables[0]), CostTerm((2, 3), tables[1]), CostTerm((4,), alone))
    return Problem(linear_P, quad_PP, group_P), Cost("latency_s", "seconds", np.zeros(15), terms, 2.0)


@pytest.mark.parametrize("cross", [0.0, 0.05])
@pytest.mark.parametrize("seed", range(4))
def test_the_largest_gain_equals_enumeration(seed: int, cross: float):
    problem, cost = random_problem(seed, cross)
    choices = [np.array(c) for c in itertools.product(*np.arange(15).reshape(5, 3).tolist())]
    loss = np.array([problem.objective(c) for c in choices])
    time = np.array([cost.value(c, problem.offset_G) for c in choices])
    limit = float(np.quantile(loss, 0.3))
    best = time[loss <= limit].min()
    solution = largest_gain(problem, cost, LossLimit(limit, "loss", limit), SolverConfig(time_limit_s=10.0))
    assert problem.objective(solution.choice_G) <= limit + 1e-9
    assert cost.value(solution.choice_G, problem.offset_G) == pytest.approx(solution.objective)
    assert solution.bound <= best + 1e-9
    assert solution.objective == pytest.approx(best) and solution.termination is Termination.OPTIMAL
    ties = loss[(time <= best + 1e-9)]
    assert problem.objective(solution.choice_G) == pytest.approx(ties.min()), "of equal times the least loss"


def test_least_cost_names_what_cannot_be_met():
    problem, cost = random_problem(0, 0.0)
    loss = Budget(Cost("loss_mse", "", problem.linear_P), 0.0)
    solution = least_cost(dataclasses.replace(problem, budgets=(loss,)), cost, time_limit_s=5.0, seed=0)
    assert solution.choice_G is None
    assert "loss_mse" in solution.detail


def test_a_loss_limit_is_a_share_of_the_mean_square():
    model = dataclasses.replace(synthetic_model(), task_loss_mean_square=4.0)
    assert loss_limit(model, 0.01, None).value == 0.04
    with pytest.raises(UserError, match="use --max-loss-mse"):
        loss_limit(model, None, 0.1)
    with pytest.raises(UserError, match="secant does not measure"):
        loss_limit(synthetic_model(), 0.01, None)
    with pytest.raises(UserError, match="needs one of"):
        loss_limit(synthetic_model(), None, None)


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = RunDir(tmp_path_factory.mktemp("timed") / "run")
    values = {
        "model": {"factory": "hpcmpq.examples.digits:model", "device": "cpu"},
        "calibration": {
            "data": "hpcmpq.examples.digits:calibration",
            "num_samples": 8,
            "held_out": 2,
            "samples_per_pass": 8,
        },
        "groups": {"include": ["*"]},
        "formats": ["int3", "w8a8", "bf16", "fp32"],
        "quantizer": {"group_size": None},
        "evaluation": {"num_samples": 2},
        "timing": {"rounds": 2, "threads": 1},
    }
    prepare(parse_config(values), run, ())
    return run


def test_times_are_measured_once_and_resumed(planned: RunDir, monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[int, int]] = []
    values = measure_times(planned, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]
    phase = values["phases"]["batch"]
    names = [group.name for group in read_plan(planned).space.groups]
    assert [name for part in phase["parts"] for name in part["groups"]] == names
    assert any("int3: torch has none" in reason for reason in phase["no_kernel"])
    paths = sorted(planned.times_path.iterdir())
    assert [path.name for path in paths] == ["batch-000.json", "batch-001.json"]
    before = [path.read_bytes() for path in paths]
    paths[1].unlink()
    measure_times(planned, lambda *_: None)
    assert paths[0].read_bytes() == before[0], "what is there is left alone"
    assert paths[1].exists()
    paths[1].write_bytes(before[0])
    again = measure_times(planned, lambda *_: None)
    assert again == read_json(planned.time_path, "")
    assert paths[0].read_bytes() == before[0] != paths[1].read_bytes(), "a round counts once"
    monkeypatch.setattr(stage, "describe_machine", lambda device: {"processor": "another"})
    with pytest.raises(PlanMismatch, match="another machine"):
        measure_times(planned, lambda *_: None)


def test_measured_times_price_assignments(planned: RunDir):
    measure_times(planned, lambda *_: None)
    plan = read_plan(planned)
    cost = plan_costs(plan)["latency_s"]
    offset_G = np.searchsorted(plan.space.group_P, np.arange(len(plan.space.groups)))
    phase = read_json(planned.time_path, "")["phases"]["batch"]
    rows = [phase["classes"][part["class"]]["combinations"] for part in phase["parts"] if part["groups"]]
    expected = phase["shared_s"] + sum(
        row["seconds"] for own in rows for row in own if row["formats"] == ["bf16"]
    )
    bf16_G = plan.space.choice({group.name: "bf16" for group in plan.space.groups})
    assert cost.value(bf16_G, offset_G) == pytest.approx(expected)
    int3_G = plan.space.choice({group.name: "int3" for group in plan.space.groups})
    assert cost.value(int3_G, offset_G) == np.inf


def timed_synthetic_run(path: Path) -> RunDir:
    """The synthetic run with times that grow with bits: 1 ms a bit and group, one sub-graph per group."""
    run = write_run(path, solved=False)
    plan = read_plan(run)
    formats = plan.space.formats[0]
    rows = [{"formats": [name], "seconds": 1e-3 * int(name[3:])} for name in formats if name != "int2"]
    parts = [{"groups": [group.name], "class": "k"} for group in plan.space.groups]
    phase = {
        "parts": parts,
        "classes": {"k": {"tied": [[0]], "combinations": rows}},
        "shared_s": 0.01,
        "original_s": 1.0,
    }
    times = {"fingerprint": plan.fingerprint, "phases": {"prefill": phase}, "generated_tokens": 0}
    write_json(run.time_path, times)
    return run


def test_a_latency_budget_needs_times_and_then_holds(tmp_path: Path):
    run = write_run(tmp_path / "untimed", solved=False)
    with pytest.raises(
        UserError, match="budget latency_s needs measured times .* run `hpcmpq time RUN` first"
    ):
        solve(run, {"latency_s": 0.1}, SolverConfig(time_limit_s=2.0))
    run = timed_synthetic_run(tmp_path / "timed")
    values = solve(run, {"latency_s": 0.122}, SolverConfig(time_limit_s=2.0))
    assert values["costs"]["latency_s"] <= 0.122 + 1e-9
    assert "int2" not in values["assignment"].values(), "int2 has no kernel"
    assert "latency_s" not in values["uniform"]["int2"]["costs"]
    assert values["uniform"]["int4"]["costs"]["latency_s"] == pytest.approx(0.01 + 28 * 4e-3)


@pytest.mark.parametrize(
    ("cost", "limits", "others"),
    [("latency_s", [0.1, 0.15], {}), ("weight_bits", [4.0, 5.0], {"prefill_s": 0.2})],
    ids=["over times", "within times"],
)
def test_a_frontier_of_earlier_times_is_none_of_these(
    tmp_path: Path, cost: str, limits: list[float], others: dict[str, float]
):
    run = timed_synthetic_run(tmp_path / "run")
    settings = SolverConfig(time_limit_s=0.5)
    frontier(run, cost, np.array(limits), others, settings, lambda *_: None)
    assert read_frontier(run, read_plan(run)) is not None
    times = json.loads(run.time_path.read_text())
    times["phases"]["prefill"]["shared_s"] = 0.02
    write_json(run.time_path, times)
    assert read_frontier(run, read_plan(run)) is None
    run.time_path.unlink()
    assert read_frontier(run, read_plan(run)) is None


def test_a_frontier_without_latencies_outlasts_new_times(tmp_path: Path):
    run = timed_synthetic_run(tmp_path / "run")
    settings = SolverConfig(time_limit_s=0.5)
    frontier(run, "weight_bits", np.array([4.0, 5.0]), {}, settings, lambda *_: None)
    run.time_path.unlink()
    assert read_frontier(run, read_plan(run)) is not None


def test_times_of_another_plan_are_not_used(tmp_path: Path):
    run = timed_synthetic_run(tmp_path / "run")
    times = json.loads(run.time_path.read_text())
    write_json(run.time_path, {**times, "fingerprint": "another"})
    with pytest.raises(UserError, match="run `hpcmpq time RUN` first"):
        solve(run, {"latency_s": 0.1}, SolverConfig())


@pytest.mark.parametrize("key", ["phases", "fingerprint"])
def test_times_that_lack_something_are_damaged_or_not_used(tmp_path, key: str):
    """Those of an earlier version have no checksum that could say so."""
    run = timed_synthetic_run(tmp_path / "run")
    times = json.loads(run.time_path.read_text())
    del times[key]
    write_json(run.time_path, times)
    with pytest.raises(UserError, match=r"time\.json is damaged \(no 'phases'\)|run `hpcmpq time RUN` first"):
        solve(run, {"latency_s": 0.122}, SolverConfig())


def test_maximize_writes_the_solution_with_its_gain(tmp_path: Path):
    run = timed_synthetic_run(tmp_path / "run")
    settings = SolverConfig(drop_cross_terms=True, time_limit_s=5.0)
    values = maximize(run, "time_gain", LossLimit(0.05, "loss_increase", 0.05), {}, settings)
    found = values["maximized"]
    assert found["original"] == 1.0 and found["saved"] == pytest.approx(1.0 - values["costs"]["latency_s"])
    assert found["bound"] >= found["saved"] - 1e-9
    assert read_json(run.solution_path, "")["maximized"] == found
    assert values["budgets"] == {"latency_s": pytest.approx(values["costs"]["latency_s"])}
    assert values["predicted_loss"] - values["predicted_cross_terms"] <= 0.05 + 1e-9
    memory = maximize(run, "memory_gain", LossLimit(0.05, "loss_increase", 0.05), {}, settings)
    assert memory["costs"]["size_bytes"] <= values["costs"]["size_bytes"]
    plan = read_plan(run)
    in_files = plan.fixed_bytes + 2.0 * sum(group.numel for group in plan.space.groups)
    write_json(run.plan_path, plan_to_json(dataclasses.replace(plan, original_bits=16)))
    memory = maximize(run, "memory_gain", LossLimit(0.05, "loss_increase", 0.05), {}, settings)
    assert memory["maximized"]["original"] == in_files
    with pytest.raises(UserError, match="unknown gain 'speed'"):
        maximize(run, "speed", LossLimit(0.05, "loss_increase", 0.05), {}, settings)
