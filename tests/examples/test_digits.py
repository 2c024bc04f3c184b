"""The digits example: what its config promises."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from hpcmpq.config import read_config
from hpcmpq.models.data.splits import load_splits
from hpcmpq.models.groups import find_groups
from hpcmpq.models.load import forward, load_model

pytestmark = pytest.mark.skipif(find_spec("sklearn") is None, reason="needs the extra examples")

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "digits.yaml"


def test_six_groups_of_four_formats_found_from_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = read_config(CONFIG)
    splits = load_splits(config)
    groups = find_groups(load_model(config.model), config.groups, splits.calibration.inputs)
    assert len(groups) == 6
    assert len(config.formats) == 4
    assert [len(splits.calibration), len(splits.held_out), len(splits.evaluation)] == [256, 128, 449]


def test_training_calibration_and_evaluation_share_no_image():
    from hpcmpq.examples.digits import calibration, evaluation, training

    images = [
        [image.numpy().tobytes() for image in part()[0]] for part in (training, calibration, evaluation)
    ]
    assert [len(part) for part in images] == [900, 448, 449]
    assert len(set().union(*images)) == 1797


def test_network_is_accurate_without_being_certain():
    from hpcmpq.examples.digits import evaluation, model

    images, classes = evaluation()
    z_NTV = forward(model().requires_grad_(False), {"input": images})
    assert z_NTV.shape == (449, 1, 10)
    log_pi_NV = z_NTV[:, 0].log_softmax(-1)
    assert (log_pi_NV.argmax(1) == classes).float().mean() > 0.97
    assert -(log_pi_NV.exp() * log_pi_NV).sum(1).mean() > 0.05  # nats: a divergence has room on both sides
    assert torch.nn.functional.nll_loss(log_pi_NV, classes) < 0.15
