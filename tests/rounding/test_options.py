"""Codes of options in work units: what they are fitted to, and the same bytes whoever makes them in whatever order."""

import dataclasses
import logging
import shutil
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from hpcmpq.errors import UserError
from hpcmpq.executors.in_process import InProcess
from hpcmpq.formats import FORMATS, Quantizer
from hpcmpq.models.data.samples import Samples
from hpcmpq.models.data.splits import load_splits
from hpcmpq.models.load import load_model
from hpcmpq.plan import Plan
from hpcmpq.quantized.stored_codes import StoredCodes
from hpcmpq.quantizers import choose_qparams, encode
from hpcmpq.rounding import original_inputs, pieces
from hpcmpq.rounding.option_units import pending_units, round_options, units_of
from hpcmpq.rounding.options import make_codes
from hpcmpq.rounding.original_inputs import OriginalInputs
from hpcmpq.rounding.worker import make_worker
from hpcmpq.space import Group, Member
from hpcmpq.store.run_dir import RunDir
from tests.export.planned import llama, plan_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDir, Plan]:
    """Codes of a Llama of two blocks and a head."""
    return plan_run(
        tmp_path_factory.mktemp("rounded"), llama(), torch.float32, formats=["int2", "int3"],
        quantizer={"rounding": "gptq", "group_size": 64}, groups={"include": ["*_proj", "lm_head"]},
    )  # fmt: skip


@pytest.fixture
def run(planned: tuple[RunDir, Plan], tmp_path) -> RunDir:
    """The same run without codes."""
    shutil.copytree(planned[0].path, tmp_path / "run", ignore=shutil.ignore_patterns("rounded", "round"))
    return RunDir(tmp_path / "run")


def bytes_of(run: RunDir) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run.path / "rounded").iterdir()}


def unseen(*_: object) -> None:
    """Nobody looks."""


def products(model: nn.Module, samples: Samples, members: list[Member]) -> dict[Member, Tensor]:
    """Σ x xᵀ of the inputs that one pass of the whole model gives, float64 [K, K]."""
    found: dict[Member, Tensor] = {}

    def look(member: Member, x: Tensor) -> None:
        x_NK = x.flatten(0, -2).double()
        found[member] = x_NK.T @ x_NK

    for member in members:
        layer = model.get_submodule(member.parameter.removesuffix(".weight"))
        layer.register_forward_hook(lambda _m, args, _z, member=member: look(member, args[0]))
    with torch.no_grad():
        model(**samples.inputs)
    return found


@pytest.mark.parametrize("is_chain", [True, False])
@torch.no_grad()
def test_sums_are_those_of_a_pass_of_the_whole_model(planned, monkeypatch, is_chain):
    """Asked for out of order, with room for two of the matrices of a block at a time."""
    plan = planned[1]
    samples = load_splits(plan.config).rounding
    members = [member for group in plan.space.groups for member in group.members]
    expected = products(load_model(plan.config.model), samples, members)
    monkeypatch.setattr(original_inputs, "SUMS_BYTES", 2 * 8 * 192**2)
    if not is_chain:
        monkeypatch.setattr(pieces, "find_chain", lambda *_: None)
    inputs = OriginalInputs(
        load_model(plan.config.model), plan.space.groups, list(samples.passes(5)), members
    )
    together = set()
    for asked in (members[7:14], members[:3], members[3:7], members[14:], members[:1]):
        seen = []
        for same, sums in inputs.of(asked):
            alike = [matrix.member for matrix in same]
            seen += alike
            together.add(tuple(member.parameter.split(".")[-2] for member in alike))
            for member in alike:
                assert sums.num_rows == 32 * 32
                torch.testing.assert_close(sums.hessian_KK, expected[member], rtol=1e-4, atol=1e-4)
        assert sorted(m.parameter for m in seen) == sorted(m.parameter for m in asked)
    assert ("q_proj", "k_proj", "v_proj") in together or not is_chain


@pytest.mark.parametrize("streamed", [False, True])
def test_units_in_any_order_give_the_same_bytes_in_memory_and_streamed(planned, run, monkeypatch, streamed):
    whole, plan = planned
    units = units_of(plan)
    assert [(unit.group_start, unit.group_stop) for unit in units] == [(0, 7), (7, 14), (14, 15)]
    if streamed:
        model = dataclasses.replace(plan.config.model, stream=True)
        changed = dataclasses.replace(plan, config=dataclasses.replace(plan.config, model=model))
        monkeypatch.setattr("hpcmpq.rounding.worker.read_plan", lambda run, **how: changed)
    work = make_worker(run)
    for unit in units[::-1]:
        work(unit)
    assert bytes_of(run) == bytes_of(whole)


