"""A small CNN on scikit-learn's handwritten digits (8 × 8 pixels, 10 classes, 1,797 images).

Six layers of about equal say, few enough to enumerate every assignment of four formats. The images are split
once: `training` fits the weights, `calibration` and `evaluation` were never trained on and share no image.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

WEIGHTS = Path(__file__).with_name("digits.safetensors")
"""Made by `configs/train_digits.py`."""

NUM_TRAINING = 900
NUM_CALIBRATION = 448


class DigitsCNN(nn.Module):
    """Four convolutions and two linear layers: images [N, 1, 8, 8] to logits [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1)
        self.conv3 = nn.Conv2d(16, 24, 3, padding=1)
        self.conv4 = nn.Conv2d(24, 24, 3, padding=1)
        self.hidden = nn.Linear(24 * 4, 32)
        self.output = nn.Linear(32, 10)

    def forward(self, input: Tensor) -> Tensor:
        """Logits [N, 10] of images [N, 1, 8, 8] with values in [0, 1]."""
        x = self.conv1(input).relu()
        x = nn.functional.max_pool2d(self.conv2(x).relu(), 2)
        x = self.conv3(x).relu()
        x = nn.functional.max_pool2d(self.conv4(x).relu(), 2)
        return self.output(self.hidden(x.flatten(1)).relu())


def model() -> DigitsCNN:
    """The trained network."""
    from safetensors.torch import load_file

    network = DigitsCNN()
    network.load_state_dict(load_file(WEIGHTS))
    return network.eval()


def training() -> tuple[Tensor, Tensor]:
    """Images float32 [900, 1, 8, 8] in [0, 1] and classes int64 [900] that the weights were fitted to."""
    return _part(slice(0, NUM_TRAINING))


def calibration() -> tuple[Tensor, Tensor]:
    """448 images and classes for calibration and held-out samples."""
    return _part(slice(NUM_TRAINING, NUM_TRAINING + NUM_CALIBRATION))


def evaluation() -> tuple[Tensor, Tensor]:
    """The last 449 images and classes."""
    return _part(slice(NUM_TRAINING + NUM_CALIBRATION, None))


def _part(rows: slice) -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))[rows]
    images = torch.tensor(digits.images, dtype=torch.float32)[order].unsqueeze(1) / 16.0
    return images, torch.tensor(digits.target, dtype=torch.int64)[order]
