"""A small residual CNN with random weights, whose blocks have parallel branches: for times, not for losses."""

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Two convolutions beside the identity, or beside a third that halves the image."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.norm = nn.BatchNorm2d(outputs)
        self.down = None if stride == 1 and inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output, an image of its stride's size."""
        beside = x if self.down is None else self.down(x)
        return (self.norm(self.second(self.first(x).relu())) + beside).relu()


class ResidualCNN(nn.Module):
    """Stem, four residual blocks, ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 1, 1)
        shapes = ((32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2))
        self.blocks = nn.Sequential(*(Block(*shape) for shape in shapes))
        self.output = nn.Linear(128, 10)

    def forward(self, input: Tensor) -> Tensor:
        """Class scores [N, 10] of images [N, 3, H, W]."""
        return self.output(self.blocks(self.stem(input).relu()).mean((2, 3)))


def residual_cnn() -> tuple[nn.Module, dict[str, Tensor]]:
    """The model in eval mode, and 16 random images of 32 × 32."""
    torch.manual_seed(0)
    model = ResidualCNN().eval().requires_grad_(False)
    return model, {"input": torch.randn(16, 3, 32, 32)}
