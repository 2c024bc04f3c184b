"""A model under an assignment for good, for callers who go on with it."""

from collections.abc import Mapping

import torch
from torch import nn

from hpcmpq.errors import UserError
from hpcmpq.quantized.solved import open_solved
from hpcmpq.store.original import check_original
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir


def quantized_model(run: RunDir, assignment: Mapping[str, str]) -> nn.Module:
    """A new copy of the run's model: its weights have the quantizer's values, and it rounds inputs that formats round.

    In eval mode, without gradients, in the dtype and on the device of the run's config.

    Args:
        run: A planned run directory.
        assignment: {group: format} of every group.

    Raises:
        UserError: If the assignment is none of the plan's.
        PlanMismatch: If the model has changed since it was planned for.
        DamagedFile: If a file of RUN/original is not what was written.
    """
    check_original(run)
    plan = read_plan(run)
    try:
        plan.space.choice(assignment)
    except ValueError as error:
        raise UserError(f"{error}; give the assignment of a solution of {run.path}") from None
    variants = open_solved(run, plan)
    model = variants.model
    with torch.no_grad():
        for name, tensor in variants.weights(assignment).items():
            model.get_parameter(name).copy_(tensor)
    variants.activations.round_from_now_on(assignment)
    return model
