"""Keys and values in 4 bits, bit for bit as the engine's source says, a number at a time."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hpcmpq.formats import FORMATS
from hpcmpq.quantizers.activations import round_activations
from hpcmpq.quantizers.rotated import block_of, hadamard, round_rotated
from tests.four_bit_cache import butterfly, seen, signs, to_bfloat16

SIZES = [8, 32, 40, 48, 64, 72, 80, 96, 112, 128, 192, 256]
DTYPES = [torch.float32, torch.bfloat16, torch.float64]


def drawn(seed: int, size: int, heads: int = 2) -> torch.Tensor:
    """Heads of which one has a number that stands out."""
    x = torch.randn(heads, size, generator=torch.Generator().manual_seed(seed))
    x[0, seed % size] *= 40
    return x


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_head_is_kept_as_the_source_says(size, dtype):
    x = torch.cat([drawn(size, size), drawn(1, size) * 1e-4, drawn(2, size) * 1e3, drawn(3, size) + 5])
    x = torch.cat([x, torch.zeros(1, size), torch.eye(size)[:2] * -50.0]).to(dtype)
    want = np.stack([seen(head) for head in x.double().numpy()])
    assert torch.equal(round_rotated(x), torch.from_numpy(want).to(dtype))
    assert torch.equal(
        round_activations(x[None], FORMATS["int4_per_token_head"], (-1,)), round_rotated(x)[None]
    )


@settings(max_examples=40, deadline=None)
@given(
    size=st.sampled_from([8, 16, 24, 40]),
    dtype=st.sampled_from(DTYPES),
    values=st.lists(st.floats(-1e4, 1e4, width=32), min_size=8, max_size=8),
)
def test_any_head_is_kept_as_the_source_says(size, dtype, values):
    x = torch.tensor(values).repeat(size // 8)[None].to(dtype)
    assert torch.equal(round_rotated(x)[0], torch.from_numpy(seen(x[0].double().numpy())).to(dtype))


@pytest.mark.parametrize("size", SIZES)
def test_the_signs_are_those_that_torch_draws(size):
    block = block_of(size)
    assert block == next(b for b in (256, 128, 64, 32, 16, 8) if size % b == 0)
    # Signs alone are rotated to one number in each block, which the largest code is for: nothing is lost.
    x = torch.from_numpy(np.tile(signs(block), size // block))[None]
    torch.testing.assert_close(round_rotated(x), x, rtol=1e-5, atol=0)


@pytest.mark.parametrize("size", [8, 24, 64])
def test_the_rotation_is_by_hadamard_matrices(size):
    x = torch.randint(-50, 50, (3, size), generator=torch.Generator().manual_seed(0)).double()
    matrix = scipy.linalg.block_diag(*[scipy.linalg.hadamard(block_of(size))] * (size // block_of(size)))
    assert torch.equal(hadamard(x), x @ torch.from_numpy(matrix).double())
    assert torch.equal(hadamard(hadamard(x)), block_of(size) * x)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.sampled_from(SIZES), power=st.integers(-8, 8))
def test_heads_are_apart_and_scales_follow_them(seed, size, power):
    x = drawn(seed, size, 3)
    rounded = round_rotated(x)
    assert torch.equal(torch.stack([round_rotated(head) for head in x]), rounded)
    assert torch.equal(round_rotated(x.flip(0)).flip(0), rounded)
    assert torch.equal(round_rotated(x * 2.0**power), rounded * 2.0**power)
    assert torch.equal(round_rotated(x.bfloat16().float()), rounded)  # what a GPU rotates has 8 bits


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.sampled_from(SIZES))
def test_the_error_is_that_of_codes_with_a_step_of_a_fifteenth(seed, size):
    (x,) = drawn(seed, size, 1).double()
    block = block_of(size)
    turned = to_bfloat16(
        np.concatenate([butterfly(part * signs(block)) for part in x.numpy().reshape(-1, block)])
    )
    low, high = float(turned.min()), float(turned.max())
    assume(low <= 0 <= high)  # else no zero point is far enough
    # A code is half a step off, at the ends another half, where the zero point was rounded; bfloat16 has 8 bits.
    step = (high - low) / 15
    most = (step * (1 + 1e-4) + 2 * 2**-8 * max(abs(low), high)) * (size / block) ** 0.5
    assert float((round_rotated(x) - x).norm()) <= most


def test_what_is_no_number_stays_in_its_head():
    x = drawn(0, 64, 3)
    x[1, 7] = torch.nan
    rounded = round_rotated(x)
    assert rounded[1].isnan().all()
    assert torch.equal(rounded[::2], round_rotated(x[::2]))
    assert torch.equal(round_rotated(torch.zeros(1, 64)), torch.zeros(1, 64))


def test_options_of_one_pass_are_rounded_with_the_same_bits():
    x = drawn(5, 80, 6).reshape(3, 2, 80)
    assert torch.equal(torch.func.vmap(round_rotated)(x), round_rotated(x))
