"""Codes that are made once, when a run is planned, and read by whatever needs a weight after.

They are those of error-compensated rounding, and those of checkpoints that another tool quantized.

Factorising Σ x xᵀ gives other last bits on other machines, and now and then another code. So no worker does:
RUN/rounded/ holds the codes of every weight in every integer format, one file a weight, as `hpcmpq plan` made
them, and every sensitivity, measurement and export decodes the same ones.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from hpcmpq.errors import DamagedFile, UserError
from hpcmpq.formats import FORMATS, Quantizer
from hpcmpq.models.data.samples import Samples
from hpcmpq.models.load import forward
from hpcmpq.models.weights import as_matrix, holder_of
from hpcmpq.quantized.checkpoint import open_checkpoint
from hpcmpq.quantized.padding import padding_masks, without_padding
from hpcmpq.quantizers.codes import QParams
from hpcmpq.quantizers.gptq import compensated_codes, compensation
from hpcmpq.quantizers.ranges import choose_qparams
from hpcmpq.space import Member, SearchSpace
from hpcmpq.store.h5_files import read_h5, write_h5
from hpcmpq.store.run_dir import RunDir

HESSIAN_BYTES = 2**32
"""Of Σ x xᵀ held at once; beyond it the calibration samples run again for the next layers."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredCodes:
    """The codes of a run, read from its directory.

    Attributes:
        run: The run directory.
        fingerprint: Of the plan that made them.
    """

    run: RunDir
    fingerprint: str

    def read(self, member: Member, format_name: str, like: Tensor) -> tuple[Tensor, QParams]:
        """Codes [M, K] and range of a weight in an integer format, on the device of `like`.

        Raises:
            UserError: If they are missing.
            CorruptShard: If their file is damaged.
        """
        path = _path(self.run, member)
        made_by = f"hpcmpq plan CONFIG --run-dir {self.run.path}"
        if not path.exists():
            raise UserError(f"the rounded weights of {member.parameter} are missing; run `{made_by}` again")
        arrays, attributes = read_h5(path, made_by)
        if attributes["fingerprint"] != self.fingerprint:
            raise UserError(f"{path} belongs to another plan; run `{made_by}` again")
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        zero_point = arrays.get(f"{format_name}/zero_point")
        qparams = QParams(
            torch.from_numpy(arrays[f"{format_name}/scale"]).to(like.device, dtype),
            None if zero_point is None else torch.from_numpy(zero_point).to(like.device),
        )
        return torch.from_numpy(arrays[f"{format_name}/codes"]).to(like.device), qparams


def is_stored(format_name: str, quantizer: Quantizer) -> bool:
    """Whether a format's codes are made when the run is planned."""
    compensated = quantizer.rounding == "gptq" and FORMATS[format_name].type == "int"
    return compensated or format_name in quantizer.checkpoints


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
    formats = {}
    for group, names in zip(space.groups, space.formats, strict=True):
        for member in group.members:
            formats[member] = [name for name in names if is_stored(name, quantizer)]
            if formats[member]:
                _check_linear(model, member)
    missing = [m for m, names in formats.items() if names and not _is_made(_path(run, m), fingerprint)]
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
            arrays = _codes(weight_MK, hessians.pop(member), made, quantizer) if made else {}
            for name in set(formats[member]) & set(checkpoints):
                arrays |= _arrays(name, *checkpoints[name].codes(member, FORMATS[name], quantizer))
            write_h5(_path(run, member), arrays, {"parameter": member.parameter, "fingerprint": fingerprint})
    if missing:
        _log.info("codes of %d weights in %s", len(missing), run.path / "rounded")


def _codes(
    weight_MK: Tensor, hessian_KK: Tensor, names: Sequence[str], quantizer: Quantizer
) -> dict[str, np.ndarray]:
    factor = compensation(hessian_KK, quantizer)
    arrays: dict[str, np.ndarray] = {}
    for name in names:
        qparams = choose_qparams(weight_MK, FORMATS[name], quantizer)
        codes_MK = compensated_codes(weight_MK, factor, qparams, FORMATS[name], quantizer)
        arrays |= _arrays(name, codes_MK, qparams)
    return arrays


def _arrays(name: str, codes_MK: Tensor, qparams: QParams) -> dict[str, np.ndarray]:
    arrays = {f"{name}/codes": codes_MK.cpu().numpy(), f"{name}/scale": qparams.scale.cpu().numpy()}
    if qparams.zero_point is not None:
        arrays[f"{name}/zero_point"] = qparams.zero_point.cpu().numpy()
    return arrays


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


def _check_linear(model: nn.Module, member: Member) -> None:
    module = holder_of(model, member)
    linear = isinstance(module, nn.Linear) or member.transposed
    if not linear or not member.is_layer_weight:
        raise UserError(
            f"quantizer.rounding gptq and quantizer.checkpoints take linear layers only, {member.parameter} is of "
            f"a {type(module).__name__}; add it to groups.exclude"
        )


def _is_made(path: Path, fingerprint: str) -> bool:
    try:
        return path.exists() and read_h5(path, "hpcmpq plan")[1]["fingerprint"] == fingerprint
    except DamagedFile:
        _log.warning("%s is damaged; making it anew", path)
        return False


def _path(run: RunDir, member: Member) -> Path:
    return run.path / "rounded" / f"{hashlib.sha256(member.parameter.encode()).hexdigest()[:16]}.h5"
