"""The parameter groups of a model: which weights are searched, and what must share a format.

Searchable are the weights of `nn.Linear`, `nn.Conv1d/2d/3d`, transformers' `Conv1D` and `nn.Embedding`, the tensors in
which transformers keeps all experts of a layer, and the input projections of `nn.MultiheadAttention`; of these, all
that the outputs depend on (a plain encoder's pooler does not reach its last hidden state). Without `include` patterns
everything searchable is searched but

- embeddings: `nn.Embedding`, whatever is tied to one, and layers inside a module called embeddings or
  patch_embed, such as a vision transformer's patch projection;
- the output head: the model's `get_output_embeddings()`; without that the last layer that ran, if its
  output is the model's output, or if it is called head, classifier, score, fc, output or the like.

With `include` patterns exactly the searchable modules that match are searched. `exclude` always wins.
`attention_products` and `kv_cache` add groups without weights, see `hpcmpq.models.attention_products`.
"""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from hpcmpq.errors import UserError
from hpcmpq.models.active_weights import active_shares
from hpcmpq.models.attention_products import with_products
from hpcmpq.models.blocks import block_numbers
from hpcmpq.models.joined_weights import conversions
from hpcmpq.models.searchable_layers import Layer, trace_layers
from hpcmpq.models.split_weights import num_stored_tensors
from hpcmpq.models.weights import as_matrix, from_matrix, holder_of, num_fixed_bytes, swapped
from hpcmpq.settings import GroupsConfig
from hpcmpq.space import Group, Member

__all__ = ["as_matrix", "find_groups", "from_matrix", "holder_of", "num_fixed_bytes", "swapped"]

_EMBEDDING_PART = re.compile(r"(^|\.)(patch_)?(embed|embedder|embedding|embeddings)(\.|$)")
_HEAD_PART = re.compile(r"(^|\.)(lm_)?(head|heads|classifier|score|fc|output|out_proj|logits|to_logits)$")
_NUM_LISTED = 20
_UNKNOWN_SHARE = 0.02

_log = logging.getLogger(__name__)


def find_groups(
    model: nn.Module, config: GroupsConfig, sample_inputs: dict[str, Tensor]
) -> tuple[Group, ...]:
    """The groups to search, in model order.

    Args:
        model: In eval mode.
        config: Patterns and tie rules.
        sample_inputs: Inputs of at least one sample; one forward pass counts multiply-accumulates and
            finds out which weights matter.

    Raises:
        UserError: If a pattern matches nothing (the message lists what exists), a module falls under
            two tie rules, nothing is left to search, or the model's attention cannot be taken apart.
    """
    layers = trace_layers(model, sample_inputs)
    unused = [layer for layer in layers if not layer.used]
    searchable = [layer for layer in layers if layer.used]
    for key, patterns in (("include", config.include), ("exclude", config.exclude)):
        for pattern in patterns:
            _check_pattern(pattern, f"groups.{key}", searchable, unused)
    if config.include:
        chosen = [layer for layer in searchable if _matches(layer, config.include)]
    else:
        ordinary = [layer for layer in searchable if not _is_embedding(model, layer) and not _is_head(layer)]
        chosen = [layer for layer in ordinary if not layer.chooses]
        _say_choosing([layer for layer in ordinary if layer.chooses and not _matches(layer, config.exclude)])
    chosen = [layer for layer in chosen if not _matches(layer, config.exclude)]
    if not chosen:
        others = next(iter(_other_weights(model, layers)), "none")
        if not searchable:
            raise UserError(
                "the model has no weight to search: its outputs depend on no linear layer, convolution, embedding or "
                f"experts; its largest other weight is {others}"
            )
        raise UserError(
            f"groups leaves nothing to search; searchable modules are {_listed(searchable)}, the largest weight of "
            f"other kinds is {others}; name some in groups.include"
        )
    _warn_of_other_weights(model, layers)
    _warn_of_unused(model, unused)
    _warn_of_uncounted(model, chosen)
    groups = _tie(model, chosen, config.tie)
    if not (config.attention_products or config.kv_cache):
        return groups
    return with_products(model, groups, config, sample_inputs)


def _other_weights(model: nn.Module, layers: Sequence[Layer]) -> dict[str, int]:
    """{name: numel} of matrices and larger tensors in no layer that can be searched, without biases, largest first."""
    known = {id(model.get_parameter(layer.parameter)) for layer in layers}
    others = {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.ndim >= 2 and id(parameter) not in known and not name.endswith("bias")
    }
    return dict(sorted(others.items(), key=lambda entry: -entry[1]))


def _warn_of_other_weights(model: nn.Module, layers: Sequence[Layer]) -> None:
    """Say so if many weights lie outside the layers that can be searched, such as those of an LSTM."""
    others = _other_weights(model, layers)
    share = sum(others.values()) / sum(parameter.numel() for parameter in model.parameters())
    if share > _UNKNOWN_SHARE:
        _log.warning(
            "%.0f %% of the weights are in no linear layer, convolution, embedding or experts and stay as they are, "
            "first %s", 100 * share, next(iter(others)),
        )  # fmt: skip


def _warn_of_unused(model: nn.Module, unused: Sequence[Layer]) -> None:
    """Say so if many weights play no part in the outputs, such as those that see images where samples are texts."""
    numel = sum(model.get_parameter(layer.parameter).numel() for layer in unused)
    share = numel / sum(parameter.numel() for parameter in model.parameters())
    if share > _UNKNOWN_SHARE:
        _log.warning(
            "%.0f %% of the weights play no part in the outputs on these samples and stay as they are, first %s",
            100 * share, unused[0].names[0],
        )  # fmt: skip


