"""How freed memory is kept."""

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Parameters of mallopt(3), from glibc's malloc.h."""

_LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> None:
    """Make glibc's malloc keep what is freed for the next allocation instead of handing it back to the system.

    Every pass of a worker allocates and frees the same large tensors. Pages handed back are zeroed and mapped
    one by one when they are asked for again, which `python -m bench.wavefront` sees as 8 % of a worker's time on
    the quickstart. The process stays at its peak, which it needs again anyway. Other C libraries are left alone.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT)
