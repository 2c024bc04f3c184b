"""The plan in `plan.json`, with the times that were measured for it, and the options that screening chose."""

from dataclasses import replace

from hpcmpq.errors import DamagedFile
from hpcmpq.formats import FORMATS
from hpcmpq.plan import Plan, in_rounds, plan_from_json
from hpcmpq.store.json_files import read_json
from hpcmpq.store.measured_times import read_times
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.screening_rounds import read_rounds
from hpcmpq.store.sums import check_sum


def read_plan(run: RunDir, with_times: bool = True, screened: bool = True) -> Plan:
    """The plan of a run directory.

    Args:
        run: The run directory.
        with_times: Whether the plan has the times that were measured there for it.
        screened: Whether the options are those alone that screening chose, if it has, rather than all.

    Raises:
        UserError: If there is none.
        DamagedFile: If it, the times, or data that were in memory are damaged.
    """
    made_by = f"hpcmpq plan CONFIG --run-dir {run.path}"
    values = read_json(run.plan_path, made_by)
    try:
        plan = plan_from_json(values)
        if unknown := {name for names in plan.space.formats for name in names} - FORMATS.keys():
            raise ValueError(f"unknown format {min(unknown)!r}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__} {error}"
        raise DamagedFile(
            f"{run.plan_path} is damaged ({reason}); run `{made_by}` again to write it anew"
        ) from None
    if (run.original_path / "config.json").is_file():  # wherever the run directory has gone
        model = replace(plan.config.model, path=str(run.original_path.resolve()))
        plan = replace(plan, config=replace(plan.config, model=model))
    for use in ("calibration", "evaluation"):
        for path in run.data_path.glob(f"{use}.*"):
            check_sum(path, "give hpcmpq.Run.create the same data again")
            section = replace(getattr(plan.config, use), data=str(path.resolve()))
            plan = replace(plan, config=replace(plan.config, **{use: section}))
    if screened and plan.config.sensitivity.screen and (rounds := read_rounds(run, plan)):
        plan = in_rounds(plan, [values["options"] for values in rounds if values["options"]])
    if not with_times:
        return plan
    return replace(plan, times=read_times(run, plan.fingerprint, plan.config.timing.generated_tokens))