def _say_choosing(layers: Sequence[Layer]) -> None:
    if layers:
        _log.info(
            "%d layers that choose or weigh experts stay as they are, first %s; groups.include can name them",
            len(layers), layers[0].names[0],
        )  # fmt: skip


def _warn_of_uncounted(model: nn.Module, layers: Sequence[Layer]) -> None:
    """Say so if a layer's weight is used without calling it, so that its multiplications were not seen."""
    embeddings = [isinstance(model.get_submodule(_module(layer)), nn.Embedding) for layer in layers]
    names = [
        layer.names[0]
        for layer, is_embedding in zip(layers, embeddings, strict=True)
        if not layer.macs and not is_embedding
    ]
    if names:
        _log.warning(
            "%d layers are used without being called, first %s: budgets of macs and bops count nothing for them",
            len(names), names[0],
        )  # fmt: skip


def _module(layer: Layer) -> str:
    """Name of the first module that holds a layer's weight."""
    return layer.parameter.rpartition(".")[0]


def _matches(layer: Layer, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in layer.names for pattern in patterns)


def _check_pattern(pattern: str, place: str, searchable: Sequence[Layer], unused: Sequence[Layer]) -> None:
    if any(_matches(layer, [pattern]) for layer in searchable):
        return
    if any(_matches(layer, [pattern]) for layer in unused):
        raise UserError(
            f"{place} pattern {pattern!r} matches only modules that the outputs do not depend on; remove it"
        )
    raise UserError(f"{place} pattern {pattern!r} matches no module; there are {_listed(searchable)}")


def _listed(layers: Sequence[Layer]) -> str:
    names = [layer.names[0] for layer in layers]
    rest = f" and {len(names) - _NUM_LISTED} more" if len(names) > _NUM_LISTED else ""
    return (", ".join(names[:_NUM_LISTED]) or "no searchable modules") + rest


def _is_embedding(model: nn.Module, layer: Layer) -> bool:
    modules = [] if layer.is_parameter else [model.get_submodule(name) for name in layer.names]
    return any(isinstance(module, nn.Embedding) for module in modules) or any(
        _EMBEDDING_PART.search(name) for name in layer.names
    )


def _is_head(layer: Layer) -> bool:
    if layer.declared_head or layer.is_output:
        return True
    return layer.ran_last and any(_HEAD_PART.search(name) for name in layer.names)


def _tie(model: nn.Module, layers: Sequence[Layer], rules: Sequence[Sequence[str]]) -> tuple[Group, ...]:
    """Groups of the chosen layers: one each, or fused by the rule that names them.

    A pattern speaks of the last parts of a name, as many as it has; what comes before is the common parent. Where
    patterns of several lengths fit, the longest count: `experts.*.up_proj` before `up_proj`.
    """
    bundles: dict[tuple[str, int], list[Layer]] = {}
    named: dict[tuple[str, int], dict[str, None]] = {}
    hits: set[tuple[int, str]] = set()
    for position, layer in enumerate(layers):
        name = layer.names[0]
        found = [(r, p) for r, rule in enumerate(rules) for p in rule if fnmatchcase(_split(name, p)[1], p)]
        longest = max((pattern.count(".") for _, pattern in found), default=0)
        found = [(r, p) for r, p in found if p.count(".") == longest]
        hits.update(found)
        rule_indices = sorted({r for r, _ in found})
        if len(rule_indices) > 1:
            raise UserError(
                f"groups.tie names {name} in {len(rule_indices)} rules; a module can be tied once"
            )
        key = (_split(name, found[0][1])[0], rule_indices[0]) if found else (name, -1 - position)
        bundles.setdefault(key, []).append(layer)
        named.setdefault(key, {}).update({p if longest else _split(name, p)[1]: None for _, p in found})
    for r, rule in enumerate(rules):
        for pattern in rule:
            if (r, pattern) not in hits:
                lasts = sorted({layer.names[0].rpartition(".")[2] for layer in layers})
                raise UserError(
                    f"groups.tie pattern {pattern!r} matches no searched module; last name parts are "
                    + ", ".join(lasts[:_NUM_LISTED])
                )
    blocks = block_numbers(model, [bundle[0].names[0] for bundle in bundles.values()])
    shares, (_, converters) = active_shares(model), conversions(model)
    return tuple(
        Group(
            _group_name(key[0], bundle, named[key]),
            tuple(_member(model, layer, shares, converters) for layer in bundle),
            block,
        )
        for (key, bundle), block in zip(bundles.items(), blocks, strict=True)
    )


def _split(name: str, pattern: str) -> tuple[str, str]:
    """A module's name as its parent's, and as many last parts as the pattern has."""
    parts = name.split(".")
    cut = max(0, len(parts) - 1 - pattern.count("."))
    return ".".join(parts[:cut]), ".".join(parts[cut:])


def _group_name(parent: str, bundle: Sequence[Layer], named: Iterable[str]) -> str:
    if len(bundle) == 1:
        return bundle[0].names[0] or "weight"
    lasts = ",".join(named)
    return f"{parent}.{{{lasts}}}" if parent else f"{{{lasts}}}"


def _member(model: nn.Module, layer: Layer, shares: Mapping[str, float], converters: list[Any]) -> Member:
    weight = model.get_parameter(layer.parameter)
    stacked = layer.is_parameter and weight.ndim == 3
    if layer.is_parameter or layer.transposed:  # all axes but that of the inputs are outputs, experts too
        columns = weight.shape[-2 if layer.transposed else -1]
    else:
        columns = weight[0].numel()
    return Member(
        layer.parameter,
        weight.numel() // columns,
        columns,
        layer.transposed,
        layer.macs,
        active=shares.get(layer.parameter, 1.0),
        tensors=num_stored_tensors(model, layer.parameter, converters) if stacked else 1,
    )
