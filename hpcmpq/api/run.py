"""`Run`: a run directory and its stages, for people who work in Python."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcmpq.api import calibrating, limits, results, stages
from hpcmpq.api.bars import passing
from hpcmpq.api.frontier import Frontier, frontier_of
from hpcmpq.api.quadratic import Quadratic, group_frame, quadratic_of
from hpcmpq.api.solution import Solution, solution_of
from hpcmpq.settings import to_values
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.quadratic_file import read_quadratic
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.solution_file import read_solution

if TYPE_CHECKING:
    import pandas

    from hpcmpq.batch.status import Status


@dataclass(frozen=True, repr=False)
class Run:
    """A run directory. Make one with `Run.create`, or go on with one by `hpcmpq.open`.

    Every method is a stage of the command line: it reads what lies in the directory, writes its own file and returns
    what it found. Any may be called again; interrupted, the same call goes on. Nothing is printed but a bar on
    standard error where somebody looks.

    Attributes:
        path: The directory.
    """

    path: Path

    @classmethod
    def create(
        cls,
        model: Any,
        data: Any = None,
        *,
        run_dir: str | os.PathLike[str],
        tokenizer: Any = None,
        evaluation_data: Any = None,
        formats: Sequence[str] | None = None,
        budgets: Mapping[str, float] | None = None,
        num_samples: int | None = None,
        sequence_length: int | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> "Run":
        """Look at a model and data, and plan what to measure; the same call again finds the run that is there.

        Args:
            model: A module in memory, a Hugging Face directory, a GGUF file, or ``package.module:function``. It is
                not changed. A model of transformers is saved in the run directory; any other module stays in this
                process, and `calibrate` then does too.
            data: Samples to calibrate on: a file, a list of texts or records, a `datasets.Dataset`, a tensor (of
                token ids, int64 [N, T], or inputs, [N, ...]), a dict of tensors, (inputs, targets), or an iterable of
                such batches. None takes English text that comes with Python, for a first look.
            run_dir: The directory, which may hold this run already.
            tokenizer: Of a model of transformers in memory, for texts.
            evaluation_data: As `data`; by default samples of those that nothing else used.
            formats: Names such as ``int4``; by default int2 to int8.
            budgets: {cost: upper limit}; by default 4 bits per weight.
            num_samples: To calibrate on; by default 128, or half of fewer data.
            sequence_length: Tokens of a sample; by default as many as model and data allow, up to 512.
            settings: More, as in a config file, such as ``{"quantizer": {"group_size": 32}}``.

        Raises:
            UserError: If the model, the data or a setting is wrong.
            PlanMismatch: If the directory holds another run.
            Infeasible: If no assignment meets the budgets.

        Example:
            >>> import tempfile
            >>> from hpcmpq.api.example import example_data, example_model
            >>> run = Run.create(example_model(), example_data(), run_dir=tempfile.mkdtemp(), num_samples=8)
            >>> run.status().num_done
            0
        """
        from hpcmpq.api.create import create

        run = RunDir(Path(run_dir))
        create(
            run,
            model,
            data,
            tokenizer,
            evaluation_data,
            formats,
            budgets,
            num_samples,
            sequence_length,
            settings,
        )
        return cls(run.path)

    calibrate = calibrating.calibrate

    def solve(
        self, *, solver: str | None = None, time_limit_s: float | None = None, **budgets: float
    ) -> Solution:
        """The assignment of least predicted loss within budgets, with a proven bound.

        Args:
            solver: A name in `hpcmpq.solvers.SOLVERS`; by default the run's.
            time_limit_s: Wall seconds; by default the run's.
            **budgets: {cost: upper limit}, such as ``weight_bits=3.5``, ``size_bytes=4.2e9``; by default the run's.

        Raises:
            Infeasible: If no assignment meets them.
            UserError: If a cost is unknown.

        Example:
            >>> from hpcmpq.api.example import example_run
            >>> example_run().solve(weight_bits=2).formats()
            {'int2': 3}
        """
        return solution_of(stages.solve(self._run, budgets, solver, time_limit_s))

    refine = calibrating.refine

    def frontier(
        self,
        cost: str | None = None,
        *,
        start: float | None = None,
        stop: float | None = None,
        step: float | None = None,
        solver: str | None = None,
        time_limit_s: float = limits.POINT_S,
        **budgets: float,
    ) -> Frontier:
        """Solutions over a range of limits on one cost.

        Args:
            cost: The cost that varies; by default that of the run's first budget.
            start: Smallest limit, in the cost's unit; by default what the smallest uniform format costs.
            stop: Largest limit; by default what the largest uniform format costs.
            step: Distance of limits; by default a 24th of the range.
            solver: As in `solve`.
            time_limit_s: Wall seconds of one point.
            **budgets: On other costs, which hold at every point.

        Raises:
            Infeasible: If not even the largest limit can be met.
            UserError: If there is no range, or a cost is unknown.

        Example:
            >>> from hpcmpq.api.example import example_run
            >>> example_run().frontier(start=2, stop=4, step=1)
            Frontier(3 points, weight_bits from 2 to 4)
        """
        with passing("frontier", "points") as show:
            values = limits.frontier(
                self._run, cost, start, stop, step, budgets, solver, time_limit_s, on_point=show
            )
        return frontier_of(values)

    reround = results.reround
    apply = results.apply
    export = results.export
    evaluate = results.evaluate
    report = results.report
    time = results.time

    def status(self) -> "Status":
        """Where the run stands: stages, work units, throughput, failures.

        Example:
            >>> from hpcmpq.api.example import example_run
            >>> state = example_run().status()
            >>> state.num_done == state.num_units
            True
        """
        from hpcmpq.batch.status import read_status

        return read_status(self._run)

    @property
    def quadratic(self) -> Quadratic:
        """What calibration measured.

        Raises:
            UserError: If the run is not calibrated yet.
            PlanMismatch: If what is there was measured for another plan.
        """
        plan = read_plan(self._run)
        return quadratic_of(read_quadratic(self._run.quadratic_path, plan), plan.space)

    @property
    def solution(self) -> Solution:
        """The last solution, with what refinement and evaluation added to it.

        Raises:
            UserError: If nothing is solved yet.
        """
        return solution_of(read_solution(self._run))

    @property
    def groups(self) -> "pandas.DataFrame":
        """A row for each group: `numel` weights, `macs` of a sample, `block`, `parameters`, `formats`.

        Example:
            >>> from hpcmpq.api.example import example_run
            >>> int(example_run().groups.loc["first", "numel"])
            48
        """
        return group_frame(read_plan(self._run).space)

    @property
    def config(self) -> dict[str, Any]:
        """The resolved settings that the run was planned with."""
        values: dict[str, Any] = json.loads(json.dumps(to_values(read_plan(self._run).config)))
        return values

    def __repr__(self) -> str:
        space = read_plan(self._run).space
        return f"Run({str(self.path)!r}, {len(space.groups)} groups, {space.num_options} options)"

    @property
    def _run(self) -> RunDir:
        return RunDir(self.path)
