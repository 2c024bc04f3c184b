"""Runs that a version with a fault planned are refused, where their model meets it; all others go on."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from hpcmpq.calibrate.stage import calibrate
from hpcmpq.config import parse_config
from hpcmpq.errors import UserError
from hpcmpq.executors.in_process import InProcess
from hpcmpq.plan import Plan, plan_to_json
from hpcmpq.planning.stage import prepare
from hpcmpq.settings import to_values
from hpcmpq.store.json_files import write_artefact
from hpcmpq.store.run_dir import RunDir
from tests.models_of_many_kinds import Aliased, Scaled

pytestmark = pytest.mark.slow


def data() -> list[torch.Tensor]:
    """Samples of both models."""
    return [torch.randn(12, 6, generator=torch.Generator().manual_seed(0))]


def aliased() -> nn.Module:
    """A list of blocks in which two layers lie under a second name."""
    torch.manual_seed(0)
    return Aliased().eval()


def own_class() -> nn.Module:
    """A graph with a layer that does more than multiply."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), Scaled(8, 8), nn.ReLU(), Scaled(8, 8), nn.Linear(8, 5)
    ).eval()


def planned(path: Path, factory: str, formats: tuple[str, ...], **more: object) -> tuple[RunDir, Plan]:
    values = {
        "model": {"factory": f"tests.calibrate.test_mended:{factory}", **more.pop("model", {})},
        "calibration": {"data": "tests.calibrate.test_mended:data", "num_samples": 4, "held_out": 4},
        "formats": formats,
        "objective": "mse",
        "quantizer": {"group_size": None, **more.pop("quantizer", {})},
        "groups": {"include": ["*"]},
        "budgets": {"weight_bits": 9.0},
        **more,
    }
    run = RunDir(path / "run")
    return run, prepare(parse_config(values), run, ())


GPTQ = {"quantizer": {"rounding": "gptq"}}
BFLOAT16 = {"model": {"dtype": "bfloat16"}}


@pytest.mark.parametrize(
    ("factory", "formats", "more", "fact", "says"),
    [
        ("aliased", ("int4", "int8"), {}, ("two_names", "layers.0.up"), "layers.0.up, which lies under two names"),
        ("own_class", ("w8a8", "bf16"), {}, ("own_class", "2"), "did not see the inputs of 2, whose class"),
        ("own_class", ("int4", "int8"), GPTQ, ("own_class", "2"), "did not see the inputs"),
        ("own_class", ("int4", "int8"), BFLOAT16, ("own_forward", "2"), "forward pass that the class of 2 has"),
    ],
)  # fmt: skip
def test_a_run_that_the_fault_was_in_is_planned_anew(tmp_path: Path, factory, formats, more, fact, says):
    run, plan = planned(tmp_path, factory, formats, **more)
    name, layer = fact
    assert {key: value for key, value in plan.facts.items() if key.startswith("mended.")} == {
        f"mended.{name}": layer
    }
    again = prepare(parse_config(to_values(plan.config)), run, ())
    assert (again.fingerprint, again.units) == (plan.fingerprint, plan.units)
    facts = {key: value for key, value in plan.facts.items() if not key.startswith("mended.")}
    write_artefact(run.plan_path, plan_to_json(replace(plan, facts=facts)))
    before = run.plan_path.read_bytes()
    for measure in (
        lambda: prepare(parse_config(to_values(plan.config)), run, ()),
        lambda: calibrate(run, InProcess(), lambda *_: None),
    ):
        with pytest.raises(
            UserError, match=f"was planned by a version that .*{says}.*plan anew in a new run"
        ):
            measure()
    assert run.plan_path.read_bytes() == before
    assert not list(run.shards_path.glob("*.h5"))


@pytest.mark.parametrize(
    ("factory", "formats", "more"),
    [
        ("aliased", ("int4", "int8"), {"sensitivity": {"engine": "whole"}}),
        ("aliased", ("int4", "int8"), {"sensitivity": "pairwise"}),
        ("aliased", ("int4", "w8a8"), {"groups": {"include": ["output"]}}),
        ("own_class", ("int4", "int8"), {}),
        ("own_class", ("w8a8", "bf16"), {"sensitivity": {"engine": "whole"}}),
        ("own_class", ("w8a8", "bf16"), {"groups": {"include": ["0", "5"]}}),
    ],
)
def test_plans_of_runs_that_it_was_not_in_know_nothing_of_it(tmp_path: Path, factory, formats, more):
    run, plan = planned(tmp_path, factory, formats, **more)
    assert not [key for key in plan.facts if key.startswith("mended.")]
    calibrate(run, InProcess(), lambda *_: None)
    assert len(list(run.shards_path.glob("*.h5"))) == len(plan.units)


@pytest.mark.parametrize(
    ("factory", "more"),
    [("own_class", BFLOAT16), ("own_class", {"groups": {"include": ["0", "5"]}}), ("aliased", {})],
)
def test_a_run_whose_plan_knows_of_such_faults_goes_on_whichever_are_found_by_now(
    tmp_path: Path, factory, more
):
    """What a plan knows of one fault shows that its version was without them; here another is found, none, and one."""
    run, plan = planned(tmp_path, factory, ("int4", "int8"), **more)
    facts = {key: value for key, value in plan.facts.items() if not key.startswith("mended.")}
    facts |= {"mended.own_class": "4"}
    write_artefact(run.plan_path, plan_to_json(replace(plan, facts=facts)))
    again = prepare(parse_config(to_values(plan.config)), run, ())
    assert (again.facts, again.fingerprint) == (facts, plan.fingerprint)
    calibrate(run, InProcess(), lambda *_: None)
    assert len(list(run.shards_path.glob("*.h5"))) == len(plan.units)
