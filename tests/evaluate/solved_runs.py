"""Planned run directories with a solution that nobody solved for: evaluation needs no calibration."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from hpcmpq.config import parse_config
from hpcmpq.executors.in_process import InProcess
from hpcmpq.planning.stage import prepare
from hpcmpq.rounding.option_units import round_options
from hpcmpq.store.json_files import write_json
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir
from tests.executors.launch import ROOT


def solved_run(path: Path, values: Mapping[str, Any], text: str | None = None) -> RunDir:
    """A run of a config; formats of groups alternate, and its size is that of the second format.

    Args:
        path: The run directory.
        values: The config; what it lacks of calibration is filled in.
        text: Becomes the data, if the config names none.
    """
    path.mkdir(parents=True)
    calibration = {"num_samples": 2, "held_out": 0, "sequence_length": 16, "samples_per_pass": 2}
    if text is not None:
        (path / "text.txt").write_text(text)
        calibration["data"] = str(path / "text.txt")
    config = parse_config({**values, "calibration": {**calibration, **values.get("calibration", {})}})
    run = RunDir(path)
    if prepare(config, run, (str(ROOT),)).config.quantizer.stores_codes:
        round_options(run, InProcess(), lambda *_: None)
    groups, formats = read_plan(run).space.groups, sorted(config.formats)
    assignment = {group.name: formats[place % 2] for place, group in enumerate(groups)}
    costs = {name: {"weight_bits": float(place)} for place, name in enumerate(formats)}
    solution = {
        "assignment": assignment,
        "budgets": {"weight_bits": 1.0},
        "costs": costs[formats[1]],
        "uniform": {name: {"costs": cost} for name, cost in costs.items()},
    }
    write_json(run.solution_path, solution)
    return run


def assert_same(values: Mapping[str, Any], others: Mapping[str, Any], absolute: float = 1e-9) -> None:
    """Numbers of two evaluations agree to rounding, whatever ran them."""
    for name in ("loss", "kl", "ce", "perplexity", "accuracy", "tasks", "intervals", "paired"):
        assert (name in values) == (name in others)
        if name in values:
            assert_close(values[name], others[name], absolute)
    assert values["num_tokens"] == others["num_tokens"] > 0


def assert_close(value: Any, other: Any, absolute: float) -> None:
    """Nested numbers agree to rounding."""
    if isinstance(value, dict):
        assert value.keys() == other.keys()
        for key in value:
            assert_close(value[key], other[key], absolute)
    elif isinstance(value, list):
        assert len(value) == len(other)
        for pair in zip(value, other, strict=True):
            assert_close(*pair, absolute)
    elif value is None:
        assert other is None
    else:
        assert value == pytest.approx(other, rel=1e-5, abs=absolute)


TEXT = "".join(
    f"Line {n}: {n * n % 97} bottles of beer on the wall, {n * 7 % 13} to go.\n" for n in range(60)
)

TINY_CONFIG: dict[str, Any] = {
    "model": {"factory": "tests.executors.tiny_model:model"},
    "calibration": {"data": "tests.executors.tiny_model:samples", "samples_per_pass": 1},
    "groups": {"include": ["*"]},
    "formats": ["int2", "int4"],
    "quantizer": {"group_size": None},
    "evaluation": {"num_samples": 18},
}
"""A model that costs nothing, for what is about processes."""
