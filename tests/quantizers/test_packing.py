"""Dense packing of codes, against integers of any length."""

import pytest
import torch

from hpcmpq.quantizers import packing


@pytest.mark.parametrize("num_bits", range(2, 9))
@pytest.mark.parametrize("num_columns", [1, 21, 64])
def test_a_row_is_one_integer_with_the_codes_as_its_digits(num_bits, num_columns, monkeypatch):
    monkeypatch.setattr(packing, "STEP_ELEMENTS", 3 * num_columns)  # several steps
    lowest = -(2 ** (num_bits - 1))
    generator = torch.Generator().manual_seed(num_bits)
    codes = torch.randint(lowest, -lowest, (7, num_columns), generator=generator, dtype=torch.int16).to(
        torch.int8
    )
    words = packing.pack(codes, num_bits, lowest)
    assert words.dtype == torch.int32 and words.shape == (7, -(-num_columns * num_bits // 32))
    for row, packed in zip(codes.tolist(), words.tolist(), strict=True):
        whole = sum((code - lowest) << (num_bits * place) for place, code in enumerate(row))
        assert whole == sum((word % 2**32) << (32 * place) for place, word in enumerate(packed))
    assert torch.equal(packing.unpack(words, num_bits, num_columns) + lowest, codes.to(torch.int16))
