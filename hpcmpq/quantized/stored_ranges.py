"""Scales and zero points of options, chosen once in a run: by whichever process came to a weight first.

The clipping of least error takes as long as dozens of passes over a weight, for every option; reading what another
process found takes none. RUN/ranges/ holds a file a weight, with what all its options choose. Who finds none chooses
for itself and nobody waits, so nothing depends on who was first; on one kind of processor all find the same bits.
"""

import hashlib
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hpcmpq.errors import DamagedFile
from hpcmpq.quantized.qparams_arrays import arrays_of, qparams_in
from hpcmpq.quantizers.codes import QParams
from hpcmpq.space import Member
from hpcmpq.store.h5_files import read_h5_group, write_h5
from hpcmpq.store.run_dir import RunDir

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredRanges:
    """What a run's processes have chosen, in its directory.

    Attributes:
        run: The run directory.
        fingerprint: Of its plan: whatever else ranges depend on.
    """

    run: RunDir
    fingerprint: str

    def is_there(self, member: Member, dtype: torch.dtype) -> bool:
        """Whether there is a file of a weight, loaded in a dtype; nothing of it is read."""
        return self._path(member, dtype).exists()

    def write(self, member: Member, dtype: torch.dtype, chosen: Mapping[str, QParams]) -> None:
        """Store {format name: what it chooses} of a whole weight that was loaded in a dtype."""
        arrays = {
            name: _narrowed(array)
            for format_name, qparams in chosen.items()
            for name, array in arrays_of(format_name, qparams).items()
        }
        write_h5(self._path(member, dtype), arrays, self._attributes(member, dtype))

    def read(self, member: Member, format_name: str, like: Tensor) -> QParams | None:
        """What a format chooses for a whole weight, on the device of `like`, some rows of it; None if nobody has yet.

        A file that is damaged is removed, and one of another plan counts for nothing: what it should hold is chosen
        again.
        """
        path = self._path(member, like.dtype)
        if not path.exists():
            return None
        try:
            arrays, attributes = read_h5_group(path, format_name, "hpcmpq calibrate")
        except DamagedFile:
            _log.warning("%s is damaged; choosing its ranges again", path)
            with suppress(OSError):  # whoever begins next stores them again
                path.unlink(missing_ok=True)
            return None
        is_of = self._attributes(member, like.dtype).items() <= attributes.items()
        if not is_of or f"{format_name}/scale" not in arrays:
            return None
        return qparams_in({name: _widened(array) for name, array in arrays.items()}, format_name, like)

    def _attributes(self, member: Member, dtype: torch.dtype) -> dict[str, str]:
        return {"fingerprint": self.fingerprint, "parameter": member.parameter, "dtype": str(dtype)}

    def _path(self, member: Member, dtype: torch.dtype) -> Path:
        key = f"{self.fingerprint} {member.parameter} {dtype}"
        name = hashlib.sha256(key.encode()).hexdigest()[:16]
        return self.run.path / "ranges" / f"{name}.h5"


def _narrowed(values: np.ndarray) -> np.ndarray:
    """Floats that bfloat16 holds exactly, as nearly all scales are, as its bits in uint16; others as they are."""
    if values.dtype.kind != "f" or values.ndim == 0:
        return values
    bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
    is_exact = bool(np.all(bits.view("<f4") == values)) and not bool(np.any(bits & 0xFFFF))
    return (bits >> 16).astype("<u2") if is_exact else values


def _widened(stored: np.ndarray) -> np.ndarray:
    """What `_narrowed` was given, in float32 where it was narrowed."""
    if stored.dtype != np.uint16:
        return stored
    return (np.asarray(stored, dtype="<u4") << 16).astype("<u4").view("<f4")
