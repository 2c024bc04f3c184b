"""What a plan keeps beside the plan: the facts that fix every measured number, and the environment it is made in."""

import json
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hpcmpq.errors import PlanMismatch
from hpcmpq.formats import FORMATS
from hpcmpq.models.data.kept_samples import ROUNDING
from hpcmpq.models.data.samples import Splits
from hpcmpq.plan import CHOICES, KEPT, WIDE, Plan, content_hash
from hpcmpq.quantized.activations import rounds_activations
from hpcmpq.quantized.checkpoint import open_checkpoint
from hpcmpq.quantized.source_codes import FORMAT, SOURCE_CODES, takes_source_codes
from hpcmpq.sensitivity import find_method
from hpcmpq.sensitivity.probes import num_probes
from hpcmpq.sensitivity.sampled_positions import samples_positions
from hpcmpq.settings import CalibrationConfig, Config, ModelConfig, to_values
from hpcmpq.space import SearchSpace

TARGETS = "calibration.targets"
"""Newer than the first plans, whose targets are unknown."""


SPECIAL_TOKENS = "calibration.special_tokens"
"""What is around every sample, where that is not what versions before this setting did."""


SUPER_BLOCKS = "quantizer.super_blocks"
"""How types of ggml are rounded where integers are compensated; plans older than this rounded them to the nearest."""


def find_facts(
    config: Config, weights: str, splits: Splits, space: SearchSpace, num_outputs: int, chooses: bool
) -> dict[str, object]:
    """All that changes a measured number; not where files lie nor what is solved for.

    Args:
        config: Of the run.
        weights: Digest of the model's weights.
        splits: Its samples.
        space: Groups and formats.
        num_outputs: Of the model, at one position.
        chooses: Whether the model chooses experts.

    Raises:
        UserError: If sensitivity.loss_positions cannot be used.
    """
    samples = splits.calibration
    kept = _measured_settings(config)
    kept["model"] = {"dtype": config.model.dtype}
    kept["quantizer"]["checkpoints"] = {
        name: open_checkpoint(path).digest() for name, path in config.quantizer.checkpoints.items()
    }
    if config.quantizer.scales == "bfloat16":
        del kept["quantizer"]["scales"]  # as in plans older than the choice
    if not config.groups.attention_products:
        del kept["groups"]["attention_products"]
    if not config.groups.kv_cache:
        del kept["groups"]["kv_cache"]
    if rounds_activations(space):
        kept["activations"] = {
            name: FORMATS[name].activation for name in (*config.formats, *config.groups.kv_cache)
        }
    else:
        del kept["quantizer"]["activations"]
    if not config.calibration.balance_experts:
        del kept["calibration"]["balance_experts"]  # as in plans older than the choice
    if config.calibration.workers is None:
        del kept["calibration"]["workers"]
    if config.sensitivity.products is None:
        del kept["sensitivity"]["products"]
    if not config.sensitivity.screen:
        del kept["sensitivity"]["screen"]
    kept["sensitivity"]["loss_positions"] = _loss_positions(config, num_outputs)
    if kept["sensitivity"]["loss_positions"] is None:
        del kept["sensitivity"]["loss_positions"]
    if config.target is not None:
        kept["target"] = config.target
    targets = samples.targets_hash()
    framed = config.calibration.special_tokens and splits.special_tokens
    return {
        **flatten(kept),
        **({SPECIAL_TOKENS: splits.special_tokens} if framed else {}),
        **({CHOICES: KEPT} if keeps_choices(config, chooses) else {}),
        **({WIDE: "float32"} if _measures_wider(config) else {}),
        **({SUPER_BLOCKS: "gptq"} if _compensates_super_blocks(config) else {}),
        **({SOURCE_CODES: FORMAT} if takes_source_codes(config.model.path, config.formats) else {}),
        "model.weights": weights,
        "calibration.samples": content_hash(samples.content_hashes()),
        "groups.found": content_hash([[m.parameter for m in g.members] for g in space.groups]),
        "numerics_version": NUMERICS_VERSION,
        **({} if targets is None else {TARGETS: targets}),
        **({} if splits.rounding is None else {ROUNDING: content_hash(splits.rounding.content_hashes())}),
    }


def keeps_choices(config: Config, chooses: bool) -> bool:
    """Whether options keep the original's choices of experts while they are measured."""
    return chooses and find_method(config.sensitivity.method).forward_only


def _measures_wider(config: Config) -> bool:
    return config.model.dtype == "bfloat16" and not find_method(config.sensitivity.method).forward_only


def _compensates_super_blocks(config: Config) -> bool:
    ggml = any(FORMATS[name].type == "ggml" for name in config.formats)
    return ggml and config.quantizer.rounding == "gptq"


