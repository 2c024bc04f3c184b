"""Methods of `hpcmpq.Run` for what a solved run gives: a model, files for engines, measured quality, a report."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcmpq.api import stages
from hpcmpq.api.bars import passing
from hpcmpq.api.calibrating import workers_of
from hpcmpq.api.solution import Solution, solution_of
from hpcmpq.errors import UserError
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.solution_file import read_solution
from hpcmpq.tables import table_name

if TYPE_CHECKING:
    from torch import nn

    from hpcmpq.api.run import Run


def reround(
    run: "Run",
    method: str | None = None,
    *,
    strength: float | None = None,
    workers: int | None = None,
    executor: str | None = None,
) -> Solution:
    """The weights of the last solution rounded again, with the inputs that its rounded blocks really give.

    `apply`, `evaluate` and `export` use them where the loss on held-out samples falls by more than chance explains.

    Args:
        run: A solved run.
        method: ``gptq``, ``gptaq`` or ``qep``; by default the run's.
        strength: How far weights go towards the original's outputs, from 0 to 1; by default the method's.
        workers: As in `Run.calibrate`.
        executor: As in `Run.calibrate`.

    Raises:
        UserError: If nothing is solved yet, no samples are held out, nothing can be rounded again, or no worker can
            start.
        IncompleteCalibration: If a unit failed; what is finished is on disk.

    Example:
        >>> from hpcmpq.api.example import example_run
        >>> run = example_run()
        >>> before = run.solve(weight_bits=2)
        >>> run.reround("gptq").assignment == before.assignment
        True
    """
    if workers is None and executor is None:
        with passing("reround", "weights") as show:
            return solution_of(stages.reround(RunDir(run.path), method, strength, show))
    with workers_of(workers, executor) as pool, passing("reround", "weights") as show:
        return solution_of(stages.reround(RunDir(run.path), method, strength, show, pool))


def apply(run: "Run", solution: Solution | None = None) -> "nn.Module":
    """A new copy of the model under a solution: weights have the quantizer's values, inputs are rounded where it says.

    Args:
        run: A planned run.
        solution: Any of the run, such as a point of its frontier; by default the last one.

    Returns:
        A module in eval mode, without gradients, in the dtype and on the device of the run's settings.

    Raises:
        UserError: If nothing is solved yet, or the solution is of another run.
        PlanMismatch: If the model has changed since it was planned for.

    Example:
        >>> from hpcmpq.api.example import example_data, example_run
        >>> run = example_run()
        >>> quantized = run.apply(run.solve(weight_bits=2))
        >>> quantized(example_data()).shape
        torch.Size([24, 5])
        >>> len(quantized.first.weight.unique()) < 48
        True
    """
    from hpcmpq.quantized.applied import quantized_model

    chosen = read_solution(RunDir(run.path))["assignment"] if solution is None else solution.assignment
    return quantized_model(RunDir(run.path), chosen)


def export(
    run: "Run",
    format: str = "fake_quantized",
    directory: str | os.PathLike[str] | None = None,
    *,
    verify: bool = True,
) -> Path:
    """Write the last solution as files that an engine loads, read them back and compare outputs.

    Args:
        run: A solved run.
        format: ``fake_quantized``, ``compressed_tensors``, ``gguf``, ``onnx`` or ``tool_configs``.
        directory: Where they are copied to, which must not exist or be empty; None leaves them in the run directory.
        verify: Whether they are read back.

    Returns:
        The directory.

    Raises:
        UserError: If the format is unknown or cannot hold the solution, or nothing is solved yet.
        NotReproduced: If what is read back is not the run's model; nothing is kept.

    Example:
        >>> from hpcmpq.api.example import example_run
        >>> run = example_run()
        >>> solution = run.solve(weight_bits=2)
        >>> (run.export() / "model.safetensors").exists()
        True
    """
    format = table_name(format)
    target = None if directory is None else Path(directory)
    if target is not None and target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} is there and not empty; name a new directory for the export")
    written, _ = stages.export(RunDir(run.path), format, verify)[format]
    if target is None:
        return written
    shutil.copytree(written, target, dirs_exist_ok=True)
    return target


def evaluate(
    run: "Run", *, engine: str | None = None, workers: int | None = None, executor: str | None = None
) -> dict[str, Any]:
    """Measured quality of the original, the last solution and a uniform model at least as large.

    Args:
        run: A solved run.
        engine: ``torch`` or ``deepspeed``; by default the run's.
        workers: Processes that share the samples, with engine ``torch``; None measures in this one.
        executor: ``local``, ``mpi`` or ``ray``; None is local where `workers` is given.

    Returns:
        {metric: {"original", "quantized", "uniform"}} and facts, as `evaluation.json` has them: `loss`, `kl` or `mse`
        (nats a token; squared outputs), `perplexity` or `accuracy`, intervals at 95 %, paired differences, tasks.

    Raises:
        UserError: If nothing is solved yet, or no sample is left to evaluate on.

    Example:
        >>> from hpcmpq.api.example import example_run
        >>> run = example_run()
        >>> solution = run.solve(weight_bits=4)
        >>> measured = run.evaluate()
        >>> measured["kl"]["original"] < measured["kl"]["quantized"]
        True
    """
    if workers is None and executor is None:
        with passing("evaluate", "chunks") as show:
            return stages.evaluate(RunDir(run.path), engine, on_progress=show)
    with workers_of(workers, executor) as pool, passing("evaluate", "units") as show:
        return stages.evaluate(RunDir(run.path), engine, on_progress=show, pool=pool)


def report(run: "Run") -> Path:
    """Write one page of HTML about the last solution; returns its path.

    Args:
        run: A solved run.

    Raises:
        UserError: If nothing is solved yet, or matplotlib or jinja2 is not installed.

    Example:
        >>> from hpcmpq.api.example import example_run
        >>> run = example_run()
        >>> solution = run.solve(weight_bits=4)
        >>> run.report().name
        'report.html'
    """
    return stages.report(RunDir(run.path))


def time(run: "Run") -> dict[str, Any]:
    """Measure sub-graphs in their formats on this machine, for budgets on `latency_s`; the values of `time.json`.

    Args:
        run: A planned run.

    Raises:
        UserError: If this machine has no kernels for the formats.
    """
    with passing("time", "rounds") as show:
        return stages.measure_time(RunDir(run.path), show)
