"""The samples that a run was planned with are those that its workers measure on."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from hpcmpq.calibrate.worker import make_worker
from hpcmpq.errors import UserError
from hpcmpq.evaluate.contents import make_data
from hpcmpq.models.data.kept_samples import NAME, keep_samples, kept_samples
from hpcmpq.models.data.samples import IGNORED, Samples
from hpcmpq.plan import content_hash
from hpcmpq.store.run_dir import RunDir
from tests.export.planned import llama, plan_run

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("targets", [None, torch.arange(3)], ids=["inputs", "labelled"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.bfloat16])
def test_samples_come_back_as_they_were(tmp_path, targets, dtype):
    run, plan = plan_run(tmp_path, llama(), formats=["int4"])
    samples = Samples({"a": torch.arange(12).reshape(4, 3).T.to(dtype)}, targets, targets is not None)
    plan.facts["calibration.samples"] = content_hash(samples.content_hashes())
    plan.facts["calibration.targets"] = samples.targets_hash()
    keep_samples(run, samples)
    again = kept_samples(run, plan)
    assert again is not None
    assert torch.equal(again.inputs["a"], samples.inputs["a"])
    assert again.inputs["a"].dtype == dtype
    assert again.labelled == samples.labelled
    assert (again.targets is None) if targets is None else torch.equal(again.targets, targets)


def test_tensors_may_share_memory(tmp_path):
    run = RunDir(tmp_path)
    all_NT = torch.arange(15).reshape(3, 5)
    samples = Samples({"a": all_NT, "b": all_NT, "c": all_NT[:, 1:4]}, all_NT[:, 1:])
    keep_samples(run, samples)
    found = load_file(run.file(NAME))
    assert found.keys() == {"input.a", "input.b", "input.c", "targets"}
    assert all(torch.equal(found["input." + name], value) for name, value in samples.inputs.items())
    assert torch.equal(found["targets"], all_NT[:, 1:])


def test_a_file_that_workers_may_read_is_replaced_only_if_it_is_wrong(tmp_path):
    run, file = RunDir(tmp_path), RunDir(tmp_path).file(NAME)
    samples = Samples({"a": torch.arange(3)}, torch.arange(3), labelled=True)
    keep_samples(run, samples)
    before = file.stat().st_ino
    keep_samples(run, samples)
    assert file.stat().st_ino == before
    for other in (Samples({"a": torch.arange(4)}), Samples(samples.inputs, samples.targets, labelled=False)):
        keep_samples(run, other)
        keep_samples(run, samples)
        assert torch.equal(load_file(file)["input.a"], torch.arange(3))
    whole = file.read_bytes()
    file.write_bytes(whole[:-8])
    keep_samples(run, samples)
    assert file.stat().st_size == len(whole)  # metadata come in any order
    assert torch.equal(load_file(file)["input.a"], torch.arange(3))


def test_workers_need_no_text(tmp_path):
    run, plan = plan_run(tmp_path, llama(), formats=["int4"], solver={"time_limit_s": 1.0})
    make_worker(run)(plan.units[0])
    first = run.shard_path(plan.units[0].id).read_bytes()
    (tmp_path / "text.txt").unlink()
    run.shard_path(plan.units[0].id).unlink()
    make_worker(run)(plan.units[0])
    assert run.shard_path(plan.units[0].id).read_bytes() == first


def test_changed_data_are_not_split_again(tmp_path):
    run, plan = plan_run(tmp_path, llama(), formats=["int4"])
    assert len(make_data(plan).samples)
    text = tmp_path / "text.txt"
    text.write_text(text.read_text()[1:])
    with pytest.raises(
        UserError, match="gives other calibration samples than the run was planned with; restore"
    ):
        make_data(plan)
    run.file(NAME).unlink()  # as planned before there was one
    with pytest.raises(UserError, match="gives other calibration samples"):
        make_worker(run)


def test_other_samples_and_damage_are_refused(tmp_path):
    run, plan = plan_run(tmp_path, llama(), formats=["int4"])
    for name in ("input.input_ids", "targets"):
        tensors = load_file(run.file(NAME))
        before = run.file(NAME).read_bytes()
        tensors[name][0, 0] += 1
        save_file(tensors, run.file(NAME), {"labelled": "1"})
        with pytest.raises(UserError, match="other samples than the plan names; run `hpcmpq plan"):
            kept_samples(run, plan)
        run.file(NAME).write_bytes(before)
        assert kept_samples(run, plan) is not None
    run.file(NAME).write_bytes(b"damaged")
    with pytest.raises(UserError, match="is damaged"):
        kept_samples(run, plan)
    run.file(NAME).unlink()
    assert kept_samples(run, plan) is None


def test_samples_of_which_no_position_counts_are_refused(tmp_path):
    """A version before kept them, and their losses as 0."""
    run, plan = plan_run(tmp_path, llama(), formats=["int4"])
    samples = kept_samples(run, plan)
    samples.targets[:2] = IGNORED
    plan.facts["calibration.targets"] = samples.targets_hash()
    keep_samples(run, samples)
    with pytest.raises(UserError, match="no position counts in 2 of the 8 calibration samples"):
        kept_samples(run, plan)
