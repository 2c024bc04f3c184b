"""The configuration file: YAML to frozen dataclasses; an unknown key is an error that names a valid one.

The dataclasses are plain; pydantic validates them on reading only, so that the solve path, which reads the
resolved values back from `plan.json`, needs neither pydantic nor YAML.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hpcmpq.errors import UserError
from hpcmpq.formats import FORMATS, Quantizer


@dataclass(frozen=True)
class ModelConfig:
    """Where the trained model comes from: exactly one of `path` and `factory`.

    Attributes:
        path: A Hugging Face directory.
        factory: ``package.module:function`` that returns an `nn.Module`.
        dtype: Precision that calibration and evaluation run in. With ``bfloat16`` forward-only sensitivities
            run matrix products in bfloat16 and all else in float32.
        device: ``auto`` takes CUDA where there is one.
        stream: Read one block at a time from the directory's safetensors while calibrating, so that the device
            never holds the model. Forward-only sensitivities of chains of blocks can.
    """

    path: str | None = None
    factory: str | None = None
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    device: str = "auto"
    stream: bool = False


@dataclass(frozen=True)
class CalibrationConfig:
    """The samples that sensitivities are measured on.

    Attributes:
        data: A text file, JSONL, ``.npy`` array or factory.
        num_samples: Samples to calibrate on.
        sequence_length: Tokens per sample of a language model.
        seed: Chooses the samples.
        held_out: Samples of the same data that calibration never sees, for measured losses.
        samples_per_unit: Samples of one work unit, or None to choose.
        samples_per_pass: Samples of one forward pass.
    """

    data: str
    num_samples: int = 128
    sequence_length: int = 512
    seed: int = 0
    held_out: int = 32
    samples_per_unit: int | None = None
    samples_per_pass: int = 4


@dataclass(frozen=True)
class GroupsConfig:
    """Which weights are searched. Patterns are shell wildcards on module names, such as ``*.mlp.*``.

    Attributes:
        include: Modules to search; empty means every linear and convolution but embeddings and output head.
        exclude: Modules to leave alone.
        tie: Rules that fuse modules of the same parent into one group, each a list of wildcards on the
            last part of the name, such as ``[q_proj, k_proj, v_proj]``.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    tie: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class SolverConfig:
    """How the assignment is searched and what it must respect.

    Attributes:
        name: A name in `hpcmpq.solvers.SOLVERS`.
        time_limit_s: Wall seconds of one solve.
        seed: Of the search.
        shrink: Off-diagonals are shrunk towards zero by `shrink` standard errors; 0 leaves them alone.
        robust_k: Minimise mean + k·std over calibration batches instead of the mean.
        drop_cross_terms: Ignore interactions between groups.
        fixed: {group wildcard: format} that must be chosen.
        forbidden: {group wildcard: [formats]} that may not be chosen.
        min_bits: {group wildcard: number of bits}, the fewest allowed.
        max_bits: {group wildcard: number of bits}, the most allowed.
        tie: Sets of group wildcards that must choose the same format.
    """

    name: str = "quadratic"
    time_limit_s: float = 60.0
    seed: int = 0
    shrink: float = 0.0
    robust_k: float = 0.0
    drop_cross_terms: bool = False
    fixed: Mapping[str, str] = field(default_factory=dict)
    forbidden: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    min_bits: Mapping[str, float] = field(default_factory=dict)
    max_bits: Mapping[str, float] = field(default_factory=dict)
    tie: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class RefineConfig:
    """How the solution is refined by measured losses.

    Attributes:
        max_evaluations: Assignments that may be measured, or None for four per group.
        link_points: Assignments measured for the link from predicted to measured loss, at least 3.
    """

    max_evaluations: int | None = None
    link_points: int = 16


@dataclass(frozen=True)
class EvaluationConfig:
    """Where quality is measured; by default samples of the calibration data used for nothing else.

    Attributes:
        data: As in calibration, or None.
        engine: ``torch`` or ``deepspeed``.
        num_samples: Samples to evaluate on.
    """

    data: str | None = None
    engine: Literal["torch", "deepspeed"] = "torch"
    num_samples: int = 64


@dataclass(frozen=True)
class SensitivityConfig:
    """How sensitivities are measured.

    Attributes:
        method: A name in `hpcmpq.sensitivity.METHODS`.
        groups_per_unit: Groups of one work unit for methods that split groups, or None for all.
        probes: Random output projections per token, or None: exact outputs up to 1,024, 4 above.
        engine: ``auto`` runs options as a wavefront where the model is a chain of blocks, ``whole`` always runs
            one whole forward pass per option.
        options_per_pass: Options that a block runs together, or None to choose.
        options_per_wave: Options whose hidden states are in memory at once, or None to choose.
    """

    method: str = "secant"
    groups_per_unit: int | None = None
    probes: int | None = None
    engine: Literal["auto", "whole"] = "auto"
    options_per_pass: int | None = None
    options_per_wave: int | None = None


