"""Values that types take and nothing can use: each is refused by its key, before anything is read."""

import os

import pytest

from hpcmpq.config import parse_config, read_config, values_of
from hpcmpq.errors import UserError, in_words
from hpcmpq.models.load import pick_device

SMALL = {"model": {"path": "m"}, "calibration": {"data": "d.txt"}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"calibration": {"data": "d", "num_samples": True}},
            "calibration.num_samples must be a number, got true",
        ),
        (
            {"calibration": {"data": "d", "held_out": False}},
            "calibration.held_out must be a number, got false",
        ),
        ({"sensitivity": {"probes": True}}, "sensitivity.probes must be a number"),
        ({"budgets": {"weight_bits": True}}, "budgets.weight_bits must be a number"),
        ({"solver": {"min_bits": {"*.mlp": True}}}, r"solver.min_bits.\*.mlp must be a number"),
        ({"budgets": {"weight_bits": float("inf")}}, "budgets.weight_bits must be a finite number, got inf"),
        ({"solver": {"time_limit_s": float("inf")}}, "solver.time_limit_s must be a finite number, got inf"),
        ({"solver": {"shrink": float("inf")}}, "solver.shrink must be a finite number"),
        ({"solver": {"time_limit_s": "inf"}}, "solver.time_limit_s must be a finite number, got inf"),
        ({"budgets": {"latency_s": "nan"}}, "budgets.latency_s must be a finite number, got nan"),
        ({"solver": {"robust_k": float("nan")}}, "solver.robust_k must be a finite number, got nan"),
        ({"solver": {"max_bits": {"*": float("nan")}}}, r"solver.max_bits.\* must be a finite number"),
        ({"solver": {"robust_k": -1}}, "solver.robust_k must not be negative, got -1"),
        ({"solver": {"seed": -1}}, "solver.seed must not be negative, got -1"),
        ({"solver": {"seed": 2**70}}, "solver.seed must be less than"),
        ({"calibration": {"data": "d", "seed": 2**70}}, "calibration.seed must be less than"),
        (
            {"calibration": {"data": "d", "seed": -(2**70)}},
            r"calibration.seed must be at least -2\^63, got -",
        ),
        ({"timing": {"generated_tokens": -1}}, "timing.generated_tokens must not be negative, got -1"),
        ({"refine": {"link_points": 0}}, "refine.link_points must be at least 3, got 0"),
        ({"model": {"path": "m\0"}}, "model.path holds a NUL"),
        ({"groups": {"exclude": ["a", "b\0"]}}, "groups.exclude.1 holds a NUL"),
    ],
)
def test_a_value_that_nothing_can_use_is_named(changes, message):
    with pytest.raises(UserError, match=message):
        parse_config({**SMALL, **changes})


def test_a_path_that_no_file_can_have_is_a_sentence(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text('model: {path: "\\ud842\\udfb7"}\ncalibration: {data: d.txt}\n')
    with pytest.raises(
        UserError, match=r"'\\ud842\\udfb7' leads nowhere: .*surrogates not allowed; correct the path"
    ):
        read_config(path)


def test_what_may_be_a_truth_value_or_a_word_still_is():
    config = parse_config(
        {
            "model": {"path": "m", "stream": True},
            "calibration": {"data": "d", "special_tokens": False, "seed": -3},
            "quantizer": {"symmetric": False, "group_size": None},
            "sensitivity": {"loss_positions": "all"},
        }
    )
    assert config.model.stream and config.calibration.special_tokens is False
    assert (config.calibration.seed, config.sensitivity.loss_positions) == (-3, "all")


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        (
            "budgets: {weight_bits: 3}\nformats: [int2]\nbudgets: {size_bytes: 9}\n",
            "budgets",
            "lines 1 and 3",
        ),
        ("solver:\n  seed: 1\n  time_limit_s: 2\n  seed: 3\n", "seed", "lines 2 and 4"),
    ],
)
def test_a_key_that_stands_twice_is_refused_rather_than_lost(text, key, lines):
    with pytest.raises(UserError, match=f"c.yaml has the key '{key}' twice, in {lines}"):
        values_of(text, "c.yaml")


@pytest.mark.parametrize(
    "value",
    ["2020-13-45", "2020-01-01T99:00:00Z", "1" * 5000, "!!int x", "!!bool x", "!!timestamp x"],
    ids=lambda value: value[:20],
)
def test_a_value_that_only_looks_like_a_date_or_a_number(value):
    with pytest.raises(UserError, match="c.yaml holds a value that is not what it is written like"):
        values_of(f"formats: [{value}]\n", "c.yaml")


@pytest.mark.parametrize("text", ["budgets: &b {weight_bits: *b}", "groups: {tie: &t [[*t]]}"])
def test_an_alias_to_what_it_stands_in_is_refused(text):
    with pytest.raises(UserError, match="c.yaml has an alias"):
        values_of(text, "c.yaml")


def test_what_many_aliases_lead_to_is_read_once():
    levels = ["a0: &a0 [1]"] + [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 16)]
    assert values_of("\n".join(levels), "c.yaml")["a1"] == [[1]] * 9  # 9^15 paths lead to the first


def test_anchors_and_merged_mappings_are_no_repetition():
    text = "base: &base {seed: 1, robust_k: 2}\nsolver: {<<: *base, seed: 3}\nrefine: *base\n"
    assert values_of(text, "c.yaml")["solver"] == {"seed": 3, "robust_k": 2}


def test_paths_that_lead_nowhere(tmp_path):
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for name in ("circle/model", "~nobody-has-this-name/model"):
        (tmp_path / "c.yaml").write_text(f"model: {{path: {name}}}\ncalibration: {{data: d.txt}}\n")
        with pytest.raises(UserError, match=f"{name} leads nowhere"):
            read_config(tmp_path / "c.yaml")
    with pytest.raises(OSError) as raised:
        os.stat(tmp_path / ("a" * 300))
    assert isinstance(in_words(raised.value), UserError)
    assert "correct the path" in str(in_words(raised.value))


def test_a_device_without_values_is_none():
    with pytest.raises(UserError, match="model.device 'meta' holds no values"):
        pick_device("meta")


def test_a_tilde_is_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "c.yaml").write_text("model: {path: ~/models/m}\ncalibration: {data: ~/d.txt}\n")
    config = read_config(tmp_path / "c.yaml")
    assert config.model.path == str(tmp_path / "home" / "models" / "m")
    assert config.calibration.data == str(tmp_path / "home" / "d.txt")
