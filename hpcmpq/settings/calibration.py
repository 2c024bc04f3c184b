"""Which samples sensitivities are measured and codes fitted on."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CalibrationConfig:
    """The samples that sensitivities are measured on.

    Attributes:
        data: A text file, JSONL, ``.npy`` array, ``.npz`` arrays or factory.
        num_samples: Samples to calibrate on.
        sequence_length: Tokens per sample of a language model, special ones included.
        seed: Chooses the samples.
        held_out: Samples of the same data that calibration never sees, for measured losses.
        samples_per_unit: Samples of one work unit, or None to choose.
        workers: Workers that units are cut for where the config does not say how large, or None for 64 and all groups.
        samples_per_pass: Samples of one forward pass.
        special_tokens: Begin and end every sample of text, of evaluation too, as the model's tokenizer begins and
            ends a text (BOS; CLS and SEP). None is for plans made before this key was there: windows of a language
            model have none, samples of other models have them.
        rounding_samples: Further samples of the data that ``quantizer.rounding`` ``gptq`` is fitted on, or None for
            four times `num_samples`, as far as the data go. Losses on samples that codes were fitted on are too low.
        balance_experts: Of a mixture of experts, choose these further samples among up to four times as many, so that
            the experts with the fewest tokens get more. Sensitivities gain nothing by it, so `num_samples`
            are as they are.
    """

    data: str
    num_samples: int = 128
    sequence_length: int = 512
    seed: int = 0
    held_out: int = 32
    samples_per_unit: int | None = None
    workers: int | None = None
    samples_per_pass: int = 4
    special_tokens: bool | None = True
    rounding_samples: int | None = None
    balance_experts: bool = False
