"""How much memory this process takes: of the GPU what torch allocated, of a CPU what the system gave."""

import resource
from pathlib import Path

import torch


def live_bytes(device: torch.device) -> int:
    """What is taken now; a GPU's peak is counted anew from here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def peak_bytes(device: torch.device) -> int:
    """The most that was taken at once, by this process: `ru_maxrss` begins with what its parent held at the fork."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    [line] = [s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024
