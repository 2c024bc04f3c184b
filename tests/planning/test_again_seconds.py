"""What rounding again is predicted to take is what it does, step by step."""

from collections import Counter
from itertools import count
from pathlib import Path

import pytest
import torch

from hpcmpq.config import parse_config
from hpcmpq.models.data.samples import Samples
from hpcmpq.planning import again_seconds as predicting
from hpcmpq.planning.again_seconds import FitTimes, SharedInput, again_seconds, shared_inputs
from hpcmpq.planning.part_times import PartTimes
from hpcmpq.quantized import losses
from hpcmpq.rounding import again, methods
from hpcmpq.rounding.layer_inputs import InputSums
from hpcmpq.rounding.stage import reround
from hpcmpq.settings import to_values
from hpcmpq.store.json_files import read_json
from tests.export.planned import llama, plan_run, solve_by_turns

SUM, FIT, ROWS, FORWARD = 1.0, 1e3, 1e5, 1e8
"""Seconds that each step is said to take; sums of them show how many there were."""

NOTHING = PartTimes(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def counted(monkeypatch: pytest.MonkeyPatch, place: object, name: str, calls: Counter[str]) -> None:
    """Count the calls of a function under its name."""
    function = getattr(place, name)

    def run(*args, **named):
        calls[name] += 1
        return function(*args, **named)

    monkeypatch.setattr(place, name, run)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["qep", "gptq"])
def test_steps_are_those_that_rounding_again_takes(method, tmp_path: Path, monkeypatch):
    run, plan = plan_run(
        tmp_path, llama(), torch.float32, formats=["int4", "int8"], reround={"method": method}
    )
    assert read_json(run.file("cost.json"), "")["reround_seconds"] > 0
    monkeypatch.setattr(FitTimes, "sums", lambda *_: SUM)
    monkeypatch.setattr(FitTimes, "fit", lambda *_: FIT)
    monkeypatch.setattr(FitTimes, "rows", lambda *_: ROWS)
    batch = Samples(
        {"input_ids": torch.zeros(plan.config.calibration.samples_per_pass, 32, dtype=torch.int64)}
    )
    times = PartTimes(FORWARD, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    num_passes = 8 / plan.config.calibration.samples_per_pass
    predicted = again_seconds(llama(), plan.config, plan.space, batch, times, num_passes, True)

    calls: Counter[str] = Counter()
    counted(monkeypatch, InputSums, "add", calls)
    counted(monkeypatch, methods, method, calls)
    counted(monkeypatch, again, "rounded_rows", calls)
    counted(monkeypatch, losses, "forward", calls)
    solve_by_turns(run, plan)
    reround(run, method, None, lambda *_: None)
    taken = (
        calls["add"] * SUM + calls[method] * FIT + calls["rounded_rows"] * ROWS + calls["forward"] * FORWARD
    )
    assert predicted == taken > FORWARD


@pytest.mark.slow
def test_walks_are_those_to_the_layers_in_both_models(tmp_path: Path, monkeypatch):
    """One pass through all blocks for the states, and a share of one for each input."""
    run, plan = plan_run(tmp_path, llama(), torch.float32, formats=["int4"])
    monkeypatch.setattr(FitTimes, "sums", lambda *_: 0.0)
    monkeypatch.setattr(FitTimes, "fit", lambda *_: 0.0)
    monkeypatch.setattr(FitTimes, "rows", lambda *_: 0.0)
    member = plan.space.groups[0].members[0]
    monkeypatch.setattr(
        predicting, "shared_inputs", lambda *_: [SharedInput([member], 0.5), SharedInput([member], 0.25)]
    )
    times = PartTimes(0.0, 10.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    batch = Samples({"input_ids": torch.zeros(1, 4, dtype=torch.int64)})
    for method, models in (("gptq", 1), ("qep", 2)):
        config = parse_config({**to_values(plan.config), "reround": {"method": method}})
        found = again_seconds(llama(), config, plan.space, batch, times, 3.0, True)
        assert found == pytest.approx(models * 3 * 10 * (1 + 0.5 + 0.25))
    nothing_held_out = to_values(plan.config)
    nothing_held_out["calibration"] = {**nothing_held_out["calibration"], "held_out": 0}
    config = parse_config(nothing_held_out)
    assert again_seconds(llama(), config, plan.space, batch, NOTHING, 1.0, True) is None


@pytest.mark.slow
def test_inputs_are_shared_and_reached_as_the_blocks_run(tmp_path: Path, monkeypatch):
    """With a clock that ticks at each layer: seven in each of two blocks, four of which are given another tensor."""
    _, plan = plan_run(tmp_path, llama(), torch.float32, formats=["int4"])
    ticks = count()
    monkeypatch.setattr(predicting, "cpu_seconds", lambda: float(next(ticks)))
    batch = Samples({"input_ids": torch.zeros(1, 4, dtype=torch.int64)})
    blocks = {member: group.block for group in plan.space.groups for member in group.members}
    found = shared_inputs(llama().eval(), batch, blocks)
    assert [[m.parameter.split(".")[-2] for m in own.members] for own in found] == 2 * [
        ["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"],
    ]  # fmt: skip
    assert [round(14 * own.share) for own in found] == 2 * [1, 4, 5, 7]
    whole = shared_inputs(llama().eval(), batch, dict.fromkeys(blocks))
    assert [round(14 * own.share) for own in whole] == [1, 4, 5, 7, 8, 11, 12, 14]
