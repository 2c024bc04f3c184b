"""Work units cover everything once; plans of different configurations do not mix."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcmpq.config import parse_config
from hpcmpq.errors import PlanMismatch
from hpcmpq.plan import Plan, make_units, plan_from_json, plan_to_json
from hpcmpq.planning.facts import check_same_facts, flatten
from hpcmpq.space import Group, Member, SearchSpace


@given(st.integers(1, 20), st.integers(1, 40), st.integers(1, 25), st.integers(1, 45))
def test_units_cover_every_group_and_sample_once(num_groups, num_samples, groups_per_unit, samples_per_unit):
    units = make_units(
        "f", num_groups, num_samples, groups_per_unit=groups_per_unit, samples_per_unit=samples_per_unit
    )
    covered = [
        (group, sample)
        for unit in units
        for group in range(unit.group_start, unit.group_stop)
        for sample in range(unit.sample_start, unit.sample_stop)
    ]
    assert sorted(covered) == [(g, n) for g in range(num_groups) for n in range(num_samples)]
    assert len({unit.id for unit in units}) == len(units)


def test_unit_ids_depend_on_the_fingerprint():
    (a,), (b,) = (make_units(f, 2, 3, groups_per_unit=2, samples_per_unit=3) for f in "ab")
    assert a.id != b.id


def test_plan_round_trips_through_json():
    space = SearchSpace((Group("g", (Member("g.weight", 2, 3, True, 6),), 1),), (("int2", "int4"),))
    units = make_units("f", 1, 4, groups_per_unit=1, samples_per_unit=2)
    given = {"evaluation": {"tasks": [{"name": "a", "path": "b", "type": "classification", "labels": ["c"]}]}}
    solver = {"forbidden": {"*": ["int2"]}, "tie": [["a", "b"]], "shrink": 2}
    calibration = {"data": "d", "special_tokens": None}
    config = parse_config({"model": {"path": "m"}, "calibration": calibration, "solver": solver, **given})
    plan = Plan(config, space, units, {"a": 1}, "f", ("/x",), 12, {"torch": "2"})
    assert plan_from_json(json.loads(json.dumps(plan_to_json(plan)))) == plan


def test_mismatch_names_the_first_field_and_both_values():
    planned, wanted = {"a.n": 512, "b": 1, "c": 0}, {"a.n": 256, "b": 2, "c": 0}
    with pytest.raises(
        PlanMismatch, match=r"planned with a\.n=512, the config says 256 \(also different: b\)"
    ):
        check_same_facts(planned, wanted, "runs/a", {})
    check_same_facts(planned, dict(planned), "runs/a", {})


def test_flatten_keeps_lists_whole():
    assert flatten({"a": {"b": (1, 2), "c": {"d": None}}}) == {"a.b": [1, 2], "a.c.d": None}
