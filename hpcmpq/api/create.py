"""A config from a model, data and the few settings that a caller has an opinion on, and its plan."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpcmpq.api.given import data_setting, model_settings
from hpcmpq.api.stages import plan
from hpcmpq.config import parse_config, resolve_paths, text_of, values_of
from hpcmpq.errors import PlanMismatch, UserError
from hpcmpq.models.dequantized import unpacked
from hpcmpq.models.description import ModelDescription, describe_model
from hpcmpq.planning.starter import make_starter
from hpcmpq.planning.starter_text import FIRST_BUDGETS, SHARES
from hpcmpq.settings import ModelConfig
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.whole_files import make_directory, replacing

STAND_IN = ("hpcmpq.examples.topics:calibration_text", "hpcmpq.examples.topics:evaluation_text")
"""English text that comes with Python, for whoever gives no data."""


def create(
    run: RunDir,
    model: Any,
    data: Any,
    tokenizer: Any,
    evaluation_data: Any,
    formats: Sequence[str] | None,
    budgets: Mapping[str, float] | None,
    num_samples: int | None,
    sequence_length: int | None,
    settings: Mapping[str, Any] | None,
) -> None:
    """See `hpcmpq.Run.create`: look at model and data as `hpcmpq init` does, plan, and keep the config."""
    make_directory(run.path)
    source = model_settings(run, model, tokenizer)
    given_settings = dict(settings or {})
    config = ModelConfig(**{**source, **given_settings.get("model", {})})
    described = _description(config)
    if data is None:
        if not described.takes_tokens:
            raise UserError(
                "data is missing, and only models of text have a stand-in for it; give samples as data"
            )
        data, evaluation_data = STAND_IN[0], evaluation_data or STAND_IN[1]
    most = 2 * (sum(count for count, _ in SHARES.values()) + (num_samples or 0))
    given = data_setting(run, "calibration", data, described, most)
    asked: dict[str, Any] = {} if formats is None else {"formats": list(formats)}
    if num_samples is not None:
        asked["calibration"] = {"num_samples": num_samples}
    if evaluation_data is not None:
        asked["evaluation"] = {"data": data_setting(run, "evaluation", evaluation_data, described, most)}
    changes = merged(given_settings, asked)
    _check_tokenizer(described, given)
    made = make_starter(
        config,
        run.config_path,
        given,
        place="data",
        sequence_length=sequence_length or changes.get("calibration", {}).get("sequence_length"),
        budgets=FIRST_BUDGETS if budgets is None else dict(budgets),
    )
    values = merged(values_of(made.text, "the config"), changes)
    parsed = resolve_paths(parse_config(values, "settings"), run.path.resolve())
    plan(parsed, run, (os.getcwd(),))
    with replacing(run.config_path) as attempt:
        attempt.write_text(
            text_of(values) if changes else made.text, encoding="utf-8", errors="surrogateescape"
        )


def write_first_config(run: RunDir, model: Path, data: str, budgets: Mapping[str, float]) -> str:
    """Write RUN/config.yaml for a model and data as `hpcmpq init` would; returns its text.

    Args:
        run: The run directory.
        model: A Hugging Face directory or a GGUF file.
        data: As in ``calibration.data``.
        budgets: {cost: upper limit}; empty is 4 bits per weight.

    Raises:
        PlanMismatch: If the run was planned and its config is another one.
        UserError: As `make_starter`.
    """
    text = make_starter(
        ModelConfig(path=str(model)), run.config_path, data, budgets=budgets or FIRST_BUDGETS
    ).text
    before = run.config_path.read_text(encoding="utf-8") if run.config_path.exists() else text
    if before != text and run.plan_path.exists():
        raise PlanMismatch(
            f"{run.config_path} is not what these arguments give; go on with `hpcmpq run {run.config_path} --run-dir "
            f"{run.path}`, solve for other budgets with `hpcmpq solve {run.path}`, or use a new run directory"
        )
    with replacing(run.config_path) as attempt:
        attempt.write_text(text, encoding="utf-8", errors="surrogateescape")
    return text


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Values with those of `changes` in their place, mappings key by key.

    Example:
        >>> merged({"quantizer": {"group_size": 64, "range": "mse"}}, {"quantizer": {"group_size": 32}})
        {'quantizer': {'group_size': 32, 'range': 'mse'}}
    """
    found = dict(values)
    for key, value in changes.items():
        before = found.get(key)
        both = isinstance(before, Mapping) and isinstance(value, Mapping)
        found[key] = merged(before, value) if both else value  # type: ignore[arg-type]
    return found


def _description(config: ModelConfig) -> ModelDescription:
    with tempfile.TemporaryDirectory() as scratch:
        return describe_model(unpacked(config, Path(scratch) / "model", weights=False))


def _check_tokenizer(described: ModelDescription, data: str) -> None:
    texts = data.endswith((".jsonl", ".ndjson", ".txt")) or data in STAND_IN
    if texts and described.takes_tokens and not described.has_tokenizer and described.vocab_size != 256:
        raise UserError(
            "the data are texts and the model has no tokenizer; give it as tokenizer, or give token ids"
        )
