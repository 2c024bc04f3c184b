"""A run directory is planned again by every `hpcmpq run` that goes on; what was measured stays valid."""

import dataclasses

import pytest

from hpcmpq.cli import summaries
from hpcmpq.config import parse_config
from hpcmpq.errors import PlanMismatch, UserError
from hpcmpq.evaluate.contents import make_data
from hpcmpq.models.data.kept_samples import kept_samples
from hpcmpq.models.data.samples import Samples
from hpcmpq.plan import Plan, plan_to_json
from hpcmpq.planning import stage
from hpcmpq.planning.stage import prepare
from hpcmpq.settings import to_values
from hpcmpq.store.json_files import read_json, write_json
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir
from tests.export.planned import llama, plan_run
from tests.models.byte_tokenizer import VOCAB, save_byte_tokenizer

pytestmark = pytest.mark.slow

TIES = [["q_proj", "k_proj", "v_proj"], ["gate_proj", "up_proj"]]


def replanned(run: RunDir, plan: Plan, **changes) -> Plan:
    return prepare(parse_config({**to_values(plan.config), **changes}), run, ())


def test_settings_that_do_not_change_a_number_may_change(tmp_path):
    run, plan = plan_run(tmp_path, llama(), groups={"tie": TIES})
    again = replanned(run, plan, budgets={"weight_bits": 2.5})
    assert (again.units, again.fingerprint) == (plan.units, plan.fingerprint)
    assert again.config.budgets == {"weight_bits": 2.5}


def test_what_is_refused_while_costs_are_estimated_leaves_the_plan(tmp_path, monkeypatch):
    run, plan = plan_run(tmp_path, llama())
    before = {path: path.read_bytes() for path in run.path.iterdir() if path.is_file()}

    def refuse(*_):
        raise UserError("streams another list of blocks")

    monkeypatch.setattr(stage, "estimate_cost", refuse)
    with pytest.raises(UserError, match="another list"):
        replanned(run, plan, budgets={"weight_bits": 2.5})
    assert {path: path.read_bytes() for path in run.path.iterdir() if path.is_file()} == before


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


def test_another_gpu_with_other_formats_is_another_measurement(tmp_path):
    formats = ["int4", "fp8_e4m3", "mxfp8", "bf16"]
    run, plan = plan_run(tmp_path, llama(), target="vllm", gpu="h100", formats=formats)
    before = run.plan_path.read_bytes()
    with pytest.raises(
        PlanMismatch, match="planned with int4, fp8_e4m3, bf16 for .* on gpu h100, .* mxfp8, bf16 on gpu b200"
    ):
        replanned(run, plan, gpu="b200")
    assert run.plan_path.read_bytes() == before
    assert replanned(run, plan, gpu="h200").fingerprint == plan.fingerprint  # which computes the same


@pytest.mark.parametrize("moment", ["check_solvable", "_keep"])
def test_of_two_processes_that_plan_different_measurements_at_once_the_first_stays(
    tmp_path, monkeypatch, moment
):
    _, plan = plan_run(tmp_path, llama())
    values, run = to_values(plan.config), RunDir(tmp_path / "new")
    fewer = {**values["calibration"], "num_samples": values["calibration"]["num_samples"] - 1}
    other = {**values, "formats": ["int2"], "calibration": fewer}
    real = getattr(stage, moment)

    def meanwhile(*arguments: object) -> object:
        monkeypatch.setattr(stage, moment, real)
        prepare(parse_config(other), run, ())
        return real(*arguments)

    monkeypatch.setattr(stage, moment, meanwhile)
    with pytest.raises(PlanMismatch, match="another process has planned another measurement"):
        prepare(parse_config(values), run, ())
    assert read_plan(run).config.formats == ("int2",)
    kept = kept_samples(run, read_plan(run))
    assert kept is not None and len(kept) == fewer["num_samples"]


def test_of_two_processes_that_find_a_damaged_plan_at_once_one_stays(tmp_path, monkeypatch):
    run, plan = plan_run(tmp_path, llama())
    values = to_values(plan.config)
    run.plan_path.write_text("{")
    real, refused = stage.write_artefact, []

    def meanwhile(*arguments: object) -> None:
        monkeypatch.setattr(stage, "write_artefact", real)
        with pytest.raises(
            PlanMismatch, match=r"another process writes a plan .* remove .*plan\.claim\.json"
        ) as error:
            prepare(parse_config({**values, "formats": ["int2"]}), run, ())
        refused.append(error)
        real(*arguments)

    monkeypatch.setattr(stage, "write_artefact", meanwhile)
    prepare(parse_config(values), run, ())
    assert refused and read_plan(run).fingerprint == plan.fingerprint
    assert not list(run.path.glob("*claim*"))


def test_a_damaged_claim_on_a_damaged_plan_is_no_ones(tmp_path):
    run, plan = plan_run(tmp_path, llama())
    claim = run.file("plan.claim.json")
    for content in ("", "{"):
        run.plan_path.write_text("{")
        claim.write_text(content)
        prepare(parse_config(to_values(plan.config)), run, ())
        assert read_plan(run).fingerprint == plan.fingerprint
        assert not claim.exists()


def test_the_cost_of_a_plan_before_does_not_stay(tmp_path):
    run, plan = plan_run(tmp_path, llama())
    assert run.file("cost.json").exists()
    run.plan_path.unlink()
    replanned(run, plan, sensitivity={"method": "fisher"})
    assert not run.file("cost.json").exists()


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


def plan_with_bos(path, **calibration) -> tuple[RunDir, Plan]:
    save_byte_tokenizer(path / "model")
    settings = {"num_samples": 8, "sequence_length": 32, "held_out": 2, "data": str(path / "text.txt")}
    return plan_run(path, llama(vocab_size=VOCAB), calibration={**settings, **calibration})


def test_special_tokens_are_part_of_the_plan(tmp_path, capsys):
    run, plan = plan_with_bos(tmp_path)
    assert plan.facts["calibration.special_tokens"] == "<s> ..."
    summaries.planned(plan)
    assert "samples begin and end as the tokenizer has it: <s> ..." in capsys.readouterr().out
    assert replanned(run, plan).fingerprint == plan.fingerprint
    without = {**dataclasses.asdict(plan.config.calibration), "special_tokens": False}
    with pytest.raises(PlanMismatch, match=r"special_tokens='<s> \.\.\.', the config says False"):
        replanned(run, plan, calibration=without)


def test_a_tokenizer_that_adds_nothing_leaves_the_facts_alone(tmp_path):
    _, plan = plan_run(tmp_path, llama())
    assert not any("special_tokens" in name for name in plan.facts)


def test_plans_of_before_special_tokens_keep_their_windows(tmp_path, caplog):
    run, plan = plan_with_bos(tmp_path, special_tokens=False)
    values = read_json(run.plan_path, "")
    del values["config"]["calibration"]["special_tokens"]
    write_json(run.plan_path, values)
    older = read_plan(run)
    assert older.config.calibration.special_tokens is None
    make_data(older)  # the same samples as when it was planned
    with_default = {**dataclasses.asdict(plan.config.calibration), "special_tokens": True}
    again = replanned(run, plan, calibration=with_default)
    assert (again.units, again.fingerprint) == (plan.units, plan.fingerprint)
    assert "was planned before there was calibration.special_tokens" in caplog.text
    assert replanned(run, again, calibration=with_default).fingerprint == plan.fingerprint
