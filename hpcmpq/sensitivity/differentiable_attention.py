"""Kernels of torch that have derivatives of any order, forward and backward."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def differentiable_kernels() -> Iterator[None]:
    """Inside, attention is computed by plain products: torch's fused kernels have first gradients only, or none.

    Models of transformers are loaded with eager attention instead; this is for modules that call
    `torch.nn.functional.scaled_dot_product_attention` or are `nn.TransformerEncoderLayer`.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
