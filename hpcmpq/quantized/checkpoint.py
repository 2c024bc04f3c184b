"""Codes of a checkpoint that another tool quantized: compressed-tensors' pack-quantized, and GPTQ's own layout.

GPTQ: `qweight` int32 [K·b/32, M] holds 32/b codes a word along the inputs, `qzeros` [S, M·b/32] the zero points
along the outputs (less one in version 1 of the layout), `scales` [S, M], `g_idx` [K] the group of every input.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hpcmpq.errors import UserError
from hpcmpq.formats import Format, Quantizer
from hpcmpq.models.description import read_model_json
from hpcmpq.quantizers.codes import QParams
from hpcmpq.quantizers.integer import code_limits
from hpcmpq.quantizers.packing import unpack
from hpcmpq.space import Member


@dataclass(frozen=True)
class QuantizedCheckpoint:
    """A directory of quantized weights.

    Attributes:
        directory: With `config.json` and safetensors files.
        files: {tensor name: file}.
        settings: `quantization_config` of `config.json`.
    """

    directory: Path
    files: Mapping[str, Path]
    settings: Mapping[str, Any]

    def codes(self, member: Member, format: Format, quantizer: Quantizer) -> tuple[Tensor, QParams]:
        """Codes [M, K] and range of a weight.

        Raises:
            UserError: If the directory lacks the weight, or holds it with other bits, group size or symmetry.
        """
        name = member.parameter.removesuffix(".weight")
        layout = self._layout(name)
        length = quantizer.group_size or member.num_columns
        num_scales = -(-member.num_columns // length)
        if layout == "weight_packed":
            fields_MK, scale_MS, zero_MS = self._packed(name, member, format, num_scales)
        else:
            fields_MK, scale_MS, zero_MS = self._gptq(name, member, format, num_scales)
        if not torch.isfinite(scale_MS).all() or not (scale_MS > 0).all():
            raise UserError(f"{self.directory} has scales of {name} that are not positive")
        centre = 2 ** (format.num_bits - 1)
        if quantizer.symmetric:
            if not (zero_MS == centre).all():
                self._refuse(name, "has zero points; set quantizer.symmetric: false")
            return (fields_MK - centre).to(torch.int8), QParams(scale_MS)
        assert code_limits(format, quantizer)[0] == 0
        return fields_MK.to(torch.uint8), QParams(scale_MS, zero_MS.to(torch.int32))

    def check_holds(self, member: Member) -> None:
        """Raise `UserError` unless the directory has codes of a weight."""
        self._layout(member.parameter.removesuffix(".weight"))

    def _layout(self, name: str) -> str:
        """What the packed codes of a layer are called."""
        layout = "weight_packed" if f"{name}.weight_packed" in self.files else "qweight"
        if f"{name}.{layout}" not in self.files:
            raise UserError(
                f"{self.directory} holds no quantized {name} (neither weight_packed nor qweight); exclude it"
            )
        return layout

    def digest(self) -> str:
        """SHA-256 of the files' bytes."""
        total = hashlib.sha256()
        for path in sorted(set(self.files.values())):
            with path.open("rb") as file:
                while chunk := file.read(2**24):
                    total.update(chunk)
        return total.hexdigest()

    def _packed(
        self, name: str, member: Member, format: Format, num_scales: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        packed_MW, scale_MS = self._read(f"{name}.weight_packed"), self._read(f"{name}.weight_scale")
        words = -(-member.num_columns * format.num_bits // 32)
        self._check_order(name, "weight_g_idx", member, num_scales)
        self._check_shape(name, "weight_packed", packed_MW, (member.num_rows, words), format)
        self._check_shape(name, "weight_scale", scale_MS, (member.num_rows, num_scales), format)
        zero_MS = torch.full(scale_MS.shape, 2 ** (format.num_bits - 1))
        if f"{name}.weight_zero_point" in self.files:
            packed_RS = self._read(f"{name}.weight_zero_point")
            zero_MS = unpack(packed_RS.t(), format.num_bits, member.num_rows).t()
        return unpack(packed_MW, format.num_bits, member.num_columns), scale_MS.float(), zero_MS

    def _gptq(
        self, name: str, member: Member, format: Format, num_scales: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        if 32 % format.num_bits:
            self._refuse(name, f"is in GPTQ's layout, which is read for 2, 4 and 8 bits, not {format.name}")
        packed_WM, scale_SM = self._read(f"{name}.qweight"), self._read(f"{name}.scales")
        words = member.num_columns * format.num_bits // 32
        self._check_shape(name, "qweight", packed_WM, (words, member.num_rows), format)
        self._check_shape(name, "scales", scale_SM, (num_scales, member.num_rows), format)
        self._check_order(name, "g_idx", member, num_scales)
        zero_SM = unpack(self._read(f"{name}.qzeros"), format.num_bits, member.num_rows)
        if self.settings.get("checkpoint_format", "gptq") == "gptq":
            zero_SM = (zero_SM + 1) % 2**format.num_bits
        fields_MK = unpack(packed_WM.t(), format.num_bits, member.num_columns)
        return fields_MK, scale_SM.t().float().contiguous(), zero_SM.t()

    def _check_order(self, name: str, part: str, member: Member, num_scales: int) -> None:
        """Refuse inputs that share scales otherwise than in the order in which they stand; −1 names no group."""
        if f"{name}.{part}" not in self.files:
            return
        group_K = self._read(f"{name}.{part}").long()
        length = -(-member.num_columns // num_scales)
        if not (group_K == -1).all() and not torch.equal(group_K, torch.arange(member.num_columns) // length):
            self._refuse(
                name, "has its inputs reordered (desc_act, or actorder group), which formats here cannot hold"
            )

    def _read(self, name: str) -> Tensor:
        from safetensors import safe_open

        if name not in self.files:
            raise UserError(f"{self.directory} lacks {name}; copy the checkpoint again")
        with safe_open(self.files[name], "pt") as file:
            return file.get_tensor(name)

    def _check_shape(
        self, name: str, part: str, tensor: Tensor, shape: tuple[int, int], format: Format
    ) -> None:
        if tuple(tensor.shape) != shape:
            self._refuse(
                name,
                f"has {part} {list(tensor.shape)} where {format.name} in groups of this config has "
                f"{list(shape)}; set formats and quantizer.group_size to those of the checkpoint",
            )

    def _refuse(self, name: str, reason: str) -> None:
        raise UserError(f"{name} in {self.directory} {reason}")


def open_checkpoint(directory: str) -> QuantizedCheckpoint:
    """The quantized checkpoint in a directory.

    Raises:
        UserError: If it is none, or of a tool whose layout is not known.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(directory)
    settings = read_model_json(path).get("quantization_config") or {}
    method = settings.get("quant_method")
    if method not in ("compressed-tensors", "gptq"):
        raise UserError(
            f"{path} is quantized by {method!r}; quantizer.checkpoints reads compressed-tensors and gptq"
        )
    files: dict[str, Path] = {}
    for file in sorted(path.glob("*.safetensors")):
        try:
            with safe_open(file, "pt") as opened:
                files.update(dict.fromkeys(opened.keys(), file))
        except SafetensorError as error:
            raise UserError(f"cannot read {file} ({error}); copy the checkpoint again") from None
    return QuantizedCheckpoint(path, files, settings)
