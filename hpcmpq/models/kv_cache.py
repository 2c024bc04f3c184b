"""Keys and values as a server's cache holds them, as modules whose inputs a format rounds.

Below every attention module that keeps keys and values a small module hands both on; what rounds the inputs of layers
rounds them. A scale is of one token and one head, the largest absolute value over the largest code, as vLLM 0.32.0
stores them with `--kv-cache-dtype int8_per_token_head` and `fp8_per_token_head`
(`v1/attention/ops/triton_reshape_and_cache_flash.py`); for `int4_per_token_head` see `hpcmpq.quantizers.rotated`.
"""

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn

from hpcmpq.errors import UserError
from hpcmpq.formats import FORMATS

CACHE = "key_value_cache"


class KeyValueCache(nn.Module):
    """Keys [N, heads, T, D] and values [N, heads, T, D] of attention, handed on."""

    def forward(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Both, as they are."""
        return key, value


def check_cached(modules: Iterable[nn.Module], paths: Mapping[nn.Module, str]) -> None:
    """Raise `UserError` unless what these attention modules multiply is what a server's cache holds.

    Args:
        modules: That called the attention function.
        paths: Their names.
    """
    found = list(modules)
    if not any(getattr(module, "is_causal", False) for module in found):
        raise UserError(
            "no attention of this model is causal, so no keys and values are kept; leave out groups.kv_cache"
        )
    for module in found:
        if hasattr(module, "kv_lora_rank") or hasattr(module, "kv_b_proj"):
            reason = "keeps latent vectors in place of keys and values"
        elif getattr(module, "is_kv_shared_layer", False):
            reason = "reads the keys and values of another layer"
        elif not getattr(module, "is_causal", False):
            reason = "is not causal"
        else:
            continue
        raise UserError(f"{paths[module]} {reason}, which groups.kv_cache does not know; leave it out")


def check_widths(name: str, key: Tensor, value: Tensor, formats: Sequence[str]) -> None:
    """Raise `UserError` unless a server can keep the keys and values of one cache in these formats.

    Args:
        name: Of the cache.
        key: Keys [N, heads, T, D].
        value: Values [N, heads, T, D].
        formats: Of the cache.
    """
    widths = key.shape[-1], value.shape[-1]
    scaled = [each for each in formats if FORMATS[each].scaled]
    if widths[0] != widths[1] and scaled:
        raise UserError(
            f"{name} has keys of {widths[0]} numbers and values of {widths[1]}, which vLLM keeps in 16 bits alone; "
            f"leave {', '.join(scaled)} out of groups.kv_cache"
        )
