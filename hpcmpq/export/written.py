"""What an exporter says of the files that it wrote."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Written:
    """What is in the directory, and what a reader will make of it.

    Attributes:
        text: What it is, such as ``GGUF file model.gguf``.
        notes: Clauses for people, each of which goes on from the text.
        reader: Name in `hpcmpq.export.readers` of what reads it back, where it is not that of the export.
        unreadable: Why the documented reader cannot load it, where that is known.
        rounding: Formats in use whose inputs the reader rounds too; it runs all others with weights alone.
        narrowed: The dtype that holds some tensor inexactly, if one does.
        max_positions: Tokens up to which the file's model is the original's; None where any number.
        holds_codes: Whether weights are codes and scales; otherwise they are rounded ones in the dtype of the run.
    """

    text: str
    notes: tuple[str, ...] = ()
    reader: str | None = None
    unreadable: str | None = None
    rounding: tuple[str, ...] = ()
    narrowed: torch.dtype | None = None
    max_positions: int | None = None
    holds_codes: bool = True


def holds(tensor: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether a dtype holds every value of a tensor exactly."""
    return dtype == tensor.dtype or torch.equal(tensor.to(dtype).to(tensor.dtype), tensor)
