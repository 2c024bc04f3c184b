"""How much memory this process takes, and how it is allocated."""

import ctypes
import platform
import resource
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3), from glibc's malloc.h."""

_KEPT_BYTES = 2**25
"""glibc's largest threshold: larger blocks go back to the system, so what is kept stays small."""

_RETURNED_BYTES = 2**20

_LARGEST_INT = 2**31 - 1

_WORDS = {2: np.int16, 4: np.int32, 8: np.int64}
"""{bytes of a number: numpy's integer of as many}."""


def keep_freed_memory() -> None:
    """Make glibc's malloc keep freed blocks of up to 32 MiB for the next allocation.

    Every pass of a worker allocates and frees the same tensors. Memory handed back to the system is zeroed and
    mapped page by page when it is asked for again. Other C libraries are left alone.
    """
    _mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
    _mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT)


def return_freed_memory() -> None:
    """Make glibc's malloc hand blocks of a mebibyte and more back as soon as they are freed.

    glibc raises its limit when such blocks are freed, so that gathered layers would pile up: two ranks of a model of
    219 MB took 320 MB each instead of 170 MB. Other C libraries are left alone.
    """
    _mallopt(_M_MMAP_THRESHOLD, _RETURNED_BYTES)


def return_what_is_free() -> None:
    """Make glibc's malloc hand all pages that are free now back, those between others too.

    Blocks of a streamed model that are read one after the other each lie in other places of the heap, and their pages
    stayed. Other C libraries are left alone.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def _mallopt(parameter: int, value: int) -> None:
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(parameter, value)


def large_empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Uninitialised memory with the dtype and device of another tensor; huge pages on a CPU, which numpy asks for."""
    if like.device.type != "cpu" or like.dtype.itemsize not in _WORDS or like.is_complex():
        return like.new_empty(shape)
    return torch.from_numpy(np.empty(shape, dtype=_WORDS[like.dtype.itemsize])).view(like.dtype)


def live_bytes(device: torch.device) -> int:
    """What is taken now; a GPU's peak is counted anew from here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * resource.getpagesize()


def peak_bytes(device: torch.device) -> int:
    """The most that was taken at once, by this process: `ru_maxrss` begins with what its parent held at the fork."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    [line] = [
        s
        for s in Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        if s.startswith("VmHWM:")
    ]
    return int(line.split()[1]) * 1024
