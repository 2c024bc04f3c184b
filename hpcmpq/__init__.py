"""hpcmpq: how many bits each part of a large neural network gets, with a proof.

From Python:

    run = hpcmpq.Run.create(model, texts, tokenizer=tokenizer, run_dir="runs/a", budgets={"weight_bits": 3.5})
    run.calibrate(workers=2)
    solution = run.solve(size_bytes=4.2e9)
    quantized = run.apply(solution)

Importing this package imports nothing heavy: names are looked up in `hpcmpq.api` when they are used. The command line
is in `hpcmpq.cli`, and calls the same stages.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpcmpq.api.frontier import Frontier
    from hpcmpq.api.opened import open_run as open
    from hpcmpq.api.quadratic import Quadratic
    from hpcmpq.api.quantize import quantize
    from hpcmpq.api.run import Run
    from hpcmpq.api.solution import Solution
    from hpcmpq.errors import (
        DamagedFile,
        IncompleteCalibration,
        Infeasible,
        NotReproduced,
        PlanMismatch,
        UserError,
    )

__version__ = "0.1.0"

__all__ = [
    "DamagedFile",
    "Frontier",
    "IncompleteCalibration",
    "Infeasible",
    "NotReproduced",
    "PlanMismatch",
    "Quadratic",
    "Run",
    "Solution",
    "UserError",
    "__version__",
    "open",
    "quantize",
]

_PLACES = {
    "Frontier": "hpcmpq.api.frontier:Frontier",
    "Quadratic": "hpcmpq.api.quadratic:Quadratic",
    "Run": "hpcmpq.api.run:Run",
    "Solution": "hpcmpq.api.solution:Solution",
    "open": "hpcmpq.api.opened:open_run",
    "quantize": "hpcmpq.api.quantize:quantize",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'hpcmpq' has no attribute {name!r}")
    module, attribute = _PLACES.get(name, f"hpcmpq.errors:{name}").split(":")
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
