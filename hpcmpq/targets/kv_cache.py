"""How vLLM names the formats of its cache of keys and values, and the options that serve a solution of them.

One format beside 16 bits at a time: a server has one for its cache and a list of layers that it leaves alone. Source:
vLLM 0.32.0, `config/cache.py`; layers by number as `model_executor/layers/attention/attention.py` reads them.
"""

from collections.abc import Mapping, Sequence

from hpcmpq.errors import UserError
from hpcmpq.formats import FORMATS
from hpcmpq.space import Group

CACHE_DTYPES = {"w8a8": "int8_per_token_head", "fp8_e4m3": "fp8_per_token_head", "bf16": "auto"}
"""{format, whose activations keys and values are rounded to: `--kv-cache-dtype`}."""

SCALE_BYTES = 4
"""Of the float32 scale of one token's key or value in one head."""


def check_cache_formats(names: Sequence[str], target: str | None, source: str) -> None:
    """Raise `UserError` unless a server can mix these formats in its cache."""
    for name in names:
        if name not in CACHE_DTYPES:
            raise UserError(
                f"{source}: groups.kv_cache names {name}; it takes {', '.join(CACHE_DTYPES)}, as vLLM's cache does"
            )
    if names and (len(set(names)) != len(names) or sum(FORMATS[name].scaled for name in names) > 1):
        raise UserError(
            f"{source}: groups.kv_cache takes one format of 8 bits and bf16 beside it, as a server does; "
            f"got {', '.join(names)}"
        )
    if names and target not in (None, "vllm"):
        raise UserError(
            f"{source}: groups.kv_cache is for target vllm, whose options the export prints; leave it out with {target}"
        )


def check_numbered(caches: Sequence[Group]) -> None:
    """Raise `UserError` unless a server can be told to leave each of these caches alone."""
    lost = next((group for group in caches if group.block is None), None)
    if lost is not None:
        raise UserError(
            f"{lost.name} is in no numbered block, so vLLM cannot be told to leave its cache alone; leave bf16 out of "
            "groups.kv_cache"
        )


def bytes_per_token(group: Group, format_name: str) -> float:
    """Bytes that a token adds to a group's cache, scales included; 0 of any other group."""
    activation = FORMATS[FORMATS[format_name].activation or format_name]
    numbers = sum(product.cached for product in group.products) * activation.num_bits / 8
    return numbers + (
        SCALE_BYTES * sum(product.vectors for product in group.products) if activation.scaled else 0
    )


def serve_options(groups: Sequence[Group], assignment: Mapping[str, str]) -> str:
    """Options of `vllm serve` for the caches of a solution; empty where all are left as they are.

    Example:
        >>> from hpcmpq.space import Product
        >>> caches = [Group(f"layers.{n}.attn", (), n, (Product("", cached=128, vectors=2),)) for n in (0, 1)]
        >>> serve_options(caches, {"layers.0.attn": "bf16", "layers.1.attn": "fp8_e4m3"})
        ' --kv-cache-dtype fp8_per_token_head --kv-cache-dtype-skip-layers 0'
    """
    caches = [group for group in groups if group.is_cache]
    scaled = {assignment[group.name] for group in caches if FORMATS[assignment[group.name]].scaled}
    if not scaled:
        return ""
    skipped = [group for group in caches if assignment[group.name] not in scaled]
    check_numbered(skipped)
    layers = " ".join(str(group.block) for group in skipped)
    (name,) = scaled
    return f" --kv-cache-dtype {CACHE_DTYPES[name]}" + (
        f" --kv-cache-dtype-skip-layers {layers}" if layers else ""
    )