class Killed(Exception):
    pass


class Dying(InProcess):
    """Runs a unit and is gone, as a process that is killed."""

    def run(self, make_worker, units, keep=False) -> Iterator:  # type: ignore[no-untyped-def]
        yield next(super().run(make_worker, units, keep))
        raise Killed


def test_what_was_made_before_an_interruption_stays_and_what_is_damaged_is_made_again(planned, run):
    whole, plan = planned
    with pytest.raises(Killed):
        round_options(run, Dying(), unseen)
    made = {path: path.stat().st_mtime_ns for path in (run.path / "rounded").iterdir()}
    assert len(made) == 7
    damaged, part = min(made), max(made)
    damaged.write_bytes(damaged.read_bytes()[:-100])
    (part.parent / f".{part.name}.0-0-1.abc.partial").write_bytes(part.read_bytes()[:100])
    seen = []
    assert round_options(run, InProcess(), lambda outcome, done, total: seen.append((done, total))) == 0
    assert seen == [(1, 3), (2, 3), (3, 3)]  # that of the damaged file again
    assert {name: data for name, data in bytes_of(run).items() if name[0] != "."} == bytes_of(whole)
    assert all(path.stat().st_mtime_ns == time for path, time in made.items() if path != damaged)
    round_options(run, InProcess(), lambda *_: pytest.fail("everything is done already"))


def test_of_processes_that_share_a_run_each_reads_the_files_of_its_part(planned, run):
    whole, plan = planned
    shutil.copytree(whole.path / "rounded", run.path / "rounded")
    for path in (run.path / "rounded").iterdir():
        path.write_bytes(path.read_bytes()[:-100])
    own = dataclasses.replace(plan, units=units_of(plan))
    assert [len(pending_units(own, run, (number, 3))[0]) for number in range(3)] == [1, 1, 1]
    assert round_options(run, InProcess(), unseen, (1, 3), at_most=0) == 1


class Mixture(nn.Module):
    """Experts of which the last is never chosen, and a weight whose layer is not called."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.experts = nn.ModuleList([nn.Linear(8, 8, bias=False) for _ in range(3)])
        self.shared = nn.Linear(8, 8, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        output = input @ self.shared.weight.T
        for place, expert in enumerate(self.experts):
            rows = torch.arange(len(input)) % 10 == place + 1 if place < 2 else torch.zeros(len(input)) > 0
            if rows.any():
                output[rows] += expert(input[rows])
        return output


@torch.no_grad()
def test_experts_that_see_next_to_nothing_are_rounded_to_the_nearest(tmp_path):
    model, quantizer = Mixture(), Quantizer(rounding="gptq", group_size=8)
    members = [Member(f"experts.{place}.weight", 8, 8, macs=8 * (place < 2)) for place in range(3)]
    groups = [Group(member.parameter, (member,)) for member in members]
    generator = torch.Generator().manual_seed(0)
    mixed_NK = torch.randn(401, 8, generator=generator) @ torch.randn(8, 8, generator=generator)
    batches = [Samples({"input": mixed_NK[:400]}), Samples({"input": mixed_NK[400:]})]
    stored = StoredCodes(RunDir(tmp_path), "this plan")
    inputs = OriginalInputs(model, groups, batches, members)
    make_codes(stored, inputs, dict.fromkeys(members, ["int3"]), quantizer)
    nearest = []
    for member in members:
        weight_MK = model.get_parameter(member.parameter)
        qparams = choose_qparams(weight_MK, FORMATS["int3"], quantizer)
        codes_MK = encode(weight_MK, qparams, FORMATS["int3"], quantizer)
        nearest.append(torch.equal(stored.read(member, "int3", weight_MK)[0], codes_MK))
    assert nearest == [False, False, True]
    assert [stored.num_inputs(member) for member in members] == [40, 40, 0]
    shared = Member("shared.weight", 8, 8)
    inputs = OriginalInputs(model, groups, batches, [shared])
    with pytest.raises(UserError, match="shared.weight is used without calling its layer"):
        make_codes(stored, inputs, {shared: ["int3"]}, quantizer)


def test_weights_whose_layers_see_few_inputs_are_counted(planned, run, monkeypatch, caplog):
    monkeypatch.setattr("hpcmpq.rounding.options.FEWEST_INPUTS", 2000)
    monkeypatch.setattr("hpcmpq.rounding.option_units.FEWEST_INPUTS", 2000)
    with caplog.at_level(logging.WARNING, "hpcmpq"):
        round_options(run, InProcess(), unseen)
    assert "15 of 15 weights are rounded to the nearest" in caplog.text
    assert "fewer than 2000 inputs" in caplog.text and "with 1024" in caplog.text
