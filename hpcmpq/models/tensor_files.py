"""Tensors of safetensors files, one at a time, by ordinary reads.

safetensors itself maps a file, and reads its header whenever it is opened: pages of a mapped file count as memory of
the process as long as it is open, and the header of a file of many experts takes longer than one of its tensors.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
"""{safetensors' name: torch's} of floating numbers that a model computes with."""


def read_tensor(path: Path, name: str) -> Tensor:
    """A tensor of a file as it is there, on the CPU, in memory of its own.

    Raises:
        SafetensorError: If the file is none, or is cut short, or has no such tensor.
    """
    status = path.stat()
    start, entries = _header(path, status.st_mtime_ns, status.st_size)
    entry = entries.get(name)
    if entry is None or entry["dtype"] not in DTYPES or 0 in entry["shape"]:
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor.clone()
    begin, end = entry["data_offsets"]
    raw = np.fromfile(path, dtype=np.uint8, count=end - begin, offset=start + begin)
    return torch.from_numpy(raw).view(DTYPES[entry["dtype"]]).reshape(entry["shape"])


@lru_cache(maxsize=4)
def _header(path: Path, changed_ns: int, size: int) -> tuple[int, dict[str, Any]]:
    """(Where the data begin, {tensor: what the header says}) of a file as it was then; a block lies in few files."""
    from safetensors import safe_open

    with safe_open(path, "pt"), path.open("rb") as file:  # safetensors checks the header and the size
        length = int.from_bytes(file.read(8), "little")
        return 8 + length, json.loads(file.read(length))
