"""The commented YAML text of a first config, from what was found out about a model and its data."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hpcmpq.models.data.tokenization import BYTE_VOCAB
from hpcmpq.models.description import ModelDescription
from hpcmpq.space import Group
from hpcmpq.targets import TARGETS

SHARES = {"num_samples": (128, 0.5), "held_out": (32, 0.2), "evaluation": (64, 0.2)}
"""For each use of the data: samples wanted, and the share of few data that it gets."""

GROUP_SIZES = (64, 32, 16)
"""Weights that share a scale: the first that divides every searched layer's inputs, or a scale per channel."""

FIRST_BUDGETS = {"weight_bits": 4.0}
"""The budgets of a config that was asked for without."""

_LISTED = 40

_KINDS = {
    "causal_lm": "A causal language model",
    "masked_lm": "A masked language model",
    "sequence_classifier": "A sequence classifier",
    "token_classifier": "A token classifier",
    "image_classifier": "An image classifier",
    "audio_classifier": "A classifier of sound",
    "ctc": "A recogniser of speech",
    "encoder": "An encoder",
    "factory": "A module",
}


@dataclass(frozen=True)
class Counts:
    """How the data are used, in samples, and tokens per sample."""

    sequence_length: int
    num_samples: int = SHARES["num_samples"][0]
    held_out: int = SHARES["held_out"][0]
    evaluation: int = SHARES["evaluation"][0]


def starter_text(
    description: ModelDescription,
    groups: Sequence[Group],
    ties: Sequence[Sequence[str]],
    counts: Counts,
    model: Mapping[str, str],
    data: str | None,
    model_type: str | None = None,
    budgets: Mapping[str, float] = FIRST_BUDGETS,
) -> str:
    """The YAML text; `model` is its path or its factory."""
    numel = sum(group.numel for group in groups)
    columns = {member.num_columns for group in groups for member in group.members}
    group_size = next((size for size in GROUP_SIZES if not any(K % size for K in columns)), None)
    one_number = description.kind == "encoder" or len(description.classes) == 1
    objective = "mse" if one_number else "kl"
    placeholder = "corpus.txt" if description.takes_tokens else "inputs.npy"
    outputs = "" if description.vocab_size is None else f", vocabulary of {description.vocab_size:,}"
    model_lines = [f"  factory: {quoted(model[key])}" for key in model if key == "factory"]
    model_lines += [
        f"  path: {quoted(model[key])}   # relative to this file" for key in model if key == "path"
    ]
    tie_lines = [f"    - [{', '.join(rule)}]" for rule in ties]
    lines = [
        f"# {_KINDS[description.kind]} whose weights are stored as {description.dtype or 'float32'}{outputs}.",
        f"# {len(groups)} groups with {numel:,} weights are searched:",
        *(f"#   {line}" for line in _summary(groups)),
        "# Embeddings and the output head stay as they are unless groups.include names them.",
        "model:",
        *model_lines,
        "  dtype: float32                # precision to measure in; docs/methods.md says what bfloat16 does",
        *(["  # stream: true                # the device never holds the whole model"] if "path" in model else []),
        "calibration:",
        *([] if data else [f"  # CHANGE THIS: {_kinds_of_data(description)}, or package.module:function."]),
        *([_bytes_note(description)] if description.takes_tokens and not description.has_tokenizer else []),
        f"  data: {quoted(data or placeholder)}",
        f"  num_samples: {counts.num_samples}",
        *([f"  sequence_length: {counts.sequence_length}"] if description.takes_tokens else []),
        *(["  # special_tokens: false       # leave out what the tokenizer puts around a text, such as <bos>"]
          if description.takes_tokens and description.has_tokenizer else []),
        f"  held_out: {counts.held_out}                  # samples that calibration never sees",
        "groups:" if ties else "# groups:",
        *(["  tie:                          # engines run these as one matrix: one format for each"] if ties else []),
        *tie_lines,
        ("  # " if ties else "#   ")
        + f"exclude: {_example_exclusion(groups)}   # wildcards on module names to leave alone",
        "formats: [int2, int3, int4, int5, int6, int7, int8]   # also w4a8, w8a8, fp8_e4m3, bf16",
        "quantizer:",
        "  # Weights that share a scale; null: one scale per output channel.",
        f"  group_size: {'null' if group_size is None else group_size}",
        "  symmetric: true",
        "  range: mse",
        f"objective: {objective}                   # kl, ce or mse",
        "sensitivity:",
        "  method: secant                # docs/methods.md compares them",
        f"  # Random projections of the {_width(description)}outputs; null: none up to 1,024 outputs, 4 above.",
        "  # probes: null",
        f"budgets: {{{', '.join(f'{name}: {limit!r}' for name, limit in budgets.items())}}}     "
        "# also average_bits, size_bytes, bops, macs, latency_s",
        f"evaluation: {{num_samples: {counts.evaluation}}}",
        *(_targets(groups, model_type) if "path" in model else []),
    ]  # fmt: skip
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _example_exclusion(groups: Sequence[Group]) -> str:
    """The last layer of a block, as a wildcard."""
    name = groups[-1].members[-1].parameter.removesuffix(".weight")
    return f"[{quoted('*.' + name.rpartition('.')[2])}]"


