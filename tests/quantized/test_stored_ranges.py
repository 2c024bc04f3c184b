"""Ranges that one process of a run chose: what others read of them is what they would choose, bit for bit."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hpcmpq.calibrate.worker import make_worker
from hpcmpq.formats import FORMATS, WEIGHT_FORMATS, Format, Quantizer
from hpcmpq.models.load import load_model
from hpcmpq.models.streaming import load_streamed
from hpcmpq.plan import Plan
from hpcmpq.quantized import rounded_weights
from hpcmpq.quantized.rounded_weights import RoundedWeights
from hpcmpq.quantized.stored_ranges import StoredRanges
from hpcmpq.quantized.variants import Variants, open_variants
from hpcmpq.quantizers import choose_qparams
from hpcmpq.quantizers.codes import QParams
from hpcmpq.space import Member
from hpcmpq.store.h5_files import read_h5
from hpcmpq.store.run_dir import RunDir
from tests.export.planned import llama, plan_run

MEMBER = Member("layer.weight", 160, 256)

OPTIONS = ["int2", "int3", "int8", "w8a8", "fp8_e4m3", "bf16"]


def weight(dtype: torch.dtype = torch.float32) -> Tensor:
    """With a column of zeros, an outlier and rows of many sizes, [160, 256]."""
    generator = torch.Generator().manual_seed(3)
    made_MK = torch.randn(160, 256, generator=generator) * torch.logspace(-6, 3, 160)[:, None]
    made_MK[:, :64] = 0
    made_MK[5, 100] = 1e4
    return made_MK.to(dtype)


def assert_same(one: QParams, other: QParams) -> None:
    for field in fields(QParams):
        a, b = getattr(one, field.name), getattr(other, field.name)
        assert (a is None) == (b is None), field.name
        assert a is None or (a.dtype == b.dtype and torch.equal(a, b)), field.name


def refuse(weight_MK: Tensor, format: Format, *others: object) -> QParams:
    """Nothing is left to be chosen but that formats without scales have ones."""
    assert not format.scaled
    return QParams(torch.ones(len(weight_MK), 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", [name for name in WEIGHT_FORMATS if FORMATS[name].scaled])
@pytest.mark.parametrize("symmetric", [True, False])
def test_what_is_read_is_what_was_written(tmp_path: Path, name: str, dtype: torch.dtype, symmetric: bool):
    stored, weight_MK = StoredRanges(RunDir(tmp_path), "plan"), weight(dtype)
    chosen = choose_qparams(weight_MK, FORMATS[name], Quantizer(symmetric=symmetric), weight_MK.abs().max())
    stored.write(
        MEMBER, dtype, {"int5": choose_qparams(weight_MK, FORMATS["int5"], Quantizer()), name: chosen}
    )
    found = stored.read(MEMBER, name, weight_MK)
    assert found is not None
    assert_same(found, chosen)


def test_files_of_scales_are_small(tmp_path: Path):
    stored, weight_MK = StoredRanges(RunDir(tmp_path), "plan"), weight()
    names = ("int2", "int3", "int4", "int8")
    stored.write(
        MEMBER, torch.float32, {n: choose_qparams(weight_MK, FORMATS[n], Quantizer()) for n in names}
    )
    [path] = (tmp_path / "ranges").iterdir()
    assert path.stat().st_size < 4096 + 2 * 2 * len(names) * weight_MK.numel() / 64


def test_only_what_is_of_the_same_weight_plan_and_dtype_is_read(tmp_path: Path):
    run, weight_MK = RunDir(tmp_path), weight()
    stored = StoredRanges(run, "plan")
    assert stored.read(MEMBER, "int4", weight_MK) is None
    stored.write(MEMBER, torch.float32, {"int4": choose_qparams(weight_MK, FORMATS["int4"], Quantizer())})
    assert stored.read(MEMBER, "int4", weight_MK) is not None
    assert stored.read(MEMBER, "int3", weight_MK) is None
    assert stored.read(MEMBER, "int4", weight_MK.bfloat16()) is None
    assert stored.read(replace(MEMBER, parameter="other.weight"), "int4", weight_MK) is None
    assert StoredRanges(run, "another plan").read(MEMBER, "int4", weight_MK) is None
    [path] = (tmp_path / "ranges").iterdir()
    other = StoredRanges(run, "plan")._path(replace(MEMBER, parameter="other.weight"), torch.float32)
    path.rename(other)
    assert stored.read(replace(MEMBER, parameter="other.weight"), "int4", weight_MK) is None


def test_a_damaged_file_is_said_and_counts_for_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    stored, weight_MK = StoredRanges(RunDir(tmp_path), "plan"), weight()
    stored.write(MEMBER, torch.float32, {"int4": choose_qparams(weight_MK, FORMATS["int4"], Quantizer())})
    [path] = (tmp_path / "ranges").iterdir()
    whole = path.read_bytes()
    for bad in (b"", whole[: len(whole) // 2], whole[:2000] + bytes([whole[2000] ^ 1]) + whole[2001:]):
        caplog.clear()
        path.write_bytes(bad)
        assert stored.read(MEMBER, "int4", weight_MK) is None
        assert "choosing its ranges again" in caplog.text
        assert not stored.is_there(MEMBER, torch.float32), "who begins next would not store them"


def test_files_of_another_plan_do_not_stand_in_the_way(tmp_path: Path):
    """Planned again with another quantizer, or the next round of a screened run."""
    run, weight_MK = RunDir(tmp_path), weight()
    chosen = choose_qparams(weight_MK, FORMATS["int4"], Quantizer())
    StoredRanges(run, "before").write(MEMBER, torch.float32, {"int4": chosen})
    stored = StoredRanges(run, "plan")
    assert not stored.is_there(MEMBER, torch.float32)
    stored.write(MEMBER, torch.float32, {"int4": chosen})
    assert stored.read(MEMBER, "int4", weight_MK) is not None


@pytest.mark.parametrize("name", ["int3", "fp8_e4m3", "q4_k"])
def test_some_rows_have_their_part_of_what_was_chosen_for_all(tmp_path: Path, name: str, monkeypatch):
    stored, weight_MK = StoredRanges(RunDir(tmp_path), "plan"), weight()
    format, quantizer = FORMATS[name], Quantizer()
    stored.write(MEMBER, torch.float32, {name: choose_qparams(weight_MK, format, quantizer)})
    alone = RoundedWeights(quantizer, None).decoded(MEMBER, name, weight_MK)
    monkeypatch.setattr(rounded_weights, "choose_qparams", refuse)
    rows = RoundedWeights(quantizer, None, ranges=stored).decoded(MEMBER, name, weight_MK[64:128], 64)
    assert torch.equal(rows, alone[64:128])


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[RunDir, Plan]:
    """A run of more rounded weights than are kept."""
    monkeypatch.setattr("hpcmpq.quantized.variants.KEPT_BYTES", 0)
    return plan_run(tmp_path, llama(), formats=OPTIONS)


@torch.no_grad()
def test_what_one_process_chose_no_other_chooses_again(planned: tuple[RunDir, Plan], monkeypatch):
    run, plan = planned
    alone = Variants(load_model(plan.config.model), plan.space, plan.config.quantizer)
    for group, names in zip(plan.space.groups, plan.space.formats, strict=True):
        for name in names:
            alone.quantized(group, name)
    open_variants(run, plan).store_ranges(0)
    assert len(list((run.path / "ranges").iterdir())) == len(plan.space.groups)
    monkeypatch.setattr(rounded_weights, "choose_qparams", refuse)
    streamed = load_streamed(plan.config.model)
    for other in (open_variants(run, plan), open_variants(run, plan, streamed=streamed)):
        other.store_ranges(1)
        for group, names in zip(plan.space.groups, plan.space.formats, strict=True):
            for name in names:
                found, expected = other.quantized(group, name), alone.quantized(group, name)
                assert all(torch.equal(found[key], expected[key]) for key in expected), (group.name, name)
                codes, qparams = other.encoded(group.members[0], name)
                own_codes, own_qparams = alone.encoded(group.members[0], name)
                assert torch.equal(codes, own_codes)
                assert_same(qparams, own_qparams)


def test_processes_that_begin_together_begin_with_different_weights(
    planned: tuple[RunDir, Plan], monkeypatch
):
    run, plan = planned
    first: list[str] = []
    monkeypatch.setattr(StoredRanges, "write", lambda self, member, *_: first.append(member.parameter))
    for seed in range(6):
        open_variants(run, plan).store_ranges(seed)
    starts = first[:: len(plan.space.groups)]
    assert len(starts) == 6
    assert len(set(starts)) > 1
    assert all(len(set(first[k : k + len(plan.space.groups)])) == len(plan.space.groups) for k in (0, 14))


def test_shards_are_those_of_a_run_that_stores_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found = []
    for kept_bytes in (2**26, 0):
        monkeypatch.setattr("hpcmpq.quantized.variants.KEPT_BYTES", kept_bytes)
        run, plan = plan_run(tmp_path / str(kept_bytes), llama(), formats=OPTIONS)
        worker = make_worker(run)
        for unit in plan.units:
            worker(unit)
        assert (run.path / "ranges").exists() == (kept_bytes == 0)
        found.append([_arrays(run.shard_path(unit.id)) for unit in plan.units])
    for one, other in zip(*found, strict=True):
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[key], other[key]) for key in one)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    return read_h5(path, "the test")[0]
