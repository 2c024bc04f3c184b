"""What kind of model a config names, read from its `config.json` without loading any weight."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcmpq.errors import UserError
from hpcmpq.models.kinds import ENDS, Kind, kind_of, loads_as_saved
from hpcmpq.settings import ModelConfig

_SOUND = ("input_values", "input_features")
"""Names of waveforms and of spectra of sound among the arguments of transformers' models."""

_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")

_PADDING_TOKENS = {
    **dict.fromkeys(
        (
            *(
                "camembert",
                "data2vec-text",
                "esm",
                "ibert",
                "layoutlmv3",
                "longformer",
                "luke",
                "mpnet",
            ),
            *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
        ),
        1,
    ),
    "lilt": 0,
    "markuplm": 0,
}
"""`model_type` of models that count positions from their padding token on, and its default number: no token can have
the positions up to it, which `max_position_embeddings` counts."""

_DTYPES = ("float64", "float32", "float16", "bfloat16")

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


@dataclass(frozen=True)
class ModelDescription:
    """What the data of a model must look like.

    Attributes:
        kind: The task; ``factory`` for any module that a function returns.
        path: The Hugging Face directory, or None.
        vocab_size: Number of token ids, or None where inputs are not tokens.
        max_positions: Longest sequence, or None where unlimited or unknown.
        main_input: Name of the input that data without a name goes to.
        has_tokenizer: Whether the directory holds a tokenizer.
        dtype: Name of the dtype that the weights are stored in, such as ``bfloat16``, or None.
        classes: Names of a classifier's classes, by number; empty for other kinds.
        architecture: Name of the class that saved the weights; empty for a factory's model.
        pad_token_id: The token that the model takes for padding, or None.
    """

    kind: Kind
    path: Path | None = None
    vocab_size: int | None = None
    max_positions: int | None = None
    main_input: str = "input"
    has_tokenizer: bool = False
    dtype: str | None = None
    classes: tuple[str, ...] = ()
    architecture: str = ""
    pad_token_id: int | None = None

    @property
    def loads_as_saved(self) -> bool:
        """Whether to load by the class that saved the weights."""
        return loads_as_saved(self.kind, self.architecture)

    @property
    def takes_tokens(self) -> bool:
        """Whether the main input is token ids."""
        return self.main_input == "input_ids"

    @property
    def hears(self) -> bool:
        """Whether the main input is sound, of which there are fewer outputs than samples of the wave."""
        return self.main_input in _SOUND


def describe_model(config: ModelConfig) -> ModelDescription:
    """The description of a configured model.

    Raises:
        UserError: If the directory is missing, is not a Hugging Face one, or its architecture has no
            single tensor of outputs to compare.
    """
    if config.path is None:
        return ModelDescription("factory")
    path = Path(config.path)
    values = read_model_json(path)
    names = values.get("architectures")
    if not names or not isinstance(names, list):
        raise UserError(
            f"{path}/config.json names no architecture; add for example "
            '"architectures": ["LlamaForCausalLM"], the class that saved the weights'
        )
    kind = kind_of(str(names[0]), values)
    if kind is None:
        known = ", ".join("*" + end for end, _ in ENDS)
        raise UserError(
            f"architecture {names[0]} in {path}/config.json is none of {known}; load it with model.factory"
        )
    text = values.get("text_config") or values
    if not isinstance(text, dict):
        raise UserError(f"{path}/config.json has a text_config that is no object; copy the model again")
    main_input = _main_input(kind, str(names[0]), text)
    takes_tokens = main_input == "input_ids"
    if kind == "sequence_classifier" and main_input in _SOUND:
        kind = "audio_classifier"
    return ModelDescription(
        kind=kind,
        path=path,
        vocab_size=text.get("vocab_size") if takes_tokens else None,
        max_positions=_max_positions(text) if takes_tokens else None,
        main_input=main_input,
        has_tokenizer=any((path / name).is_file() for name in _TOKENIZER_FILES),
        dtype=_dtype(values),
        classes=_classes(values, path) if kind.endswith("classifier") else (),
        architecture=str(names[0]),
        pad_token_id=_pad_token(text) if takes_tokens else None,
    )


def _main_input(kind: Kind, architecture: str, text: dict[str, Any]) -> str:
    """As the class says that saved the weights; of one that transformers does not have, by what it does."""
    import transformers

    found = getattr(getattr(transformers, architecture, None), "main_input_name", None)
    if kind != "causal_lm" and isinstance(found, str):
        return found
    return "input_ids" if kind != "image_classifier" and "vocab_size" in text else "pixel_values"


def read_model_json(path: Path) -> dict[str, Any]:
    """The values in a Hugging Face directory's `config.json`.

    Raises:
        UserError: If there is no such directory or file, it is not a JSON object, or an adapter lies beside it.
    """
    if not path.is_dir():
        raise UserError(f"there is no model directory {path}; correct model.path")
    _refuse_adapter(path)
    try:
        values = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path} is not a Hugging Face model directory: it has no config.json; "
            "save one with model.save_pretrained, or use model.factory"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}/config.json: {error}; copy the model again") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}/config.json must hold a JSON object; copy the model again")
    return values


def _refuse_adapter(path: Path) -> None:
    """Refuse an adapter, alone or beside a base model, whose weights would be left out without a word."""
    there = next((path / name for name in _ADAPTER_FILES if (path / name).is_file()), None)
    if there is not None:
        raise UserError(
            f"{there} belongs to an adapter, whose weights are no part of the model that transformers loads; merge "
            f"it first: AutoPeftModelForCausalLM.from_pretrained({str(path)!r}).merge_and_unload()"
            ".save_pretrained('merged') (package peft) and set model.path to merged, or move the adapter's files "
            "away to quantize the base model alone"
        )


def _dtype(values: dict[str, Any]) -> str | None:
    """What weights are stored in, or None where the config, of all or of the text's part, names no dtype of torch."""
    for place in (values, values.get("text_config")):
        if isinstance(place, dict) and (found := _first(place, "dtype", "torch_dtype")) is not None:
            name = str(found).removeprefix("torch.")
            return name if name in _DTYPES else None
    return None


def _classes(values: dict[str, Any], path: Path) -> tuple[str, ...]:
    """Names in ``id2label``; without it transformers has ``num_labels``, or two, and calls them so."""
    names = values.get("id2label") or {str(n): f"LABEL_{n}" for n in range(values.get("num_labels") or 2)}
    try:
        return tuple(str(name) for _, name in sorted(names.items(), key=lambda entry: int(entry[0])))
    except (AttributeError, ValueError):
        raise UserError(
            f"{path}/config.json has an id2label that gives no names to class numbers; correct it"
        ) from None


def _max_positions(values: dict[str, Any]) -> int | None:
    """Positions that a token can have."""
    found = _first(values, "max_position_embeddings", "n_positions")
    unused = _PADDING_TOKENS.get(str(values.get("model_type")))
    if found is None or unused is None:
        return found  # type: ignore[no-any-return]
    padding = (
        None if values.get("model_type") == "mpnet" else values.get("pad_token_id")
    )  # whose number is fixed
    return int(found) - 1 - (unused if padding is None else padding)


def _pad_token(values: dict[str, Any]) -> int | None:
    """None also where the configured one is no token, such as -1."""
    pad, vocab_size = values.get("pad_token_id"), values.get("vocab_size")
    return pad if isinstance(pad, int) and isinstance(vocab_size, int) and 0 <= pad < vocab_size else None


def _first(values: dict[str, Any], *keys: str) -> Any:
    return next((values[key] for key in keys if values.get(key) is not None), None)
