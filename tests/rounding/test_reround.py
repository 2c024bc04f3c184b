"""Rounding again at a solution: with the inputs that its rounded layers really give, read by all, kept if better."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hpcmpq.errors import UserError
from hpcmpq.evaluate.engines.torch_engine import open_engine
from hpcmpq.executors.world import ALONE
from hpcmpq.export import export
from hpcmpq.formats import FORMATS
from hpcmpq.models.data.splits import load_splits
from hpcmpq.models.load import load_model
from hpcmpq.plan import Plan
from hpcmpq.quantized.applied import quantized_model
from hpcmpq.quantized.solved import open_solved
from hpcmpq.quantized.variants import open_variants
from hpcmpq.quantizers import choose_qparams, decode
from hpcmpq.rounding import METHODS
from hpcmpq.rounding import stage as reround_stage
from hpcmpq.rounding.cuts import Cuts
from hpcmpq.rounding.stage import reround
from hpcmpq.space import Member
from hpcmpq.store.json_files import read_json, write_json
from hpcmpq.store.run_dir import RunDir
from tests.export.planned import llama, plan_run, solve_by_turns
from tests.quantizers.test_gptq import by_definition
from tests.rounding.reround_runs import SMALL

pytestmark = pytest.mark.slow

NAMES = ["int2", "int3", "w4a8", "bf16"]


def unseen(done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDir, Plan]:
    """A run with GPTQ codes whose groups take the formats by turns."""
    made = plan_run(
        tmp_path_factory.mktemp("reround"), llama(), torch.float32, formats=NAMES,
        quantizer={"rounding": "gptq", "group_size": 64},
    )  # fmt: skip
    solve_by_turns(*made)
    return made


def stream(run: RunDir) -> None:
    """Read the run's model block after block from now on."""
    values = read_json(run.plan_path, "")
    values["config"]["model"]["stream"] = True
    write_json(run.plan_path, values)


@pytest.fixture
def run(planned: tuple[RunDir, Plan], tmp_path) -> RunDir:
    shutil.copytree(planned[0].path, tmp_path / "run")
    return RunDir(tmp_path / "run")


def inputs_of(model: nn.Module, member: Member, plan: Plan) -> Tensor:
    """What a layer of a whole model is given on all samples that rounding is fitted on, float64 [N, K]."""
    layer = model.get_submodule(member.parameter.removesuffix(".weight"))
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _m, args, _z: seen.append(args[0].flatten(0, 1).double()))
    samples = load_splits(plan.config).rounding
    assert samples is not None and len(samples) == 32
    with torch.no_grad():
        model(samples.inputs["input_ids"])
    handle.remove()
    return torch.cat(seen)


@pytest.mark.parametrize("cuts", [Cuts(), SMALL], ids=["whole", "cut"])
@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_codes_are_those_of_the_definition_with_the_rounded_models_own_inputs(
    method, cuts, run, planned, monkeypatch
):
    """Layers of either block, with inputs that a pass of the whole model gives under the finished codes.

    Of `qep` the weight is the solution of a regression first; `gptaq` is compared without its correction. Sums of all
    samples and rows at once are those of ranges and parts.
    """
    monkeypatch.setattr(reround_stage, "CUTS", cuts)
    monkeypatch.setattr(reround_stage, "is_better", lambda *_: True)
    plan, strength = planned[1], {"gptq": 0.0, "gptaq": 0.0, "qep": 1.0}[method]
    assignment = reround(run, method, strength, unseen)["assignment"]
    variants = open_solved(run, plan).under(assignment)
    original, quantized = load_model(plan.config.model), quantized_model(run, assignment)
    formats = {m: assignment[g.name] for g in plan.space.groups for m in g.members}
    first_of = {name: [m for m in formats if formats[m] == name] for name in NAMES}
    for member in (first_of["int2"][0], first_of["int3"][-1], first_of["w4a8"][1]):
        x_NK, given_NK = (inputs_of(model, member, plan) for model in (original, quantized))
        assert (x_NK - given_NK).abs().max() > 0.01 or member == next(iter(formats))
        target_MK, quantizer = original.get_parameter(member.parameter).double(), variants.quantizer
        hessian_KK = given_NK.T @ given_NK
        if method == "qep":
            root = (quantizer.damping * hessian_KK.diagonal().mean()).sqrt()
            left = torch.cat([given_NK, root * torch.eye(len(hessian_KK), dtype=torch.float64)])
            right = torch.cat([x_NK @ target_MK.T, root * target_MK.T])
            target_MK = torch.linalg.lstsq(left, right).solution.T
        codes_MK, qparams = variants.encoded(member, formats[member])
        format = FORMATS[formats[member]]
        ranges = choose_qparams(target_MK.float(), format, quantizer)
        assert float((ranges.scale == qparams.scale).float().mean()) > 0.99
        expected_MK = by_definition(target_MK, hessian_KK, qparams, format, quantizer)
        assert float((codes_MK == expected_MK).float().mean()) > 0.995


