"""LAPACK's partial eigen-decomposition without Python's lock.

SciPy's `eigh` holds the lock while LAPACK works, so that threads take turns in it. SciPy also publishes LAPACK's
routines as pointers (`scipy.linalg.cython_lapack`), and `ctypes` lets other threads go on while it calls one.

Source: LAPACK Users' Guide, routines SSYEVR and DSYEVR (multiple relatively robust representations).

Axis letters: n rows, r positive eigenvalues.
"""

import ctypes
import functools
from collections.abc import Callable

import numpy as np
from scipy.linalg import cython_lapack

ROUTINES = {np.dtype(np.float32): "ssyevr", np.dtype(np.float64): "dsyevr"}

NUM_ARGUMENTS = 21


@functools.cache
def routine(name: str) -> Callable[..., None]:
    """One of SciPy's LAPACK routines; all its arguments are addresses."""
    get_name, get_pointer = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
    get_name.restype, get_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    get_pointer.restype, get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    capsule = cython_lapack.__pyx_capi__[name]
    address = get_pointer(capsule, get_name(capsule))
    call: Callable[..., None] = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * NUM_ARGUMENTS)(address)
    return call


def positive_pairs(a_nn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The positive eigenvalues, [r], rising, and their vectors, [n, r], of a symmetric float32 or float64 matrix.

    Raises:
        LinAlgError: If inverse iteration does not converge, or entries are not finite.

    Example:
        >>> eigenvalue, vector = positive_pairs(np.array([[0.0, 2.0], [2.0, 0.0]]))
        >>> np.round((vector * eigenvalue) @ vector.T, 12).tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """
    size, dtype = len(a_nn), a_nn.dtype
    if not np.isfinite(a_nn).all():
        raise np.linalg.LinAlgError("the matrix has entries that are not finite")
    a_nn = np.array(a_nn, order="F")  # is overwritten
    # Integers of 8 bytes are right for a LAPACK of either width on a little-endian machine.
    n, unused, found, failed = (np.array(value, np.int64) for value in (size, 0, 0, 0))
    below, above, tolerance = (np.array(value, dtype) for value in (0.0, np.finfo(dtype).max, 0.0))
    eigenvalue, vector = np.empty(size, dtype), np.empty((size, size), dtype, order="F")
    support = np.empty(2 * size, np.int64)

    def call(work: np.ndarray, integer_work: np.ndarray, work_size: int, integer_work_size: int) -> None:
        sizes = np.array(work_size, np.int64), np.array(integer_work_size, np.int64)
        arrays = (
            n, a_nn, n, below, above, unused, unused, tolerance, found, eigenvalue, vector, n, support,
            work, sizes[0], integer_work, sizes[1], failed,
        )  # fmt: skip
        routine(ROUTINES[dtype])(b"V", b"V", b"L", *(array.ctypes.data for array in arrays))

    asked, integer_asked = np.zeros(1, dtype), np.zeros(1, np.int64)
    call(asked, integer_asked, -1, -1)
    work_size, integer_work_size = int(asked[0]), int(integer_asked[0])
    call(np.empty(work_size, dtype), np.empty(integer_work_size, np.int64), work_size, integer_work_size)
    if status := int(failed.astype(np.int32)):
        raise np.linalg.LinAlgError(f"{ROUTINES[dtype]} ended with {status}")
    count = int(found)
    return eigenvalue[:count], vector[:, :count]
