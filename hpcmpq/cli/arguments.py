"""Arguments and options of the command line, with their help."""

from pathlib import Path
from typing import Annotated

import typer

from hpcmpq.cli import completion
from hpcmpq.cli.run_argument import no_file, run_argument
from hpcmpq.errors import UserError
from hpcmpq.export import EXPORTERS
from hpcmpq.tables import table_name


def as_in_tables(value: str | None) -> str | None:
    """As tables spell it: hyphens and underscores are alike."""
    return None if value is None else table_name(value)


RunPath = Annotated[Path, run_argument("RUN", "The run directory.")]
RunPaths = Annotated[list[Path], run_argument("RUN", "The run directory, or several.")]
ConfigPath = Annotated[
    Path,
    typer.Argument(
        metavar="CONFIG", help="The YAML config.", show_default=False, autocompletion=completion.configs
    ),
]
ConfigOrModel = Annotated[
    Path,
    typer.Argument(
        metavar="CONFIG",
        help="The YAML config; or a model directory or GGUF file, with --data.",
        show_default=False,
        autocompletion=completion.configs_and_models,
    ),
]
RunOption = Annotated[
    Path,
    typer.Option(
        "--run-dir",
        metavar="RUN",
        help="The run directory.",
        autocompletion=completion.run_directories,
        callback=no_file,
    ),
]
RunOrNone = Annotated[
    Path | None,
    typer.Option(
        "--run-dir",
        metavar="RUN",
        help="The run directory; needed without --dry.",
        autocompletion=completion.run_directories,
        callback=no_file,
    ),
]
PlannedConfig = Annotated[
    Path,
    typer.Argument(
        metavar="CONFIG",
        help="The YAML config; with --dry also a model's config.json.",
        show_default=False,
        autocompletion=completion.configs,
    ),
]
Dry = Annotated[
    bool,
    typer.Option("--dry", help="Predict from config.json alone: no weights, no data; nothing is written."),
]
TeraFlops = Annotated[
    float, typer.Option("--tflops", metavar="X", help="With --dry: TFLOP/s that a worker's device sustains.")
]
ExecutorName = Annotated[
    str,
    typer.Option(
        "--executor",
        help="Where units run: local, mpi or ray.",
        autocompletion=completion.executors,
        callback=as_in_tables,
    ),
]
ExecutorOrNone = Annotated[
    str | None,
    typer.Option(
        "--executor",
        help="Where work units run: local, mpi or ray; by default none, and this process measures.",
        autocompletion=completion.executors,
        callback=as_in_tables,
    ),
]
WorkersOrNone = Annotated[
    int | None,
    typer.Option("--workers", help="Most workers that run work units; 0 takes all that there are."),
]
Workers = Annotated[int, typer.Option("--workers", help="Most workers; 0 takes all that there are.")]
UnitShare = Annotated[
    str, typer.Option("--part", metavar="I/N", help="This is number I of N processes that share RUN, from 0.")
]
AtMost = Annotated[
    int | None,
    typer.Option("--at-most", metavar="N", min=0, help="Stop after N units, of rounding and of measuring."),
]
Watch = Annotated[bool, typer.Option("--watch", help="Again and again, until every stage is done.")]
ShowUsage = Annotated[bool, typer.Option("--usage", help="What the Slurm jobs used, and files and inodes.")]
Every = Annotated[float, typer.Option("--every", metavar="SECONDS", help="Between two looks of --watch.")]
PredictWorkers = Annotated[
    int,
    typer.Option(
        "--workers", metavar="N", min=0, help="Predict how long N workers take for what is missing."
    ),
]
SubmitExecutor = Annotated[
    str,
    typer.Option(
        "--executor",
        help="How the job calibrates: mpi, ray, array or local.",
        autocompletion=completion.submit_executors,
        callback=as_in_tables,
    ),
]
SlurmSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--slurm",
        metavar="KEY=VALUE",
        help="Partition, nodes, ...; JOB.KEY=VALUE for one job.",
        autocompletion=completion.slurm_settings,
    ),
]
_PBS_HELP = "The same for PBS: queue, select, walltime, ..."
PbsSettings = Annotated[list[str] | None, typer.Option("--pbs", metavar="KEY=VALUE", help=_PBS_HELP)]
PlanOnCluster = Annotated[bool, typer.Option("--plan-on-cluster", help="Plan in a job of its own.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the scripts and do nothing.")]
Budgets = Annotated[
    list[str] | None,
    typer.Option(
        "--budget",
        metavar="NAME=VALUE",
        help="Upper limit on a cost; repeatable.",
        autocompletion=completion.budgets,
    ),
]
SolverName = Annotated[
    str | None,
    typer.Option(
        "--solver",
        help="Solver, instead of the config's.",
        autocompletion=completion.solvers,
        callback=as_in_tables,
    ),
]
TimeLimit = Annotated[
    float | None,
    typer.Option("--time-limit", metavar="SECONDS", help="Solver time, instead of the config's."),
]
Gain = Annotated[
    str | None,
    typer.Option(
        "--maximize",
        metavar="GAIN",
        help="Instead of the least loss, the largest time_gain, mac_gain or memory_gain within a loss.",
        autocompletion=completion.gains,
        callback=as_in_tables,
    ),
]
MaxLossMse = Annotated[
    float | None,
    typer.Option(
        "--max-loss-mse", metavar="SHARE", help="With --maximize: of the loss's mean square (first_order)."
    ),
]
MaxLoss = Annotated[
    float | None,
    typer.Option("--max-loss", metavar="LOSS", help="With --maximize: the largest predicted loss increase."),
]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show how the bound came about and what limits it.")]
ExportFormat = Annotated[
    str | None,
    typer.Option(
        "--format",
        help=f"What to write: {', '.join(EXPORTERS)}; by default the first, and what the config's target loads.",
        autocompletion=completion.export_formats,
        callback=as_in_tables,
    ),
]
NoVerify = Annotated[
    bool,
    typer.Option("--no-verify", help="Do not read the files back and compare outputs; that is recorded."),
]
EngineName = Annotated[
    str | None,
    typer.Option(
        "--engine",
        help="What runs the models, instead of the config's: torch or deepspeed.",
        autocompletion=completion.engines,
        callback=as_in_tables,
    ),
]
RoundingName = Annotated[
    str | None,
    typer.Option(
        "--method",
        help="gptq, gptaq or qep, instead of the config's.",
        autocompletion=completion.rounding_methods,
        callback=as_in_tables,
    ),
]
Strength = Annotated[
    float | None,
    typer.Option(
        "--strength",
        min=0.0,
        max=1.0,
        help="How far to go towards the original's outputs, instead of the config's.",
    ),
]
RunsDirectory = Annotated[
    Path, typer.Option("--directory", metavar="DIR", help="Where run directories are to lie.")
]
ModelDirectory = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL_DIR",
        help="A Hugging Face directory or a GGUF file.",
        show_default=False,
        autocompletion=completion.model_directories,
    ),
]
NewConfig = Annotated[
    Path, typer.Option("--output", metavar="FILE", help="The config to write; it must not exist.")
]
DataFile = Annotated[
    str | None,
    typer.Option(
        "--data", metavar="FILE", help="Calibration data: text, JSONL with a field text, .npy or .npz."
    ),
]
FirstRun = Annotated[Path, run_argument("RUN_A", "A run directory.")]
SecondRun = Annotated[Path, run_argument("RUN_B", "Another one.")]


def parse_part(text: str) -> tuple[int, int]:
    """(i, n) of `I/N`: number I, from 0, of N processes that share a run directory.

    Raises:
        UserError: If the text is something else.

    Example:
        >>> parse_part("3/16")
        (3, 16)
    """
    index, _, num_parts = text.partition("/")
    if not (index.isdecimal() and num_parts.isdecimal() and int(index) < int(num_parts)):
        raise UserError(f"--part {text!r} is not I/N with I from 0 to N-1, such as 0/4")
    return int(index), int(num_parts)
