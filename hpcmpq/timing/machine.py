"""The machine that times belong to."""

import platform
from pathlib import Path

import torch


def describe_machine(device: torch.device) -> dict[str, str | int]:
    """Processor, device, threads and torch's version: times measured on one say nothing about another."""
    return {
        "processor": _processor(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _processor() -> str:
    """The processor's name, family and model, as far as the system tells."""
    path = Path("/proc/cpuinfo")
    fields: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    named = [fields.get(key, "") for key in ("model name", "cpu family", "model")]
    return " ".join(part for part in named if part) or platform.processor() or platform.machine()
