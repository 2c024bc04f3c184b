"""Codes of every option, made once, when a run is planned: from the inputs that the original gives its layers."""

import logging
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from hpcmpq.errors import UserError
from hpcmpq.formats import FORMATS, Quantizer
from hpcmpq.models.data.samples import Samples
from hpcmpq.models.load import forward
from hpcmpq.models.weights import as_matrix, holder_of
from hpcmpq.quantized.checkpoint import open_checkpoint
from hpcmpq.quantized.padding import padding_masks, without_padding
from hpcmpq.quantized.stored_codes import StoredCodes, is_stored
from hpcmpq.quantizers.codes import QParams
from hpcmpq.quantizers.gptq import compensated_codes, compensation
from hpcmpq.quantizers.ranges import choose_qparams
from hpcmpq.rounding.linear_layers import check_linear
from hpcmpq.space import Member, SearchSpace
from hpcmpq.store.run_dir import RunDir

HESSIAN_BYTES = 2**32
"""Of Σ x xᵀ held at once; beyond it the calibration samples run again for the next layers."""

_log = logging.getLogger(__name__)


@torch.no_grad()
def make_codes(
    run: RunDir,
    fingerprint: str,
    model: nn.Module,
    space: SearchSpace,
    quantizer: Quantizer,
    samples: Samples,
    samples_per_pass: int,
) -> None:
    """Write the codes of every weight that has none of this plan yet; interrupted, it goes on where it stopped.

    Args:
        run: The run directory.
        fingerprint: Of the plan.
        model: The original; inputs are those that its own layers give on the calibration samples.
        space: Groups and formats.
        quantizer: Its `rounding` is ``gptq``.
        samples: Calibration samples on the model's device.
        samples_per_pass: Samples of one forward pass.

    Raises:
        UserError: If a searched weight is not that of a linear layer.
    """
    stored = StoredCodes(run, fingerprint)
    formats = {}
    for group, names in zip(space.groups, space.formats, strict=True):
        for member in group.members:
            formats[member] = [name for name in names if is_stored(name, quantizer)]
            if formats[member]:
                check_linear(model, member)
    missing = [m for m, names in formats.items() if names and not stored.has(m)]
    checkpoints = {name: open_checkpoint(path) for name, path in quantizer.checkpoints.items()}
    for members in _parts(missing):
        compensated = [m for m in members if any(name not in checkpoints for name in formats[m])]
        modules = {m: holder_of(model, m) for m in compensated}
        hessians = _input_products(model, modules, samples, samples_per_pass) if modules else {}
        for member in members:
            weight_MK = as_matrix(model.get_parameter(member.parameter), member)
            made = [name for name in formats[member] if name not in checkpoints]
            if made and member not in hessians:
                raise UserError(
                    f"{member.parameter} is used without calling its layer, so quantizer.rounding gptq does not see "
                    "the layer's inputs; add it to groups.exclude"
                )
            codes = _codes(weight_MK, hessians.pop(member), made, quantizer) if made else {}
            for name in set(formats[member]) & set(checkpoints):
                codes[name] = checkpoints[name].codes(member, FORMATS[name], quantizer)
            stored.write(member, codes, quantizer)
    if missing:
        _log.info("codes of %d weights in %s", len(missing), run.path / "rounded")


def _codes(
    weight_MK: Tensor, hessian_KK: Tensor, names: Sequence[str], quantizer: Quantizer
) -> dict[str, tuple[Tensor, QParams]]:
    factor = compensation(hessian_KK, quantizer)
    codes: dict[str, tuple[Tensor, QParams]] = {}
    for name in names:
        qparams = choose_qparams(weight_MK, FORMATS[name], quantizer)
        codes[name] = compensated_codes(weight_MK, factor, qparams, FORMATS[name], quantizer), qparams
    return codes


def _input_products(
    model: nn.Module, modules: dict[Member, nn.Module], samples: Samples, samples_per_pass: int
) -> dict[Member, Tensor]:
    """Σ x xᵀ of each module's inputs over all samples, padding aside, float64 [K, K]."""
    sums: dict[Member, Tensor] = {}
    masks: tuple[Tensor, ...] = ()

    def add(member: Member, x: Tensor) -> None:
        x_NK = without_padding(x, masks).reshape(-1, member.num_columns).double()
        gram_KK = x_NK.T @ x_NK
        sums[member] = sums[member] + gram_KK if member in sums else gram_KK

    handles = [
        module.register_forward_pre_hook(lambda _, args, member=member: add(member, args[0]))
        for member, module in modules.items()
    ]
    try:
        for batch in samples.passes(samples_per_pass):
            masks = padding_masks(batch.inputs)
            forward(model, batch.inputs)
    finally:
        for handle in handles:
            handle.remove()
    return sums


def _parts(members: Sequence[Member]) -> Iterator[list[Member]]:
    """The members in turns whose matrices fit into `HESSIAN_BYTES`."""
    part: list[Member] = []
    num_bytes = 0
    for member in members:
        size = 8 * member.num_columns**2
        if part and num_bytes + size > HESSIAN_BYTES:
            yield part
            part, num_bytes = [], 0
        part.append(member)
        num_bytes += size
    if part:
        yield part
