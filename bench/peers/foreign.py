"""Other packages' own searches, each run in a virtual environment of its own that the bench builds."""

import importlib.metadata
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import environments
from bench.peers.calibration import Calibrated, add_seconds
from bench.workload import CACHE
from hpcmpq.formats import FORMATS
from hpcmpq.models.data.samples import Samples
from hpcmpq.plan import content_hash
from hpcmpq.store.json_files import read_json

Assignments = dict[float, dict[str, str]]
"""{bits per weight: {group name: format name}}."""


@dataclass(frozen=True)
class Package:
    """A package that searches by itself.

    Attributes:
        requirement: What pip installs beside this environment's torch and transformers.
        undeclared: What it imports and does not require.
        program: The file beside this one that runs it.
    """

    requirement: str
    program: str
    undeclared: tuple[str, ...] = ()


PACKAGES = {
    "ModelOpt": Package("nvidia-modelopt==0.47.0", "run_modelopt.py", ("requests",)),
    "AutoScheme": Package("auto-round==0.16.1", "run_auto_round.py"),
}


def foreign_assignments(
    name: str, calibrated: Calibrated, samples: Samples, budgets: list[float]
) -> Assignments:
    """What a package of PACKAGES chooses at every budget; kept, as all choices of the same job are.

    Args:
        name: Key of PACKAGES.
        calibrated: Groups, formats and the model's directory.
        samples: Calibration samples of token ids.
        budgets: Payload bits per weight.

    Raises:
        subprocess.CalledProcessError: If the package cannot be installed or fails; its log is in the message's place.
    """
    space, config = calibrated.plan.space, calibrated.config
    ids = samples.inputs["input_ids"].numpy()
    job = {
        "model": config.model.path,
        "groups": {g.name: [m.parameter.removesuffix(".weight") for m in g.members] for g in space.groups},
        "formats": {name: FORMATS[name].num_bits for name in space.formats[0]},
        "group_size": config.quantizer.group_size,
        "budgets": budgets,
    }
    key = content_hash([name, PACKAGES[name].requirement, job, samples.digest()])[:12]
    folder = CACHE / "peers" / "foreign" / f"{name}-{key}"
    answer = folder / "answer.json"
    if not answer.exists():
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "samples.npy", ids)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        _run(name, folder, {**job, "samples": str(folder / "samples.npy")})
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        add_seconds(calibrated.kept, name, used_s)
    format_of = {bits: name for name, bits in job["formats"].items()}
    return {
        float(limit): {group: format_of[bits] for group, bits in bits_of.items()}
        for limit, bits_of in read_json(answer, "python -m bench.peers").items()
    }


def _run(name: str, folder: Path, job: Mapping[str, Any]) -> None:
    """Write folder/answer.json; what the package says goes to folder/log."""
    python = environment(name)
    print(f"{name} searches; its log is {folder / 'log'}", flush=True)
    program = Path(__file__).with_name(PACKAGES[name].program)
    environments.answer(python, program, folder, job, {"AR_AUTO_SCHEME_CACHE": str(folder / "scores")})


def environment(name: str) -> Path:
    """The Python of a package's environment."""
    package = PACKAGES[name]
    folder = CACHE / "peers" / "environments" / package.requirement
    own = [f"{name}=={importlib.metadata.version(name)}" for name in ("torch", "transformers")]
    return environments.environment(folder, [*own, "accelerate", package.requirement, *package.undeclared])
