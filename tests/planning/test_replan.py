"""A run directory is planned again by every `hpcmpq run` that goes on; what was measured stays valid."""

import dataclasses

import pytest

from hpcmpq.config import parse_config
from hpcmpq.errors import PlanMismatch
from hpcmpq.models.data.samples import Samples
from hpcmpq.plan import Plan, plan_to_json
from hpcmpq.planning.stage import prepare
from hpcmpq.store.json_files import write_json
from hpcmpq.store.run_dir import RunDir
from tests.export.planned import llama, plan_run

TIES = [["q_proj", "k_proj", "v_proj"], ["gate_proj", "up_proj"]]


def replanned(run: RunDir, plan: Plan, **changes) -> Plan:
    return prepare(parse_config({**plan.config, **changes}), run, ())


def test_settings_that_do_not_change_a_number_may_change(tmp_path):
    run, plan = plan_run(tmp_path, llama(), groups={"tie": TIES})
    again = replanned(run, plan, budgets={"weight_bits": 2.5})
    assert (again.units, again.fingerprint) == (plan.units, plan.fingerprint)
    assert again.config["budgets"] == {"weight_bits": 2.5}


def test_plans_that_lack_newer_settings_keep_what_they_measured(tmp_path):
    run, plan = plan_run(tmp_path, llama())
    newer = ("quantizer.rounding", "quantizer.damping", "sensitivity.engine", "calibration.targets")
    older = dataclasses.replace(
        plan,
        facts={name: value for name, value in plan.facts.items() if name not in newer},
        fingerprint="older",
        units=plan.units[:1],
    )
    write_json(run.plan_path, plan_to_json(older))
    again = replanned(run, plan)
    assert (again.units, again.fingerprint, again.facts) == (older.units, "older", older.facts)
    with pytest.raises(PlanMismatch, match=r"quantizer\.damping=0\.01, the config says 0\.1"):
        replanned(run, plan, quantizer={"damping": 0.1})


def test_digests_are_named_in_words(tmp_path):
    run, plan = plan_run(tmp_path, llama())
    (tmp_path / "text.txt").write_text("Something else altogether. " * 400)
    with pytest.raises(PlanMismatch, match="planned with other calibration samples than the config gives"):
        replanned(run, plan)


def test_other_labels_of_the_same_samples_are_other_measurements(tmp_path, monkeypatch):
    run, plan = plan_run(tmp_path, llama())
    monkeypatch.setattr(Samples, "targets_hash", lambda self: "other")
    with pytest.raises(PlanMismatch, match="planned with other labels of the calibration samples"):
        replanned(run, plan)
