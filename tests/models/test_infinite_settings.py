"""Settings may be infinite: checkpoints of Mamba 2 and its hybrids have such limits, written as `Infinity`."""

import json
from pathlib import Path

import pytest
from transformers import AutoConfig

from hpcmpq.errors import PlanMismatch
from hpcmpq.export import export
from tests.export.planned import llama, plan_run, solve_by_turns

LIMIT = [0.0, float("inf")]


def with_limit(directory: Path) -> None:
    values = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**values, "time_step_limit": LIMIT}))
    assert "Infinity" in (directory / "config.json").read_text()


def test_such_a_model_is_planned_and_exported_with_the_setting(tmp_path):
    run, plan = plan_run(tmp_path, llama(), edit=with_limit, formats=["int4", "int8"])
    solve_by_turns(run, plan)
    assert ", verified: " in export(run, "compressed_tensors")
    read = AutoConfig.from_pretrained(run.path / "exports" / "compressed_tensors")
    assert read.time_step_limit == LIMIT


def test_and_a_change_of_it_is_noticed(tmp_path):
    plan_run(tmp_path, llama(), edit=with_limit, formats=["int4"])
    with pytest.raises(PlanMismatch, match=r"time_step_limit=\[0.0, 'Infinity'\].* now it is \[0.0, 2.0\]"):
        plan_run(
            tmp_path,
            llama(time_step_limit=[0.0, 2.0]),
            formats=["int4"],
        )
