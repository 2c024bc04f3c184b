"""The weights of all options of a run, kept as codes: an assignment is put together in a fraction of a pass."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hpcmpq.formats import FORMATS, Quantizer
from hpcmpq.models.weights import as_matrix, from_matrix, swapped
from hpcmpq.quantized.variants import Variants
from hpcmpq.quantizers import QParams, decode
from hpcmpq.space import Group, Member, SearchSpace
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.whole_files import replacing


@dataclass(frozen=True)
class Weights:
    """Codes and ranges of every weight in every format that it may take.

    Attributes:
        model: The original.
        space: Groups and formats.
        quantizer: Says what codes mean.
        tensors: `PARAMETER|FORMAT|codes`, `|scale` and, of asymmetric formats, `|zero_point`.
    """

    model: nn.Module
    space: SearchSpace
    quantizer: Quantizer
    tensors: Mapping[str, Tensor]

    def rounded(self, member: Member, format_name: str) -> Tensor:
        """A weight as inference in a format sees it, [M, K]."""
        key = f"{member.parameter}|{format_name}|"
        range = QParams(self.tensors[f"{key}scale"], self.tensors.get(f"{key}zero_point"))
        return decode(self.tensors[f"{key}codes"], range, FORMATS[format_name], self.quantizer)

    def errors(self, group: Group, member: Member) -> Tensor:
        """Q(w) − w of a group's member in every format of the group, [options, M, K]."""
        names = self.space.formats[self.space.groups.index(group)]
        weight_MK = as_matrix(self.model.get_parameter(member.parameter).detach(), member)
        return torch.stack([self.rounded(member, name) - weight_MK for name in names])

    @contextmanager
    def assigned(self, assignment: Mapping[str, str]) -> Iterator[None]:
        """The model with {group name: format name} applied; the original returns after."""
        tensors = {}
        for group in self.space.groups:
            for member in group.members if group.name in assignment else ():
                rounded_MK = self.rounded(member, assignment[group.name])
                like = self.model.get_parameter(member.parameter)
                tensors[member.parameter] = from_matrix(rounded_MK, member, like)
        with swapped(self.model, tensors):
            yield


def kept_weights(kept: RunDir, variants: Variants) -> Weights:
    """The codes of a run's options, made once and kept in a directory."""
    path = kept.file("codes.safetensors")
    if not path.exists():
        tensors = {}
        for group, names in zip(variants.space.groups, variants.space.formats, strict=True):
            for member in group.members:
                for name in names:
                    codes_MK, range = variants.encoded(member, name)
                    key = f"{member.parameter}|{name}|"
                    tensors |= {f"{key}codes": codes_MK.contiguous(), f"{key}scale": range.scale.contiguous()}
                    if range.zero_point is not None:
                        tensors[f"{key}zero_point"] = range.zero_point.contiguous()
        with replacing(path) as attempt:
            save_file(tensors, attempt)
    return Weights(variants.model, variants.space, variants.quantizer, load_file(path))
