"""How much memory this process takes: of the GPU what torch allocated, of a CPU what the system gave."""

import contextlib
import ctypes
import resource
from pathlib import Path

import torch

_M_MMAP_THRESHOLD, _LARGE = -3, 2**20


def return_freed_memory() -> None:
    """Let the C library hand large blocks back as soon as they are freed, rather than keep them for later.

    glibc raises its limit when such blocks are freed, so that gathered layers would pile up: two ranks of a model of
    219 MB took 320 MB each instead of 170 MB. Other C libraries are left as they are.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE)


def live_bytes(device: torch.device) -> int:
    """What is taken now; a GPU's peak is counted anew from here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def peak_bytes(device: torch.device) -> int:
    """The most that was taken at once."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
