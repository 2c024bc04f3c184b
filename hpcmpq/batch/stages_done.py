"""Which stages of a run are done: those whose artefacts are there, whole, and of this plan and its solution."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from hpcmpq.errors import DamagedFile, PlanMismatch
from hpcmpq.plan import Plan
from hpcmpq.store.h5_files import check_whole
from hpcmpq.store.of_solution import is_exported_to, is_reported_in, read_evaluation
from hpcmpq.store.quadratic_file import is_of_plan
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.solution_file import read_solution
from hpcmpq.store.timings import read_timings

T = TypeVar("T")


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: Of its command.
        done: Whether its artefact is there and whole, and is of this plan and its solution as far as it says.
        seconds: Wall time of its last run, or None.
    """

    name: str
    done: bool
    seconds: float | None


def stages_of(run: RunDir, plan: Plan, calibrated: bool, damaged: list[str]) -> tuple[Stage, ...]:
    """All stages of a run, in order.

    Args:
        run: The run directory.
        plan: Of it.
        calibrated: Whether all work units are measured.
        damaged: Takes in a sentence for each artefact that is damaged.
    """
    timings, config = read_timings(run), plan.config

    def is_reduced() -> bool:
        check_whole(run.quadratic_path, f"hpcmpq reduce {run.path}")
        return is_of_plan(run.quadratic_path, plan)

    reduced = run.quadratic_path.exists() and read_whole(damaged, is_reduced)
    solution = read_whole(damaged, lambda: read_solution(run)) if run.solution_path.exists() else None
    evaluation = None if solution is None else read_whole(damaged, lambda: read_evaluation(run, solution))
    done = {
        "plan": True,
        "round": calibrated or "round" in timings,  # which a process that is interrupted does not write
        "calibrate": calibrated,
        "reduce": bool(reduced),
        "solve": solution is not None,
        "refine": solution is not None and "refine" in solution,
        "reround": solution is not None and "reround" in solution,
        "export": solution is not None and is_exported_to(run.checkpoint_path, solution),
        "evaluate": evaluation is not None,
        "report": solution is not None and is_reported_in(run.report_path, solution),
    }
    left_out = {
        "round": not config.quantizer.stores_codes,
        "refine": not (done["refine"] or config.calibration.held_out),
        "reround": not (done["reround"] or config.rounds_again),
    }
    return tuple(
        Stage(name, is_done, timings.get(name, {}).get("seconds"))
        for name, is_done in done.items()
        if not left_out.get(name)
    )


def read_whole(damaged: list[str], read: Callable[[], T]) -> T | None:
    """What is read of an artefact; None where it is damaged, which `damaged` takes in, or another plan's."""
    try:
        return read()
    except DamagedFile as error:
        damaged.append(str(error))
    except PlanMismatch:
        pass
    return None