def _loss_positions(config: Config, num_outputs: int) -> int | str | None:
    """On how many positions losses are computed from all logits; None for all, as in plans older than the choice."""
    given = config.sensitivity.loss_positions
    probes = num_probes(config.sensitivity.probes, num_outputs)
    if not find_method(config.sensitivity.method).forward_only:
        return None
    return (given or "some") if samples_positions(given, num_outputs, probes, config.objective) else None


def _measured_settings(config: Config) -> dict[str, Any]:
    values = to_values(config)
    for name in ("data", "special_tokens"):
        del values["calibration"][name]
    return {
        key: values[key]
        for key in ("groups", "formats", "quantizer", "objective", "sensitivity", "calibration")
    }


def default_facts() -> dict[str, Any]:
    """Settings of a config that names none."""
    settings = flatten(_measured_settings(Config(ModelConfig(), CalibrationConfig(""))))
    return settings | {"target": None, SPECIAL_TOKENS: False}


def find_environment() -> dict[str, str]:
    """Versions of Python, of the libraries that compute and of this package, and the machine's architecture."""
    versions = {"python": platform.python_version(), "machine": platform.machine()}
    for name in ("hpcmpq", "torch", "transformers", "numpy", "h5py", "ortools", "deepspeed", "ray", "mpi4py"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    versions["commit"] = _commit()
    return versions


def _commit() -> str:
    """Of the checkout that this file is tracked in; an environment may lie in the repository of something else."""
    if not _git("ls-files", "--error-unmatch", Path(__file__).name):
        return "unknown"
    return _git("rev-parse", "HEAD") or "unknown"


def _git(*arguments: str) -> str:
    """What git prints in this file's directory, empty where it fails."""
    try:
        shown = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "" if shown.returncode else shown.stdout.strip()


NUMERICS_VERSION = 1
"""Counts changes of the package that alter measured numbers."""


_HASHED = {
    "model.weights": "weights of the model",
    "calibration.samples": "calibration samples",
    "calibration.targets": "labels of the calibration samples",
    "calibration.rounding": "samples to fit rounding on",
    "groups.found": "groups of weights",
}
"""Facts that are digests, in words."""


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}} as {'a.b': 1}.

    Example:
        >>> flatten({"a": {"b": 1}, "c": [2, 3]})
        {'a.b': 1, 'c': [2, 3]}
    """
    if not isinstance(values, dict):
        return {prefix: list(values) if isinstance(values, tuple) else values}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def check_same_options(planned: Plan, space: SearchSpace, config: Config, run_path: str) -> None:
    """Refuse options other than those that a run measures: a GPU, a target or another version may hold other formats.

    Args:
        planned: The run directory's plan.
        space: Of the config at hand, with the same groups.
        config: For the message.
        run_path: Likewise.

    Raises:
        PlanMismatch: Naming the first group that has other formats.
    """
    pairs = zip(space.groups, planned.space.formats, space.formats, strict=True)
    differ = next(((group, old, new) for group, old, new in pairs if old != new), None)
    if differ is None:
        return
    group, before, now = differ
    gpus = [f" on gpu {gpu}" if gpu else "" for gpu in (planned.config.gpu, config.gpu)]
    raise PlanMismatch(
        f"{run_path} was planned with {', '.join(before)} for {group.name}{gpus[0]}, the config gives "
        f"{', '.join(now)}{gpus[1]}; restore it or use a new run directory"
    )


def check_same_facts(
    planned: dict[str, Any], wanted: dict[str, Any], run_path: str, defaults: dict[str, Any]
) -> None:
    """Refuse to mix two configurations in one run directory.

    Args:
        planned: Facts in the run directory's plan.
        wanted: Facts of the config at hand.
        run_path: For the message.
        defaults: What a setting is where facts do not name it, because it is newer than the plan, say.

    Raises:
        PlanMismatch: Naming the fields that differ.
    """
    before, now = ({**defaults, **json.loads(json.dumps(facts))} for facts in (planned, wanted))
    names = [name for name in {**wanted, **before} if before.get(name) != now.get(name)]
    if not names:
        return
    names.sort(key=lambda name: name in _HASHED)  # a setting says more than a digest that it changes
    first = names[0]
    others = f" (also different: {', '.join(names[1:5])})" if len(names) > 1 else ""
    differ = (
        f"other {_HASHED[first]} than the config gives"
        if first in _HASHED
        else f"{first}={before.get(first)!r}, the config says {now.get(first)!r}"
    )
    raise PlanMismatch(f"{run_path} was planned with {differ}{others}; restore it or use a new run directory")
