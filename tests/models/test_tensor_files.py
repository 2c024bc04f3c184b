"""Tensors read from safetensors files without mapping them."""

import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from hpcmpq.models.tensor_files import read_tensor


def test_every_kind_of_number_and_shape_is_read_bit_for_bit(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(3, 5, generator=generator)
    floats = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn)
    tensors = {str(dtype): normal.to(dtype) for dtype in floats}
    tensors |= {
        "whole": torch.arange(7),
        "truth": torch.tensor([True, False]),
        "bytes": torch.arange(9).byte(),
    }
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4), "odd": torch.ones(3).half()}
    path = tmp_path / "model.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    for name, tensor in tensors.items():
        found = read_tensor(path, name)
        assert found.dtype == tensor.dtype
        assert found.shape == tensor.shape
        assert found.flatten().view(torch.uint8).equal(tensor.flatten().view(torch.uint8))


def test_a_tensor_is_memory_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(4), "b": torch.arange(4)}, path)
    for name in "ab":
        read_tensor(path, name).fill_(7)
    assert read_tensor(path, "a").tolist() == [1.0] * 4
    assert read_tensor(path, "b").tolist() == [0, 1, 2, 3]


def test_a_file_that_is_written_anew_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(4), "b": torch.ones(4)}, path)
    assert read_tensor(path, "b").tolist() == [1.0] * 4
    save_file({"b": torch.full((4,), 2.0), "longer": torch.ones(50)}, path)
    assert read_tensor(path, "b").tolist() == [2.0] * 4


def test_a_file_that_is_cut_short_or_lacks_the_tensor_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(64)}, path)
    with pytest.raises(SafetensorError):
        read_tensor(path, "b")
    os.truncate(path, path.stat().st_size - 4)
    with pytest.raises(SafetensorError):
        read_tensor(path, "a")
