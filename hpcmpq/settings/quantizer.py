"""How weights and inputs are rounded."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Quantizer:
    """How a weight matrix [M outputs, K inputs] and a layer's inputs are rounded; the same for every group of a run.

    Attributes:
        group_size: Consecutive inputs that share a scale, or None for one scale per output channel.
            Float formats always use one scale per output channel.
        symmetric: Codes centred on zero without a zero point; otherwise one integer zero point per scale.
        range: ``absmax`` keeps the largest weight, ``mse`` searches the clipping of least squared error.
        activations: ``dynamic`` scales every token's inputs by their own largest; ``static`` scales all inputs of
            a layer by the largest that the calibration samples gave it.
        rounding: ``nearest``, or ``gptq``: codes of integer formats and ggml's types that make up for one another's
            errors on the calibration samples, see `hpcmpq.quantizers.gptq`. They are made once, before anything is
            measured.
        damping: Of ``gptq``: share of the mean of Σ x xᵀ's diagonal that is added to it.
        act_order: Of ``gptq``: round inputs of large Σ x² first.
        scales: What scales are rounded to before anything is measured with them: ``bfloat16``, or numbers that
            ``float16`` holds too. A target whose files have float16 scales (GGUF) chooses the latter, any target where
            the model is stored in float16.
        checkpoints: {integer format: directory of a checkpoint that another tool quantized}, whose codes are
            taken as they are.
    """

    group_size: int | None = 64
    symmetric: bool = True
    range: Literal["absmax", "mse"] = "mse"
    activations: Literal["dynamic", "static"] = "dynamic"
    rounding: Literal["nearest", "gptq"] = "nearest"
    damping: float = 0.01
    act_order: bool = False
    scales: Literal["bfloat16", "float16"] = "bfloat16"
    checkpoints: Mapping[str, str] = field(default_factory=dict)

    @property
    def stores_codes(self) -> bool:
        """Whether some codes are made before anything is measured, and stored."""
        return self.rounding == "gptq" or bool(self.checkpoints)


@dataclass(frozen=True)
class ReroundConfig:
    """How the solution's weights are rounded again, with the inputs that its rounded blocks really give.

    Attributes:
        method: A name in `hpcmpq.rounding.METHODS`, for `hpcmpq run` and `hpcmpq submit` to do it; None leaves
            it to `hpcmpq reround`.
        strength: How far weights go towards the original's outputs, from 0 to 1, or None for the method's own.
    """

    method: Literal["gptq", "gptaq", "qep"] | None = None
    strength: float | None = None
