"""Where everything in a run directory lies; `hpcmpq.store` says what it is."""

from dataclasses import dataclass
from pathlib import Path

from hpcmpq.store.whole_files import remove_abandoned

MEASURING = ("calibrate", "round", "screen", "refine", "reround", "evaluate")
"""All whose work units are run and whose attempts are kept, see `RunDir.measuring`."""


@dataclass(frozen=True)
class RunDir:
    """Names of everything in a run directory.

    Attributes:
        path: The directory.
        measuring: Whose work units are meant, of `MEASURING`: each has its own folders.
    """

    path: Path
    measuring: str = "calibrate"

    @property
    def stage(self) -> str:
        """The stage that runs the work units."""
        return "calibrate" if self.measuring in ("round", "screen") else self.measuring

    @property
    def command(self) -> str:
        """The command that does."""
        return f"hpcmpq {self.stage} {self.path}"

    def file(self, name: str) -> Path:
        """Path of an artefact."""
        return self.path / name

    @property
    def plan_path(self) -> Path:
        """What will be measured."""
        return self.path / "plan.json"

    @property
    def original_path(self) -> Path:
        """Directory of the original, where the model that was given is quantized, or was in memory."""
        return self.path / "original"

    @property
    def data_path(self) -> Path:
        """Directory of the samples that were in memory: `calibration` and `evaluation`, with a suffix."""
        return self.path / "data"

    @property
    def config_path(self) -> Path:
        """The config that was written for a model and data; what a plan was made from stands in the plan."""
        return self.path / "config.yaml"

    @property
    def shards_path(self) -> Path:
        """Directory of finished work units."""
        return self.path / ("shards" if self.measuring == "calibrate" else f"{self.measuring}/shards")

    def shard_path(self, unit_id: str) -> Path:
        """One finished work unit."""
        return self.shards_path / f"{unit_id}.h5"

    @property
    def attempts_path(self) -> Path:
        """Directory of what the processes that measure saw, see `hpcmpq.store.attempts`."""
        return self.path / ("attempts" if self.measuring == "calibrate" else f"{self.measuring}/attempts")

    @property
    def jobs_path(self) -> Path:
        """Slurm jobs that were submitted for this run."""
        return self.path / "jobs.json"

    @property
    def times_path(self) -> Path:
        """Directory of finished rounds of time measurement, see `hpcmpq.timing.stage`."""
        return self.path / "times"

    @property
    def time_path(self) -> Path:
        """Measured times of sub-graphs."""
        return self.path / "time.json"

    @property
    def quadratic_path(self) -> Path:
        """The quadratic model."""
        return self.path / "quadratic.h5"

    @property
    def solution_path(self) -> Path:
        """The assignment."""
        return self.path / "solution.json"

    @property
    def frontier_path(self) -> Path:
        """Solutions over a range of budgets."""
        return self.path / "frontier.json"

    @property
    def evaluation_path(self) -> Path:
        """Measured quality."""
        return self.path / "evaluation.json"

    @property
    def checkpoint_path(self) -> Path:
        """The quantized model."""
        return self.path / "checkpoint"

    @property
    def report_path(self) -> Path:
        """The report."""
        return self.path / "report.html"


def remove_leftovers(run: RunDir) -> None:
    """Remove what killed processes left beside artefacts; that of work units is for the stages that write those."""
    for folder in (
        ".",
        "exports",
        "pbs",
        "ranges",
        "refine",
        "report",
        "reround",
        "rounded",
        "screen",
        "slurm",
        "times",
        "timings",
    ):
        remove_abandoned(run.path / folder)