@dataclass(frozen=True)
class Config:
    """One run, as read from its YAML file."""

    model: ModelConfig
    calibration: CalibrationConfig
    groups: GroupsConfig = GroupsConfig()
    formats: tuple[str, ...] = ("int2", "int3", "int4", "int5", "int6", "int7", "int8")
    quantizer: Quantizer = Quantizer()
    objective: Literal["kl", "ce", "mse"] = "kl"
    sensitivity: SensitivityConfig = SensitivityConfig()
    budgets: Mapping[str, float] = field(default_factory=dict)
    solver: SolverConfig = field(default_factory=SolverConfig)
    refine: RefineConfig = RefineConfig()
    evaluation: EvaluationConfig = EvaluationConfig()


def read_config(path: Path) -> Config:
    """The validated configuration in a YAML file; relative paths in it are relative to the file.

    Raises:
        UserError: If the file cannot be read, or a key or value is wrong.
    """
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise UserError(f"cannot read the config {path}: {error.strerror}; check the path") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} must be a YAML mapping with the keys model, calibration, ...")
    return resolve_paths(parse_config(values, str(path)), Path(path).resolve().parent)


def parse_config(values: dict[str, Any], source: str = "config") -> Config:
    """A `Config` from plain values.

    Raises:
        UserError: With the place of the first wrong key or value in `source`.
    """
    from pydantic import TypeAdapter, ValidationError

    values = dict(values)
    if isinstance(values.get("sensitivity"), str):
        values["sensitivity"] = {"method": values["sensitivity"]}
    _check_keys(values, Config, source, "")
    try:
        config = TypeAdapter(Config).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{source}: {place}: {first['msg']}, got {_short(first.get('input'))}") from None
    _check_values(config, source)
    return config


def to_values(config: Config) -> dict[str, Any]:
    """The configuration as plain JSON values, with every default filled in."""
    return dataclasses.asdict(config)


def resolve_paths(config: Config, directory: Path) -> Config:
    """The same configuration with the paths of model and data made absolute, relative to `directory`."""

    def absolute(text: str | None) -> str | None:
        return text if text is None or is_factory(text) else str((directory / text).expanduser().resolve())

    replace = dataclasses.replace
    return replace(
        config,
        model=replace(config.model, path=absolute(config.model.path)),
        calibration=replace(config.calibration, data=absolute(config.calibration.data) or ""),
        evaluation=replace(config.evaluation, data=absolute(config.evaluation.data)),
    )


def is_factory(text: str) -> bool:
    """Whether a data source names a function, ``package.module:function``, rather than a file."""
    module, colon, function = text.partition(":")
    return bool(colon) and all(part.isidentifier() for part in module.split(".")) and function.isidentifier()


def _check_keys(values: Mapping[str, Any], kind: type, source: str, place: str) -> None:
    known = {f.name: f for f in dataclasses.fields(kind)}
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)
            raise UserError(
                f"{source}: unknown key '{place}{key}'; did you mean '{place}{near[0]}'? "
                f"valid keys: {', '.join(known)}"
            )
        if dataclasses.is_dataclass(known[key].type) and isinstance(value, Mapping):
            _check_keys(value, known[key].type, source, f"{place}{key}.")  # type: ignore[arg-type]


def _check_values(config: Config, source: str) -> None:
    if (config.model.path is None) == (config.model.factory is None):
        raise UserError(f"{source}: model needs exactly one of path and factory")
    if not config.formats:
        raise UserError(f"{source}: formats is empty; known: {', '.join(FORMATS)}")
    for name in config.formats:
        check_format(name, f"{source}: formats")
    if len(set(config.formats)) != len(config.formats):
        raise UserError(f"{source}: formats names a format twice: {', '.join(config.formats)}")
    for name, value in {
        "calibration.num_samples": config.calibration.num_samples,
        "calibration.sequence_length": config.calibration.sequence_length,
        "calibration.samples_per_pass": config.calibration.samples_per_pass,
        "calibration.samples_per_unit": config.calibration.samples_per_unit,
        "sensitivity.probes": config.sensitivity.probes,
        "sensitivity.groups_per_unit": config.sensitivity.groups_per_unit,
        "sensitivity.options_per_pass": config.sensitivity.options_per_pass,
        "sensitivity.options_per_wave": config.sensitivity.options_per_wave,
        "quantizer.group_size": config.quantizer.group_size,
        "evaluation.num_samples": config.evaluation.num_samples,
        "refine.max_evaluations": config.refine.max_evaluations,
        "refine.link_points - 2": config.refine.link_points - 2,
        "solver.time_limit_s": config.solver.time_limit_s,
    }.items():
        if value is not None and not value > 0:
            raise UserError(f"{source}: {name} must be positive, got {value}")
    if config.calibration.held_out < 0:
        raise UserError(
            f"{source}: calibration.held_out must not be negative, got {config.calibration.held_out}"
        )


def check_format(name: str, place: str) -> None:
    """Raise `UserError` with the known formats if `name` is not one."""
    if name not in FORMATS:
        raise UserError(f"unknown format {name!r} in {place}; known: {', '.join(FORMATS)}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."
