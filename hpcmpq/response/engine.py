"""Outputs z(p) of a model under every option p alone: one whole forward pass each, or a wavefront through its blocks.

z0_NTV, outputs = engine.respond(inputs, options)
for members, z_QNTV in outputs: ...
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from hpcmpq.models.chain.find_chain import find_chain
from hpcmpq.models.outputs import Inputs
from hpcmpq.models.streaming import streamed_chain
from hpcmpq.quantized.variants import Variants
from hpcmpq.response.block_options import Changes
from hpcmpq.response.fallback import Fallback
from hpcmpq.response.kept_choices import KeptChoices
from hpcmpq.response.low_precision import run_low_precision
from hpcmpq.response.wavefront import Wavefront
from hpcmpq.response.whole_model import WholeModel

log = logging.getLogger(__name__)

OPTIONS_PER_PASS = 8
"""Options that one pass through a block runs together by default."""

OPTIONS_PER_WAVE = 8
"""Options whose states are held at once by default, when the model is in memory: few, so that caches hold them."""

LOW_PRECISION_WAVE = 64, 2**28
"""With low-precision products each wave runs the original again: at least so many options, or bytes of states."""


class ResponseEngine(Protocol):
    """Something that runs every option."""

    def respond(
        self, inputs: Inputs, options: Sequence[int]
    ) -> tuple[Tensor, Iterator[tuple[list[int], Tensor]]]:
        """The original's outputs z0 [N, T, V], and (options, z [Q, N, T, V]) until all `options` are through."""
        ...


@torch.no_grad()
def make_engine(
    kind: Literal["auto", "whole"],
    variants: Variants,
    inputs: Inputs,
    *,
    low_precision: torch.dtype | None = None,
    exact_original: bool = False,
    options_per_pass: int | None = None,
    options_per_wave: int | None = None,
    choices: KeptChoices | None = None,
) -> ResponseEngine:
    """The engine for a model: the wavefront where it is a chain, else one whole pass per option, with a notice.

    Batches on which the model's code fails in the wavefront are run by whole passes too.

    Args:
        kind: ``whole`` runs whole passes even where the model is a chain.
        variants: The model, perhaps streamed, its search space and quantizer.
        inputs: Of one sample or two, to find the chain with.
        low_precision: Dtype of matrix products; the model's parameters are float32 then.
        exact_original: Whether the original runs its own products in the dtype of its parameters nevertheless.
        options_per_pass: Options of one pass through a block.
        options_per_wave: Options whose states are held at once.
        choices: Of experts, which options keep where they are active.

    Raises:
        UserError: If a streamed model is not a chain.
    """
    model = variants.model
    products = None if low_precision is None else run_low_precision(model, low_precision, exact_original)
    chain = None if kind == "whole" else find_chain(model, inputs, variants.space.groups)
    streamed = variants.streamed
    chain = streamed_chain(chain, streamed)
    whole = WholeModel(model, variants, products, choices or KeptChoices())
    if chain is None:
        return whole
    per_wave, wave_bytes = wave_size(
        options_per_wave, variants.space.num_options, streamed is not None, products is not None
    )
    changes = Changes(chain, variants, products)
    fallback = None if streamed is not None else Fallback(whole)
    at_once = options_per_pass or OPTIONS_PER_PASS
    return Wavefront(chain, changes, at_once, per_wave, wave_bytes, fallback, choices=whole.choices)


def wave_size(
    options_per_wave: int | None, num_options: int, streamed: bool, low_precision: bool
) -> tuple[int, int]:
    """Options of a wave, and bytes of states up to which it may have more; as configured, or as good as known."""
    if options_per_wave:
        return options_per_wave, 0
    if streamed:  # blocks are read once per wave, so one wave takes all options
        return num_options, 0
    return LOW_PRECISION_WAVE if low_precision else (OPTIONS_PER_WAVE, 0)
