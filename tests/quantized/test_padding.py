"""Rows of a layer's inputs at padded positions, told by shapes."""

import torch

from hpcmpq.quantized.padding import padding_masks, without_padding

REAL_NT = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
X_NTK = torch.arange(60.0).reshape(3, 5, 4)
ROWS = [X_NTK[n, t].tolist() for n in range(3) for t in range(5) if REAL_NT[n, t]]


def test_rows_in_every_layout():
    masks = padding_masks({"input_ids": torch.ones(3, 5), "attention_mask": REAL_NT.long()})
    assert without_padding(X_NTK, masks).tolist() == ROWS
    assert without_padding(X_NTK.reshape(15, 4), masks).tolist() == ROWS
    assert sorted(without_padding(X_NTK.transpose(0, 1), masks).tolist()) == sorted(
        without_padding(X_NTK, masks).tolist()
    )
    heads_NHTK = X_NTK[:, None].repeat(1, 2, 1, 1)
    assert without_padding(heads_NHTK, masks, 2)[:, 1].tolist() == ROWS
    assert without_padding(heads_NHTK.transpose(2, 3), masks, 3)[:, 0].tolist() == ROWS


def test_what_has_no_positions_counts_whole():
    masks = padding_masks({"attention_mask": REAL_NT.long()})
    pooled_NK = torch.ones(3, 5)  # as many features as positions
    for whole in (pooled_NK, torch.ones(3, 7, 4), torch.ones(9, 4)):
        assert without_padding(whole, masks) is whole


def test_masks_without_padding_and_of_other_kinds_are_none():
    assert padding_masks({"attention_mask": torch.ones(3, 5)}) == ()
    assert padding_masks({"attention_mask": torch.zeros(3, 1, 5, 5)}) == ()
    assert padding_masks({"input_ids": torch.zeros(3, 5)}) == ()


def test_two_masks_of_an_encoder_decoder():
    other_NT = REAL_NT.flip(0)
    [both] = padding_masks({"attention_mask": REAL_NT, "decoder_attention_mask": other_NT})
    assert torch.equal(both, REAL_NT | other_NT)
    longer_NT = torch.tensor([[1, 0, 0]] * 3)
    masks = padding_masks({"attention_mask": REAL_NT, "decoder_attention_mask": longer_NT})
    assert without_padding(torch.ones(3, 3, 2), masks).shape == (3, 2)
    assert len(without_padding(X_NTK, masks)) == len(ROWS)
