"""`quantize`: all stages in one call."""

import os
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from hpcmpq.api.run import Run

if TYPE_CHECKING:
    from torch import nn


def quantize(
    model: Any,
    data: Any = None,
    *,
    bits: float = 4.0,
    tokenizer: Any = None,
    formats: Sequence[str] | None = None,
    num_samples: int | None = None,
    sequence_length: int | None = None,
    workers: int | None = None,
    run_dir: str | os.PathLike[str] | None = None,
) -> "nn.Module":
    """A copy of a model with a mix of formats of `bits` payload bits per searched weight on average.

    `Run.create`, `calibrate`, `solve`, `refine` where samples are held out, and `apply`, with their defaults.

    Args:
        model: As in `Run.create`; it is not changed.
        data: As in `Run.create`: None takes English text that comes with Python, for a first look.
        bits: Upper limit of `weight_bits`: without scales, over the weights that are searched.
        tokenizer: As in `Run.create`.
        formats: As in `Run.create`.
        num_samples: As in `Run.create`.
        sequence_length: As in `Run.create`.
        workers: As in `Run.calibrate`.
        run_dir: Where the run is kept, for `hpcmpq.open`; None keeps none.

    Returns:
        A module in eval mode whose weights have the quantizer's values, float32: for one's own evaluation. Files of
        the size that was asked for are what `Run.export` writes.

    Raises:
        UserError: If the model or the data are wrong.
        Infeasible: If no assignment has so few bits.

    Example:
        >>> from hpcmpq.api.example import example_data, example_model
        >>> quantized = quantize(example_model(), example_data(), bits=4, formats=["int2", "int4"])
        >>> quantized(example_data()).shape
        torch.Size([24, 5])
    """
    scratch = tempfile.TemporaryDirectory() if run_dir is None else nullcontext(os.fspath(run_dir))
    with scratch as place:
        run = Run.create(
            model,
            data,
            run_dir=place,
            tokenizer=tokenizer,
            formats=formats,
            budgets={"weight_bits": bits},
            num_samples=num_samples,
            sequence_length=sequence_length,
        )
        run.calibrate(workers=workers)
        run.solve()
        if run.config["calibration"]["held_out"]:
            run.refine()
        return run.apply()
