"""Sums of shards against means over all samples, for units cut both ways and uneven sample ranges."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hpcmpq.calibrate import reduce as stage
from hpcmpq.calibrate.reduce import add_shards, reduce
from hpcmpq.errors import CorruptShard, IncompleteCalibration
from hpcmpq.plan import Plan, WorkUnit, make_units, plan_to_json
from hpcmpq.space import Group, Member, SearchSpace
from hpcmpq.store.json_files import write_json
from hpcmpq.store.quadratic_file import read_quadratic
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.shards import Shard, write_shard
from tests.synthetic_run import synthetic_plan

NUM_SAMPLES = 7  # in ranges of 3, 3 and 1
FORMATS = (("int2", "int4"), ("int2", "int3", "int4"), ("int4", "int8"))

rng = np.random.default_rng(0)
LOSS_N = rng.uniform(1.0, 2.0, NUM_SAMPLES)
LINEAR_NP = rng.normal(size=(NUM_SAMPLES, 7))
QUAD_NPP = rng.normal(size=(NUM_SAMPLES, 7, 7))
QUAD_NPP += QUAD_NPP.transpose(0, 2, 1)


def plan() -> Plan:
    groups = tuple(Group(name, (Member(f"{name}.weight", 4, 4),)) for name in "abc")
    units = make_units("f", 3, NUM_SAMPLES, groups_per_unit=2, samples_per_unit=3)
    return replace(synthetic_plan(), space=SearchSpace(groups, FORMATS), units=units)


def shard_of(plan: Plan, unit: WorkUnit) -> Shard:
    """What a method that sees one sample at a time writes: rows of the unit's groups, all columns."""
    space = plan.space
    rows = slice(space.slice_of(unit.group_start).start, space.slice_of(unit.group_stop - 1).stop)
    own = slice(unit.sample_start, unit.sample_stop)
    linear_NR, quad_NRP = LINEAR_NP[own, rows], QUAD_NPP[own, rows]
    arrays = {
        "loss": np.array(LOSS_N[own].sum()),
        "linear": linear_NR.sum(0),
        "linear_square": (linear_NR**2).sum(0),
        "quad": quad_NRP.sum(0),
        "quad_square": (quad_NRP**2).sum(0),
        "task_loss_square": np.array((LOSS_N[own] ** 2).sum()),
    }
    count = unit.sample_stop - unit.sample_start
    return Shard("sums", unit.id, plan.fingerprint, count, count, arrays)


def shards_of(plan: Plan) -> Iterator[tuple[WorkUnit, Shard]]:
    return ((unit, shard_of(plan, unit)) for unit in plan.units)


def across(quad_PP: np.ndarray) -> np.ndarray:
    """H with zeros inside groups."""
    group_P = plan().space.group_P
    return np.where(group_P[:, None] == group_P, 0.0, quad_PP)


def test_the_model_is_the_mean_over_samples_with_its_standard_error():
    found = add_shards(plan(), shards_of(plan()))
    model = found.model
    assert (model.num_samples, model.option_group) == (NUM_SAMPLES, tuple("aabbbcc"))
    assert model.option_format == tuple(name for names in FORMATS for name in names)
    assert model.loss0 == pytest.approx(LOSS_N.mean())
    assert model.task_loss_mean_square == pytest.approx((LOSS_N**2).mean())
    root = NUM_SAMPLES**0.5
    np.testing.assert_allclose(model.linear_P, LINEAR_NP.mean(0))
    np.testing.assert_allclose(model.stderr_linear_P, LINEAR_NP.std(0, ddof=1) / root)
    np.testing.assert_allclose(model.quad_PP, across(QUAD_NPP.mean(0)))
    np.testing.assert_allclose(model.stderr_quad_PP, across(QUAD_NPP.std(0, ddof=1) / root))
    np.testing.assert_allclose(found.diagonal_P, np.diagonal(QUAD_NPP.mean(0)))
    assert found.asymmetry < 1e-12


@pytest.mark.parametrize(("most", "ends"), [(8, (0, 3, 6, 7)), (2, (0, 6, 7))])
def test_batches_are_means_over_neighbouring_sample_ranges(monkeypatch, most: int, ends: tuple[int, ...]):
    monkeypatch.setattr(stage, "MAX_BATCHES", most)
    model = add_shards(plan(), shards_of(plan())).model
    parts = [slice(start, stop) for start, stop in zip(ends, ends[1:], strict=False)]
    np.testing.assert_allclose(model.batch_linear_BP, [LINEAR_NP[part].mean(0) for part in parts])
    np.testing.assert_allclose(model.batch_quad_BPP, [across(QUAD_NPP[part].mean(0)) for part in parts])


def test_many_options_keep_no_batches(monkeypatch):
    monkeypatch.setattr(stage, "MAX_BATCH_BYTES", 8 * 7**2)
    model = add_shards(plan(), shards_of(plan())).model
    assert model.batch_linear_BP.shape == (0, 7)
    assert model.batch_quad_BPP.shape == (0, 7, 7)


def test_only_later_groups_columns_count_and_asymmetry_inside_groups_is_reported():
    def crooked() -> Iterator[tuple[WorkUnit, Shard]]:
        for unit, shard in shards_of(plan()):
            quad = shard.arrays["quad"].copy()
            if unit.group_start == 0:
                quad[0, 1] += 10.0  # both are options of group a
            else:
                quad[:, :5] = 99.0  # rows of group c, columns of groups before it
            yield unit, replace(shard, arrays={**shard.arrays, "quad": quad})

    found = add_shards(plan(), crooked())
    np.testing.assert_allclose(found.model.quad_PP, across(QUAD_NPP.mean(0)))
    assert found.asymmetry == pytest.approx(30.0 / (3 * 99.0))


def test_units_that_saw_another_loss_are_refused():
    def doubtful() -> Iterator[tuple[WorkUnit, Shard]]:
        for unit, shard in shards_of(plan()):
            factor = 1.001 if unit.group_start else 1.0
            yield unit, replace(shard, arrays={**shard.arrays, "loss": factor * shard.arrays["loss"]})

    with pytest.raises(CorruptShard, match="another loss of the original"):
        add_shards(plan(), doubtful())


def test_a_run_directory_needs_every_shard_and_its_own(tmp_path: Path):
    made, run = plan(), RunDir(tmp_path / "run")
    write_json(run.plan_path, plan_to_json(made))
    run.shards_path.mkdir()
    for _, shard in shards_of(made):
        write_shard(run, shard)
    reduce(run)
    np.testing.assert_allclose(read_quadratic(run.quadratic_path).linear_P, LINEAR_NP.mean(0))
    first, second, *_ = made.units
    write_shard(run, replace(shard_of(made, first), fingerprint="another"))
    with pytest.raises(CorruptShard, match="belongs to another unit or plan"):
        reduce(run)
    run.shard_path(first.id).write_bytes(run.shard_path(second.id).read_bytes())
    with pytest.raises(CorruptShard, match="belongs to another unit or plan"):
        reduce(run)
    run.shard_path(first.id).unlink()
    with pytest.raises(IncompleteCalibration, match="1 of 6 units are missing"):
        reduce(run)
