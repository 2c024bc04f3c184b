"""The config: typed, complete, and helpful when it is wrong."""

from pathlib import Path

import pytest

from hpcmpq.config import parse_config, read_config
from hpcmpq.errors import UserError
from hpcmpq.settings import is_factory, to_values

SMALL = {"model": {"path": "m"}, "calibration": {"data": "d.txt"}}


def test_defaults_are_filled_in_and_round_trip():
    config = parse_config({**SMALL, "sensitivity": "hessian"})
    assert config.sensitivity.method == "hessian"
    assert config.formats == ("int2", "int3", "int4", "int5", "int6", "int7", "int8")
    assert parse_config(to_values(config)) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"calibraton": {}}, "unknown key 'calibraton'; did you mean 'calibration'"),
        (
            {"solver": {"time_limit": 3}},
            "unknown key 'solver.time_limit'; did you mean 'solver.time_limit_s'",
        ),
        ({"formats": ["int9"]}, "unknown format 'int9'"),
        ({"formats": ["int2", "int2"]}, "twice"),
        ({"formats": []}, "empty"),
        ({"objective": "kll"}, "objective"),
        ({"model": {}}, "exactly one of path and factory"),
        ({"model": {"path": "m", "factory": "a:b"}}, "exactly one of path and factory"),
        ({"calibration": {"data": "d", "num_samples": 0}}, "calibration.num_samples must be positive"),
        ({"calibration": {"data": "d", "num_samples": "many"}}, "calibration.num_samples"),
        ({"sensitivity": {"probes": 1_000_000}}, "sensitivity.probes must be at most 1,024, got 1,000,000"),
        ({"calibration": {}}, "calibration.data"),
        ({"quantizer": {"group_size": -1}}, "quantizer.group_size must be positive"),
        ({"solver": {"shrink": -1}}, r"solver.shrink must be auto or a number of at least 0, got -1\.0"),
        ({"solver": {"shrink": "some"}}, "solver.shrink must be auto or a number of at least 0, got 'some'"),
        ({"model": 3}, "model"),
    ],
)
def test_wrong_values_say_where_and_what(changes, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        parse_config({**SMALL, **changes})


def test_paths_are_relative_to_the_file(tmp_path):
    (tmp_path / "c.yaml").write_text("model: {path: m}\ncalibration: {data: 'pkg.mod:text'}\n")
    config = read_config(tmp_path / "c.yaml")
    assert config.model.path == str(tmp_path / "m")
    assert config.calibration.data == "pkg.mod:text"


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "3"])
def test_unreadable_files_are_user_errors(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=r"c\.yaml"):
        read_config(tmp_path / "c.yaml")
    with pytest.raises(UserError, match="check the path"):
        read_config(tmp_path / "missing.yaml")


def test_what_counts_as_a_factory():
    assert is_factory("package.module:function")
    assert not is_factory("C:\\data.txt")
    assert not is_factory("/data/a:b/c.txt")


def test_every_shipped_config_is_valid():
    paths = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
    assert paths
    for path in paths:
        read_config(path)
