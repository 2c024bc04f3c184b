"""A worker that makes codes of options: the original loaded once in its process, then a file for every weight."""

from hpcmpq.calibrate.opened import open_run
from hpcmpq.executors import Worker
from hpcmpq.models.data.kept_samples import rounding_samples
from hpcmpq.models.searchable_layers import experts_one_by_one
from hpcmpq.plan import WorkUnit
from hpcmpq.quantized.stored_codes import StoredCodes
from hpcmpq.rounding.options import make_codes, stored_formats
from hpcmpq.rounding.original_inputs import OriginalInputs
from hpcmpq.sensitivity import find_method
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir


def make_worker(run: RunDir) -> Worker:
    """Load the original, perhaps to be streamed, and return the function that makes the codes of a unit's groups."""
    plan = read_plan(run, screened=False)
    config = plan.config
    opened = open_run(run, plan, config.model, find_method(config.sensitivity.method).attention)
    experts_one_by_one(opened.variants.model)  # batched products are with copies, whose inputs are not seen
    samples = rounding_samples(run, plan).to(opened.device)
    formats = stored_formats(plan.space, config.quantizer)
    inputs = OriginalInputs(
        opened.variants.model,
        plan.space.groups,
        list(samples.passes(config.calibration.samples_per_pass)),
        list(formats),
        opened.variants.streamed,
    )
    stored = StoredCodes(run, plan.fingerprint)

    def work(unit: WorkUnit) -> None:
        groups = plan.space.groups[unit.group_start : unit.group_stop]
        members = [member for group in groups for member in group.members if member in formats]
        make_codes(stored, inputs, {member: formats[member] for member in members}, config.quantizer)

    return work
