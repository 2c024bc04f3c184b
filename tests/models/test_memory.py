"""Workers keep freed memory, and features lie in huge pages: the system zeroes and maps less."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hpcmpq.models.memory import large_empty

pytestmark = pytest.mark.slow

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")

COUNT = """
import resource, torch
from hpcmpq.models.memory import keep_freed_memory, large_empty
def faults(make):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    make()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
"""
SEVERAL = (
    "several = lambda: [torch.ones(2**21) for _ in range(12)]; several(); several(); print(faults(several))"
)


def faults(*code: str) -> list[int]:
    """Page faults that a fresh process prints."""
    # With a threshold of its own malloc maps every tensor anew; else it depends on the heap whether it does.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}
    command = [sys.executable, "-c", "\n".join((COUNT, *code))]
    done = subprocess.check_output(command, env=environment, text=True)
    return [int(line) for line in done.splitlines()]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc's malloc")
def test_freed_memory_is_used_again():
    [returned], [kept] = faults(SEVERAL), faults("keep_freed_memory()", SEVERAL)
    assert returned > 5 * kept


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc's malloc")
@pytest.mark.parametrize("num_outputs", [151_936, 262_144])
def test_losses_over_large_vocabularies_take_no_memory_anew(num_outputs: int):
    [again] = faults(
        "from hpcmpq.objective import kl_positions",
        "torch.set_num_threads(1)",
        "keep_freed_memory()",
        f"z = torch.ones(1, 32, {num_outputs})",
        "measure = lambda: kl_positions(z, z)",
        "print(min(faults(measure) for _ in range(5)))",
    )
    assert again < 32 * num_outputs * 8 / 4096 / 10  # pages of the outputs in float64


@pytest.mark.skipif(
    not HUGE_PAGES.exists() or "[never]" in HUGE_PAGES.read_text(), reason="the system has no huge pages"
)
def test_large_memory_has_huge_pages():
    small, huge = faults(
        "print(faults(lambda: torch.empty(2**24).fill_(1)))",
        "print(faults(lambda: large_empty((2**24,), torch.ones(1)).fill_(1)))",
    )
    assert small > 10 * huge


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_large_memory_has_the_dtype_asked_for(dtype):
    made = large_empty((2, 3), torch.ones(1, dtype=dtype))
    assert made.dtype == dtype and made.shape == (2, 3)
