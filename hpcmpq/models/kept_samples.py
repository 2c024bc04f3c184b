"""Calibration samples in RUN/samples.safetensors, as `hpcmpq plan` chose them.

Workers read them from there: none tokenizes the whole text again, and none needs the text, or sees it changed.
"""

from torch import Tensor

from hpcmpq.errors import UserError
from hpcmpq.models.samples import Samples
from hpcmpq.plan import Plan, content_hash
from hpcmpq.store import RunDir
from hpcmpq.whole_files import replacing

NAME = "samples.safetensors"
_INPUT, _TARGETS = "input.", "targets"


def keep_samples(run: RunDir, samples: Samples) -> None:
    """Write the samples; inputs as ``input.NAME``, targets as ``targets``, the rest as metadata."""
    from safetensors.torch import save_file

    tensors = {_INPUT + name: tensor.contiguous() for name, tensor in samples.inputs.items()}
    if samples.targets is not None:
        tensors[_TARGETS] = samples.targets.contiguous()
    with replacing(run.file(NAME)) as attempt:
        save_file(tensors, attempt, {"labelled": str(int(samples.labelled)), "format_version": "1"})


def kept_samples(run: RunDir, plan: Plan) -> Samples | None:
    """The samples that the plan names, or None if a version before this file planned the run.

    Raises:
        UserError: If the file is damaged or holds other samples.
    """
    from safetensors import SafetensorError, safe_open

    path = run.file(NAME)
    if not path.exists():
        return None
    again = f"run `hpcmpq plan CONFIG --run-dir {run.path}` again"
    try:
        with safe_open(path, "pt") as file:
            labelled = file.metadata()["labelled"] == "1"
            names = list(file.keys())
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({str(error).splitlines()[0]}); {again}") from None
    targets = tensors.pop(_TARGETS, None)
    inputs = {name.removeprefix(_INPUT): tensor for name, tensor in tensors.items()}
    samples = Samples(inputs, targets, labelled)
    facts: dict[str, object] = {"calibration.samples": content_hash(samples.content_hashes())}
    if "calibration.targets" in plan.facts:
        facts["calibration.targets"] = samples.targets_hash()
    if any(plan.facts[name] != value for name, value in facts.items()):
        raise UserError(f"{path} holds other samples than the plan names; {again}")
    return samples