def _targets(groups: Sequence[Group], model_type: str | None) -> list[str]:
    """Lines on the engines that could take the model."""
    if any(member.transposed for group in groups for member in group.members):
        return [
            "# No target: the engines' files hold nn.Linear layers, and this model has transposed ones (Conv1D)."
        ]
    return [
        "# The engine that is to run the result; narrows formats to what it holds and ties what it fuses:",
        *(
            f"# target: {_target_line(name)}"
            for name, target in TARGETS.items()
            if not target.model_types or model_type in target.model_types
        ),
    ]


def _target_line(name: str) -> str:
    target = TARGETS[name]
    sizes = ", ".join("null" if size is None else str(size) for size in target.group_sizes) or "any"
    return f"{name:<16} # {', '.join(target.formats)}; quantizer.group_size {sizes}"


def _width(description: ModelDescription) -> str:
    """The number of outputs of a position where it is known: words of a language model."""
    if description.vocab_size is None or not description.kind.endswith("lm"):
        return ""
    return f"{description.vocab_size:,} "


def _kinds_of_data(description: ModelDescription) -> str:
    if not description.takes_tokens:
        return f"a .npy array of inputs, or .npz with `{description.main_input}` and `labels`"
    label = ", and `label` for objective ce" if description.kind == "sequence_classifier" else ""
    return f"text, JSONL with a field `text`{label}, .npy of token ids"


def _bytes_note(description: ModelDescription) -> str:
    if description.vocab_size == BYTE_VOCAB:
        return "  # The directory has no tokenizer: the bytes of a text are the tokens."
    return "  # The directory has no tokenizer: give a .npy array of token ids, or save the tokenizer there."


def _summary(groups: Sequence[Group]) -> list[str]:
    """A line for each name up to its numbers."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", group.name), []).append(group)
    lines = [
        f"{len(same):4} x {name}, {same[0].numel:,} weights" + ("" if _alike(same) else " in the first")
        for name, same in found.items()
    ]
    rest = [f"and {len(lines) - _LISTED} more kinds"] if len(lines) > _LISTED else []
    return lines[:_LISTED] + rest


def _alike(groups: Sequence[Group]) -> bool:
    return len({group.numel for group in groups}) == 1


def quoted(text: str) -> str:
    r"""A text as YAML reads it back, whatever it holds: a byte of a path that is no UTF-8 stays escaped.

    Example:
        >>> print(quoted('a "model" of \U00020bb7\udcff'))
        "a \"model\" of \U00020bb7\udcff"
    """
    return f'"{"".join(map(_character, text))}"'


def _character(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    if character.isascii() and character.isprintable():
        return character
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
