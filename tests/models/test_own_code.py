"""A directory that brings its own code: nobody is asked, nothing of it runs, and a sentence says what to do."""

import ast
import builtins
import json
from pathlib import Path

import pytest

from hpcmpq.errors import UserError
from hpcmpq.models.data.tokenization import load_tokenizer
from hpcmpq.models.description import describe_model
from hpcmpq.models.load import load_model
from hpcmpq.models.streaming import load_streamed
from hpcmpq.settings import ModelConfig

MINE = {
    "model_type": "mine",
    "architectures": ["MineForCausalLM"],
    "vocab_size": 512,
    "auto_map": {"AutoConfig": "mine.MineConfig", "AutoModelForCausalLM": "mine.MineForCausalLM"},
}
TOKENIZER = {"tokenizer_class": "MineTokenizer", "auto_map": {"AutoTokenizer": ["mine.MineTokenizer", None]}}


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def asked(*args: object) -> str:
        raise AssertionError("a question was asked")

    monkeypatch.setattr(builtins, "input", asked)
    path = tmp_path / "mine"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(MINE))
    (path / "tokenizer_config.json").write_text(json.dumps(TOKENIZER))
    (path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    return path


def test_its_model_is_to_be_loaded_with_a_factory(directory: Path):
    for load in (load_model, load_streamed):
        with pytest.raises(
            UserError, match="brings its own code, which is not run; .* model.factory"
        ) as told:
            load(ModelConfig(path=str(directory), device="cpu"))
        assert "\n" not in str(told.value)
    assert not (directory.parent / "ran").exists()


def test_its_tokenizer_too(directory: Path):
    description = describe_model(ModelConfig(path=str(directory)))
    with pytest.raises(UserError, match=r"own code, which is not run; .* model.factory.* data as token ids"):
        load_tokenizer(description, "calibration.data")
    assert not (directory.parent / "ran").exists()


@pytest.mark.slow
def test_no_load_leaves_the_question_to_transformers():
    """Where an argument is missing, transformers asks at the terminal."""
    asking = []
    for file in (Path(__file__).resolve().parents[2] / "hpcmpq").rglob("*.py"):
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "from_pretrained":
                given = {keyword.arg: keyword.value for keyword in call.keywords}
                trusted = given.get("trust_remote_code")
                if not (isinstance(trusted, ast.Constant) and trusted.value is False):
                    asking.append(f"{file.name}:{call.lineno}")
    assert not asking
