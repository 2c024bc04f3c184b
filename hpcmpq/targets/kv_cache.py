"""How vLLM names the formats of its cache of keys and values, what it keeps in them, and the options that serve them.

One format beside 16 bits at a time: a server has one for its cache and a list of layers that it leaves alone. Source:
vLLM 0.32.0, `config/cache.py`; layers by number as `model_executor/layers/attention/attention.py` reads them; sizes of
heads and GPUs as `v1/attention/backends/triton_attn.py` takes them, the one backend that keeps scales.
"""

from collections.abc import Mapping, Sequence

from hpcmpq.errors import UserError
from hpcmpq.formats import FORMATS
from hpcmpq.space import Group
from hpcmpq.tables import look_up
from hpcmpq.targets.gpus import GPUS

CACHE_DTYPES = {
    "int4_per_token_head": "int4_per_token_head",
    "w8a8": "int8_per_token_head",
    "fp8_e4m3": "fp8_per_token_head",
    "bf16": "auto",
}
"""{format, whose activations keys and values are rounded to: `--kv-cache-dtype`}."""

LEAST_CAPABILITY = {"fp8_e4m3": 89}
"""The least compute capability, times ten, of GPUs that keep a format; the others are kept by all of `GPUS`."""

LEAST_HEAD = 32
"""Numbers of the smallest heads that scales are kept of."""

SCALE_BYTES = 4
"""Of the float32 scale of one token's key or value in one head."""


def check_cache_formats(names: Sequence[str], target: str | None, gpu: str | None, source: str) -> None:
    """Raise `UserError` unless a server, on that GPU if one is named, can mix these formats in its cache."""
    for name in names:
        if name not in CACHE_DTYPES:
            raise UserError(
                f"{source}: groups.kv_cache names {name}; it takes {', '.join(CACHE_DTYPES)}, as vLLM's cache does"
            )
    if names and (len(set(names)) != len(names) or sum(FORMATS[name].scaled for name in names) > 1):
        raise UserError(
            f"{source}: groups.kv_cache takes one format of 4 or 8 bits and bf16 beside it, as a server does; "
            f"got {', '.join(names)}"
        )
    if names and target not in (None, "vllm"):
        raise UserError(
            f"{source}: groups.kv_cache is for target vllm, whose options the export prints; leave it out with {target}"
        )
    for name in names:
        if gpu is not None and look_up(GPUS, gpu, "gpu") < LEAST_CAPABILITY.get(name, 0):
            raise UserError(
                f"{source}: vLLM on gpu {gpu} keeps no cache in {name}; take w8a8 in groups.kv_cache, or another gpu"
            )


def check_numbered(caches: Sequence[Group]) -> None:
    """Raise `UserError` unless a server can be told to leave each of these caches alone."""
    lost = next((group for group in caches if group.block is None), None)
    if lost is not None:
        raise UserError(
            f"{lost.name} is in no numbered block, so vLLM cannot be told to leave its cache alone; leave bf16 out of "
            "groups.kv_cache"
        )


def check_heads(caches: Sequence[Group], names: Sequence[str]) -> None:
    """Raise `UserError` unless heads are of a size that a server keeps in these formats.

    A float32 scale lies behind every head's numbers, so these have to fill words of 4 bytes.
    """
    for name in (name for name in names if FORMATS[name].scaled):
        whole = 8 * SCALE_BYTES // FORMATS[name].num_bits
        for group in caches:
            sizes = [product.cached // product.vectors for product in group.products]
            size = next((size for size in sizes if size < LEAST_HEAD or size % whole), None)
            if size is not None:
                raise UserError(
                    f"{group.name} has heads of {size} numbers, and vLLM keeps {name} of multiples of {whole} from "
                    f"{LEAST_HEAD} on; leave {name} out of groups.kv_cache"
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
