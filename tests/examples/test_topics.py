"""The quickstart's text and config."""

from pathlib import Path

import pytest

from hpcmpq.config import read_config
from hpcmpq.examples.topics import calibration_text, evaluation_text, training_text
from hpcmpq.models.data.splits import load_splits
from hpcmpq.models.groups import find_groups
from hpcmpq.models.load import load_model

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "quickstart.yaml"


def test_text_has_three_disjoint_parts():
    parts = training_text(), calibration_text(), evaluation_text()
    total = sum(map(len, parts))
    assert [len(part) / total for part in parts] == pytest.approx([0.9, 0.05, 0.05], abs=1e-3)
    assert all(part[:500] not in other for part in parts for other in parts if other is not part)


def test_quickstart_searches_28_groups_on_disjoint_samples():
    config = read_config(CONFIG)
    splits = load_splits(config)
    assert [len(splits.calibration), len(splits.held_out), len(splits.evaluation)] == [64, 32, 64]
    contents = [
        content
        for part in (splits.calibration, splits.held_out, splits.evaluation)
        for content in part.content_hashes()
    ]
    assert len(set(contents)) == 160
    groups = find_groups(load_model(config.model), config.groups, splits.calibration.inputs)
    assert len(groups) == 28
    assert len(config.formats) == 7
    assert sorted({group.block for group in groups}) == [0, 1, 2, 3]
