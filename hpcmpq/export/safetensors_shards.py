"""Safetensors files that are written one tensor at a time, with the index that transformers and engines read.

safetensors' own writer wants all tensors of a file at once. A file is the length of its header in 8 bytes, the header
as JSON, which blanks may end, and the numbers one after another: so room for the header is left and filled in the end.
Source: https://huggingface.co/docs/safetensors/index, "Format".
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BufferedWriter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hpcmpq.export.kept_tensors import INDEX
from hpcmpq.store.json_files import write_json

MAX_SHARD_BYTES = 5 * 10**9
"""transformers' limit of a file, unless one tensor is larger."""

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64", torch.int32: "I32", torch.uint32: "U32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}  # fmt: skip
"""Names in headers."""

MAX_HEADER_BYTES = 4 * 2**20
"""Of a file, whose header is as long as the room left for it: a full one ends the file, and safetensors reads no header
of 100 MB, which that of all experts of a large mixture would be."""

_ENTRY_BYTES = 112
"""Room of a tensor in a header beside its name: dtype, shape of a few axes, two offsets."""


@dataclass
class SafetensorsShards:
    """The files of a directory; at most one tensor is in memory.

    Attributes:
        directory: Where they go.
        header_bytes: What files leave room for, see `room_for`; one whose header is full ends.
        max_bytes: Of a file's numbers.
    """

    directory: Path
    header_bytes: int
    max_bytes: int = MAX_SHARD_BYTES
    _files: list[Path] = field(default_factory=list)
    _header: dict[str, Any] = field(default_factory=dict)
    _file: BufferedWriter | None = None
    _size: int = 0
    _header_size: int = 0
    _total: int = 0
    _places: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, tensor: Tensor) -> None:
        """Write a tensor behind the last, or into the next file."""
        entry_bytes = len(_text({name: self._entry(tensor)}))
        full = self._header_size + entry_bytes > self.header_bytes
        if self._file is not None and (full or self._size + tensor.nbytes > self.max_bytes):
            self._end_file()
        if self._file is None:
            self._files.append(self.directory / f"part-{len(self._files):05d}.safetensors")
            self._file = self._files[-1].open("wb")
            self._file.write(b" " * (8 + self.header_bytes))
            self._size, self._header = 0, {"__metadata__": {"format": "pt"}}
            self._header_size = len(_text(self._header))
        bytes_B = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        self._file.write(bytes_B.data)
        self._header[name] = self._entry(tensor)
        self._header_size += entry_bytes
        self._places[name] = len(self._files) - 1
        self._size += tensor.nbytes
        self._total += tensor.nbytes

    def end(self) -> Mapping[str, str]:
        """Give the files their names, with an index where there are several; {tensor: file}."""
        self._end_file()
        count = len(self._files)
        names = [
            "model.safetensors" if count == 1 else f"model-{place + 1:05d}-of-{count:05d}.safetensors"
            for place in range(count)
        ]
        for path, name in zip(self._files, names, strict=True):
            path.rename(self.directory / name)
        weight_map = {name: names[place] for name, place in self._places.items()}
        if count > 1:
            metadata = {"total_size": self._total}
            write_json(self.directory / INDEX, {"metadata": metadata, "weight_map": weight_map})
        return weight_map

    def _entry(self, tensor: Tensor) -> dict[str, Any]:
        """What the header says of the next tensor."""
        place = [self._size, self._size + tensor.nbytes]
        return {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": place}

    def _end_file(self) -> None:
        if self._file is None:
            return
        header = _text(self._header)
        assert len(header) <= self.header_bytes
        with self._file as file:
            file.seek(0)
            file.write(self.header_bytes.to_bytes(8, "little"))
            file.write(header)
        self._file = None


def room_for(names: list[str]) -> int:
    """Bytes of a header that fits the tensors of these names or is full, whole in 8, which keeps numbers aligned."""
    wanted = sum(len(json.dumps(name)) + _ENTRY_BYTES for name in ["__metadata__", *names])
    return -(-min(wanted, MAX_HEADER_BYTES) // 8) * 8


def _text(header: Mapping[str, Any]) -> bytes:
    return json.dumps(header, separators=(",", ":")).encode()