def test_kept_codes_are_what_every_stage_reads_and_packed(run, planned):
    plan = planned[1]
    former = {"measured_loss": 9.0, "expected_loss": 9.0, "expected_interval": [8, 9], "evaluated_loss": 9.0}
    write_json(run.solution_path, {**read_json(run.solution_path, ""), **former})
    values = reround(run, "qep", 1.0, unseen)
    assignment, last = values["assignment"], values["reround"]["history"][-1]
    assert values["measured_loss"] == last["held_out_loss"] != 9.0
    assert values["measured_loss_stderr"] == last["held_out_loss_stderr"] > 0
    assert not {"expected_loss", "expected_interval", "evaluated_loss"} & values.keys()
    assert last["kept"] and last["difference"] < 0 and last["num_weights"] == 11
    assert read_json(run.solution_path, "")["reround"] == values["reround"]
    variants = open_solved(run, plan)
    formats = {m: assignment[g.name] for g in plan.space.groups for m in g.members}
    expected = {
        m.parameter: decode(*variants.under(assignment).encoded(m, name), FORMATS[name], variants.quantizer)
        for m, name in formats.items()
    }
    planned_ones = open_variants(run, plan).weights(assignment)
    same = {name for name in expected if torch.equal(expected[name].float(), planned_ones[name])}
    first = {
        f"model.layers.0.self_attn.{name}_proj.weight" for name in "qk"
    }  # whose inputs are the original's
    assert same == first | {m.parameter for m, name in formats.items() if name == "bf16"}

    applied = quantized_model(run, assignment)
    export(run, "fake_quantized")  # which reads it back and compares
    stored = load_file(run.checkpoint_path / "model.safetensors")
    with open_engine(run, plan, plan.config, ALONE) as engine, engine.assigned(assignment):
        for name, weight in expected.items():
            for found in (applied.get_parameter(name), stored[name], variants.model.get_parameter(name)):
                if found is not variants.model.get_parameter(name):
                    assert torch.equal(found, weight.to(found.dtype)), name
            assert torch.equal(engine.variants.model.get_parameter(name), weight.to(torch.float32))
    for group, name in assignment.items():  # an option is what it was for every other assignment
        one = {group: name}
        own = open_variants(run, plan).weights(one)
        assert all(torch.equal(tensor, own[key]) for key, tensor in variants.weights(one).items())

    folder = run.path / "rerounded" / values["reround"]["codes"]
    assert {path.name for path in (run.path / "rerounded").iterdir()} == {folder.name}
    kept = sum(m.num_rows * m.num_columns * FORMATS[n].num_bits for m, n in formats.items() if n != "bf16")
    size = sum(path.stat().st_size for path in folder.iterdir())
    scales = 4 * sum(m.num_rows * -(-m.num_columns // 64) for m, n in formats.items() if n != "bf16")
    assert size < kept / 8 + scales + 11 * 8192


def test_what_chance_explains_is_not_kept_and_each_look_is_harder(run, monkeypatch):
    looks = []

    def never(new_N: np.ndarray, old_N: np.ndarray, look: int) -> bool:
        looks.append(look)
        return False

    monkeypatch.setattr(reround_stage, "is_better", never)
    note = run.path / "rerounded" / "a file of somebody's"
    note.parent.mkdir(exist_ok=True)
    note.touch()
    for method in ("gptq", "qep"):
        values = reround(run, method, None, unseen)
    found = values["reround"]
    assert looks == [1, 2] and found["codes"] is None
    assert [attempt["kept"] for attempt in found["history"]] == [False, False]
    assert list(note.parent.iterdir()) == [note]


def test_an_interrupted_attempt_goes_on_with_the_weights_that_are_left(run, tmp_path, monkeypatch):
    """And ends with the bytes of a run that was not, and has one block at a time in memory."""
    monkeypatch.setattr(reround_stage, "is_better", lambda *_: True)  # what is not is not kept
    other = RunDir(tmp_path / "other")
    shutil.copytree(run.path, other.path)
    stream(other)

    def stop(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reround(run, "qep", None, stop)
    assert "reround" not in json.loads(run.solution_path.read_text())
    before = {path: path.stat().st_mtime_ns for path in run.path.glob("rerounded/*/*.h5")}
    assert len(before) == 5
    values = [reround(place, "qep", None, unseen) for place in (run, other)]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    folders = [
        place.path / "rerounded" / v["reround"]["codes"]
        for place, v in zip((run, other), values, strict=True)
    ]
    names = {path.name for path in folders[0].iterdir()}
    assert len(names) == 11 and names == {path.name for path in folders[1].iterdir()}
    for name in names:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    lasting = [{k: v for k, v in each["reround"]["history"][0].items() if k != "seconds"} for each in values]
    assert lasting[0] == lasting[1]  # the losses too, of passes and of a walk

    damaged = next(folders[0].iterdir())
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-100])
    with pytest.raises(UserError, match=f"run `hpcmpq reround {run.path} --method qep --strength 0.5` again"):
        quantized_model(run, values[0]["assignment"])
    again = reround(run, "qep", None, unseen)
    assert damaged.read_bytes() == whole and again["reround"] == values[0]["reround"]


def test_another_assignment_does_not_use_the_codes(run, planned, caplog):
    values = reround(run, "qep", 1.0, unseen)
    groups = list(values["assignment"])
    values["assignment"][groups[0]] = values["assignment"][groups[1]]
    run.solution_path.write_text(json.dumps(values))
    with caplog.at_level(logging.WARNING):
        variants = open_solved(run, planned[1])
    assert "rounded again for another assignment" in caplog.text
    own = open_variants(run, planned[1]).weights(values["assignment"])
    assert all(
        torch.equal(tensor, own[name]) for name, tensor in variants.weights(values["assignment"]).items()
    )


def test_what_cannot_be_rounded_again_is_said(tmp_path):
    run, plan = plan_run(tmp_path, llama(), formats=["bf16", "int4"])
    values = json.loads(json.dumps({"assignment": {group.name: "bf16" for group in plan.space.groups}}))
    run.solution_path.write_text(json.dumps(values))
    with pytest.raises(UserError, match="no weight of the solution can be rounded again"):
        reround(run, None, None, unseen)
    with pytest.raises(UserError, match="unknown rounding method 'best'; known: gptq, gptaq, qep"):
        reround(run, "best", None, unseen)
