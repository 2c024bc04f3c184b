"""Inside attention, as modules: queries · keys and attention weights · values, and the cache of keys and values.

A transformers model is given an attention function that multiplies through two small modules below every attention
module, `query_key` and `attention_value`, and hands keys and values through a third, `hpcmpq.models.kv_cache`. They
hold no weights; what rounds or watches the inputs of layers does the same to the two factors of a product, and to keys
and values. Everything else in the function is transformers' eager attention.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from hpcmpq.errors import UserError
from hpcmpq.models.blocks import block_numbers
from hpcmpq.models.kv_cache import CACHE, KeyValueCache, check_cached, check_widths
from hpcmpq.models.outputs import forward
from hpcmpq.settings import GroupsConfig
from hpcmpq.space import Group, Product

ATTENTION = "hpcmpq_products"
"""Name of the attention function in transformers' tables."""

NAMES = ("query_key", "attention_value")

AGREEMENT = {torch.bfloat16: 0.1, torch.float16: 0.01}
"""Largest relative difference between the model's outputs with its own attention and with ours; else 1e-4."""

_called: ContextVar[list[nn.Module] | None] = ContextVar("called", default=None)


class MatrixProduct(nn.Module):
    """left [..., T, D] times right [..., D, S]."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """The product [..., T, S]."""
        return left @ right


def product_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, softcap: float | None = None, position_bias: Tensor | None = None, **_: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attention [N, T, heads, D] of an attention module, by its formula; softmax in float32 at least."""
    called = _called.get()
    if called is not None:
        called.append(module)
    cache = module._modules.get(CACHE)
    if cache is not None:
        key, value = cache(key, value)
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    score = _multiply(module, NAMES[0], query, key.transpose(-1, -2))
    score = score * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        score = torch.tanh(score / softcap) * softcap
    if position_bias is not None:
        score = score + position_bias
    if attention_mask is not None:
        score = score + attention_mask
    weight = torch.softmax(score, -1, dtype=torch.promote_types(score.dtype, torch.float32)).to(query.dtype)
    return _multiply(module, NAMES[1], weight, value).transpose(1, 2).contiguous(), weight


def _multiply(module: nn.Module, name: str, left: Tensor, right: Tensor) -> Tensor:
    product = module._modules.get(name)
    return left @ right if product is None else product(left, right)


def attach_products(model: nn.Module, groups: Sequence[Group]) -> None:
    """Let a model multiply through the modules that `groups` name; nothing if they name none, or it does already.

    Raises:
        UserError: If the model is none of transformers'.
    """
    paths = [product.module for group in groups for product in group.products]
    if not paths:
        return
    _use_our_attention(model)
    for path in paths:
        parent, _, name = path.rpartition(".")
        _add(model.get_submodule(parent), name)


@torch.no_grad()
def with_products(
    model: nn.Module, groups: tuple[Group, ...], config: GroupsConfig, sample_inputs: dict[str, Tensor]
) -> tuple[Group, ...]:
    """The groups and, before the first that runs after it, one group for every product and cache inside attention.

    Args:
        model: Gets the modules.
        groups: Of weights.
        config: Says which of both are searched.
        sample_inputs: Of at least one sample.

    Raises:
        UserError: If the model's attention cannot be replaced, or computes something else than ours.
    """
    inputs = {name: value[:1].to(next(model.parameters()).device) for name, value in sample_inputs.items()}
    own_NTV = forward(model, inputs)
    _use_our_attention(model)
    modules: list[nn.Module] = []
    token = _called.set(modules)
    try:
        z_NTV = forward(model, inputs)
    finally:
        _called.reset(token)
    _check_agreement(model, modules, own_NTV, z_NTV)
    path_of = {module: path for path, module in model.named_modules()}
    names = (*((CACHE,) if config.kv_cache else ()), *(NAMES if config.attention_products else ()))
    if config.kv_cache:
        check_cached(modules, path_of)
    products = {}
    for module in dict.fromkeys(modules):
        for name in names:
            products[_add(module, name)] = f"{path_of[module]}.{name}"
    order, found_products = _watch(model, groups, products, config.kv_cache, inputs)
    found = list(groups)
    layers = [member.parameter for group in groups for member in group.members]
    blocks = block_numbers(model, [*layers, *products.values()])[len(layers) :]
    for path, block in zip(products.values(), blocks, strict=True):
        later = [place for place, group in enumerate(found) if order.get(group.name, 0) > order[path]]
        place = later[0] if later else len(found)
        found.insert(place, Group(path, (), block, (found_products[path],)))
    return tuple(found)


def _use_our_attention(model: nn.Module) -> None:
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    set_attention = getattr(model, "set_attn_implementation", None)
    if not callable(set_attention):
        raise UserError(
            "groups.attention_products and groups.kv_cache need a transformers model, whose attention can be replaced; "
            f"{type(model).__name__} is none, leave them out"
        )
    AttentionInterface.register(ATTENTION, product_attention)
    AttentionMaskInterface.register(ATTENTION, eager_mask)
    set_attention(ATTENTION)


def _check_agreement(model: nn.Module, modules: list[nn.Module], own_NTV: Tensor, z_NTV: Tensor) -> None:
    from torch._subclasses.fake_tensor import FakeTensor

    name = type(model).__name__
    if not modules:
        raise UserError(
            f"the attention of {name} cannot be replaced, so its products and caches cannot be searched; "
            "leave out groups.attention_products and groups.kv_cache"
        )
    if isinstance(z_NTV, FakeTensor):
        return
    limit = AGREEMENT.get(z_NTV.dtype, 1e-4) * float(own_NTV.abs().max())
    if not float((z_NTV - own_NTV).abs().max()) <= limit:
        raise UserError(
            f"the attention of {name} is not plain softmax attention: its outputs change when its products are "
            "taken apart; leave out groups.attention_products and groups.kv_cache"
        )


def _add(module: nn.Module, name: str) -> nn.Module:
    kind = KeyValueCache if name == CACHE else MatrixProduct
    if not isinstance(module._modules.get(name), kind):
        module.add_module(name, kind().eval())
    return module.get_submodule(name)


def _watch(
    model: nn.Module,
    groups: tuple[Group, ...],
    products: dict[nn.Module, str],
    cached: Sequence[str],
    inputs: dict[str, Tensor],
) -> tuple[dict[str, int], dict[str, Product]]:
    """{group or product: when it first ran}, {product or cache: what one forward pass saw of it}."""
    order: dict[str, int] = {}
    found = {path: Product(path) for path in products.values()}

    def run(module: nn.Module, args: tuple[Tensor, ...], output: Any, name: str) -> None:
        order.setdefault(name, len(order))
        if isinstance(module, KeyValueCache):  # [N, heads, T, D]
            key, value = args
            check_widths(name, key, value, cached)
            found[name] = Product(
                name, 0, sum(x.shape[1] * x.shape[3] for x in args), sum(x.shape[1] for x in args)
            )
        elif name in found:
            found[name] = Product(name, found[name].macs + output.numel() * args[0].shape[-1])

    with _hooked(model, groups, products, run):
        forward(model, inputs)
    return order, found


@contextmanager
def _hooked(
    model: nn.Module, groups: tuple[Group, ...], products: dict[nn.Module, str], run: Any
) -> Iterator[None]:
    named = dict(products)
    for group in groups:
        for member in group.members:
            named[model.get_submodule(member.parameter.rpartition(".")[0])] = group.name
    handles = [
        module.register_forward_hook(lambda m, args, output, name=name: run(m, args, output, name))
        for module, name in named.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
