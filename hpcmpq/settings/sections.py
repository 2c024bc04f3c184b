"""The sections of a configuration as frozen dataclasses: every key, its default, its meaning."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from hpcmpq.settings.calibration import CalibrationConfig
from hpcmpq.settings.quantizer import Quantizer, ReroundConfig


@dataclass(frozen=True)
class ModelConfig:
    """Where the trained model comes from: exactly one of `path` and `factory`.

    Attributes:
        path: A Hugging Face directory or a GGUF file.
        factory: ``package.module:function`` that returns an `nn.Module`.
        dtype: Precision that calibration and evaluation run in. With ``bfloat16`` forward-only sensitivities and the
            neighbours of refinement run matrix products in bfloat16 and all else in float32; other sensitivities run
            in float32.
        device: ``auto`` takes CUDA where there is one.
        stream: Read one block at a time from the directory's safetensors while measuring, so that the device
            never holds the model. Forward-only sensitivities of chains of blocks can.
    """

    path: str | None = None
    factory: str | None = None
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    device: str = "auto"
    stream: bool = False


@dataclass(frozen=True)
class GroupsConfig:
    """Which weights are searched. Patterns are shell wildcards on module names, such as ``*.mlp.*``.

    Attributes:
        include: Modules to search; empty means every linear and convolution but embeddings and output head.
        exclude: Modules to leave alone.
        tie: Rules that fuse modules of the same parent into one group, each a list of wildcards on the
            last part of the name, such as ``[q_proj, k_proj, v_proj]``.
        attention_products: Search the formats of the products inside attention too, queries · keys and attention
            weights · values, as groups of their own.
        kv_cache: Formats, of `hpcmpq.targets.kv_cache.CACHE_DTYPES`, in which the keys and values of every attention
            module may be kept, as groups of their own; empty leaves them as the model computes them.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    tie: tuple[tuple[str, ...], ...] = ()
    attention_products: bool = False
    kv_cache: tuple[str, ...] = ()


@dataclass(frozen=True)
class SolverConfig:
    """How the assignment is searched and what it must respect.

    Attributes:
        name: A name in `hpcmpq.solvers.SOLVERS`.
        time_limit_s: Wall seconds of one solve; the many small ones of `refine` take less.
        seed: Of the search.
        shrink: How cross terms are shrunk towards zero: ``auto`` by their reliability, a number by as many standard
            errors, 0 not at all.
        robust_k: Minimise mean + k·std over calibration batches instead of the mean, in solutions and frontiers.
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
    shrink: float | str = "auto"
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
        max_evaluations: Neighbours of assignments, and answers, that may be measured, or None for four per group.
        link_points: Assignments measured for the link from predicted to measured loss, at least 3.
    """

    max_evaluations: int | None = None
    link_points: int = 16


@dataclass(frozen=True)
class TaskConfig:
    """A task that the models are asked to do, see `hpcmpq.evaluate.tasks.files`.

    Attributes:
        name: Unique; letters, digits, ``-`` and ``_``.
        path: A JSONL file; of a ``harness`` task the directory of lm-evaluation-harness's YAML file for it.
        type: ``multiple_choice``, ``next_word``, ``classification`` or ``harness``.
        labels: Of a classification, what a language model chooses among; their order numbers them.
        prompt: Template over a record's fields, or None for the question or text alone.
    """

    name: str
    path: str
    type: Literal["multiple_choice", "next_word", "classification", "harness"]
    labels: tuple[str, ...] = ()
    prompt: str | None = None


@dataclass(frozen=True)
class EvaluationConfig:
    """Where quality is measured; by default samples of the calibration data used for nothing else.

    Attributes:
        data: As in calibration, or None.
        engine: ``torch`` or ``deepspeed``.
        num_samples: Samples to evaluate on.
        tasks: What else to measure.
        sharding: Of engine deepspeed: ``zero3`` cuts every weight and shares out the samples, for any model;
            ``tensor`` cuts the layers' matrices, for models that `deepspeed.init_inference` knows.
    """

    data: str | None = None
    engine: Literal["torch", "deepspeed"] = "torch"
    num_samples: int = 64
    tasks: tuple[TaskConfig, ...] = ()
    sharding: Literal["zero3", "tensor"] = "zero3"


@dataclass(frozen=True)
class TimingConfig:
    """How `hpcmpq time` measures.

    Attributes:
        samples: Calibration samples of one pass, or None for calibration.samples_per_pass.
        rounds: Times that every combination is measured.
        max_combinations: Combinations of a sub-graph's formats that are measured; of more, groups share a format.
        generated_tokens: Tokens that a request generates; `latency_s` is the prompt and this many decodings.
        threads: Of the kernels, or None for torch's choice.
    """

    samples: int | None = None
    rounds: int = 15
    max_combinations: int = 256
    generated_tokens: int = 0
    threads: int | None = None


@dataclass(frozen=True)
class SensitivityConfig:
    """How sensitivities are measured.

    Attributes:
        method: A name in `hpcmpq.sensitivity.METHODS`.
        groups_per_unit: Groups of one work unit, or None for all; fewer where ``calibration.workers`` need more units.
        probes: Random output projections per token, or None: exact outputs up to 1,024, 4 above.
        engine: ``auto`` runs options as a wavefront where the model is a chain of blocks, ``whole`` always runs
            one whole forward pass per option.
        options_per_pass: Options that a block runs together, or None to choose.
        options_per_wave: Options whose hidden states are in memory at once, or None to choose.
        products: ``bfloat16`` multiplies what options change in the outputs of linear layers and convolutions in
            bfloat16, for machines that do so faster; the original itself stays as it is. None: in the model's dtype.
        loss_positions: Positions of a sample on which the loss of an option of ``secant`` is computed from all logits;
            the others' is estimated before the head, and no logits are made. ``all`` makes all logits. None: all up
            to 4,096 outputs, a sixteenth and at least 8 above.
        screen: Measure only options of ``secant`` that may be chosen within `budgets`, by the costs of a first pass
            (see `hpcmpq.screening`). The others are no options of the run any more.
    """

    method: str = "secant"
    groups_per_unit: int | None = None
    probes: int | None = None
    engine: Literal["auto", "whole"] = "auto"
    options_per_pass: int | None = None
    options_per_wave: int | None = None
    products: Literal["bfloat16"] | None = None
    loss_positions: int | Literal["all"] | None = None
    screen: bool = False


@dataclass(frozen=True)
class Config:
    """One run, as read from its YAML file.

    `target` names the engine in `hpcmpq.targets.TARGETS` that is to run the result: formats that it cannot hold
    are left out, layers that it fuses share a format, and ``size_bytes`` counts the bytes of its weight file. `gpu`
    names the GPU in `hpcmpq.targets.gpus.GPUS` that target ``vllm`` is to run on: formats that its kernels do not
    compute as they are measured are left out, and where a config names no formats, the GPU's menu is searched.
    """

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
    reround: ReroundConfig = ReroundConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    timing: TimingConfig = TimingConfig()
    target: str | None = None
    gpu: str | None = None

    @property
    def rounds_again(self) -> bool:
        """Whether a whole run rounds the solution's weights again."""
        return self.reround.method is not None and self.calibration.held_out > 0

    @property
    def low_precision(self) -> bool:
        """Whether methods that run options through an engine multiply what options change in bfloat16."""
        return "bfloat16" in (self.model.dtype, self.sensitivity.products)


def is_factory(text: str) -> bool:
    """Whether a data source names a function, ``package.module:function``, rather than a file."""
    module, colon, function = text.partition(":")
    return bool(colon) and all(part.isidentifier() for part in module.split(".")) and function.isidentifier()
