"""Measured losses of one batch."""

import torch

from hpcmpq.models.data.samples import IGNORED, Samples
from hpcmpq.quantized.losses import compare


def test_padding_is_not_counted_with_and_without_labels():
    z_NTV = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    targets_NT = torch.tensor([[0, 0, 0, 0], [0, 0, IGNORED, IGNORED]])
    inputs = {"input_ids": torch.zeros(2, 4, dtype=torch.int64)}
    for labelled in (False, True):
        measured = compare(("kl",), z_NTV + 1.0, z_NTV, Samples(inputs, targets_NT, labelled))
        assert measured.labels_N.tolist() == [4, 2]
    assert measured.correct_N.tolist() == [
        int((z_NTV[0].argmax(-1) == 0).sum()), int((z_NTV[1, :2].argmax(-1) == 0).sum())
    ]  # fmt: skip
    everything = compare(("kl",), z_NTV, z_NTV, Samples(inputs))
    assert everything.labels_N.tolist() == [4, 4] and everything.correct_N.tolist() == [0, 0]
