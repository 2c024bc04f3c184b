"""Tasks from files to numbers, against answers worked out without batches or padding."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hpcmpq.api.stages import plan
from hpcmpq.config import parse_config, resolve_paths
from hpcmpq.errors import UserError
from hpcmpq.evaluate import evaluate
from hpcmpq.evaluate.tasks import check_tasks
from hpcmpq.evaluate.tasks.continuations import Encoder, batch, make_encoder, score
from hpcmpq.evaluate.tasks.files import read_questions
from hpcmpq.models.description import describe_model
from hpcmpq.models.load import load_model
from hpcmpq.settings import Config, ModelConfig, TaskConfig
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir
from tests.evaluate.solved_runs import TEXT, solved_run
from tests.models.byte_tokenizer import BOS, save_byte_tokenizer

ARITHMETIC = [
    {"question": f"{a} plus {b} is", "choices": [str(a + b), str(a * b + 17), "many"], "answer": (a + b) % 3}
    for a in range(3)
    for b in range(3)
]
WORDS = [{"text": f"the {color} cat sat on the {color} mat"} for color in ("red", "blue", "black", "white")]
OPINIONS = [
    {"text": "I loved it", "label": "good"}, {"text": "so dull", "label": "bad"}, {"text": "a joy", "label": 1}
]  # fmt: skip


def write_lines(path: Path, records: list[dict]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def task_run(path: Path, directory: Path, tasks: list[dict]) -> RunDir:
    config = {
        "model": {"path": str(directory)},
        "formats": ["int2", "int4"],
        "evaluation": {"num_samples": 4, "tasks": tasks},
    }
    return solved_run(path, config, TEXT)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("tasks")
    return {
        "sums": write_lines(folder / "sums.jsonl", ARITHMETIC),
        "words": write_lines(folder / "words.jsonl", WORDS),
        "opinions": write_lines(folder / "opinions.jsonl", OPINIONS),
    }


def test_questions_end_with_a_line_break_alone(tmp_path: Path):
    path = tmp_path / "words.jsonl"
    path.write_bytes('\ufeff{"text": "the\u2028cat\x85sat down"}\r\n\n{"text": "a mat"}'.encode())
    questions = read_questions(TaskConfig("words", str(path), "next_word"))
    assert [question.prompt for question in questions] == ["the\u2028cat\x85sat", "a"]


def log_likelihood(model: torch.nn.Module, context: str, continuation: str) -> tuple[float, bool]:
    """By the chain rule, one token after the other."""
    ids, total, greedy = list(context.encode()), 0.0, True
    for token in continuation.encode():
        with torch.no_grad():
            log_pi_V = model(input_ids=torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)
        total, greedy = total + float(log_pi_V[token]), greedy and int(log_pi_V.argmax()) == token
        ids.append(token)
    return total, greedy


def test_language_model_tasks(model_directory, tmp_path: Path, files: dict[str, str]):
    tasks = [
        {"name": "sums", "path": files["sums"], "type": "multiple_choice", "prompt": "Q: {question}"},
        {"name": "words", "path": files["words"], "type": "next_word"},
        {"name": "opinions", "path": files["opinions"], "type": "classification", "labels": ["bad", "good"]},
    ]
    run = task_run(tmp_path / "run", model_directory("llama"), tasks)
    values = evaluate(run)
    model = load_model(read_plan(run).config.model)
    rows = [
        [log_likelihood(model, f"Q: {r['question']}", f" {choice}")[0] for choice in r["choices"]]
        for r in ARITHMETIC
    ]
    right = [int(np.argmax(row)) == r["answer"] for row, r in zip(rows, ARITHMETIC, strict=True)]
    sums = values["tasks"]["sums"]
    assert sums["num_items"] == 9
    assert sums["accuracy"]["original"] == pytest.approx(np.mean(right))
    expected = -np.mean([row[r["answer"]] for row, r in zip(rows, ARITHMETIC, strict=True)])
    assert sums["loss"]["original"] == pytest.approx(expected, rel=1e-5)
    normalized = [
        int(np.argmax([v / len(c) for v, c in zip(row, r["choices"], strict=True)])) == r["answer"]
        for row, r in zip(rows, ARITHMETIC, strict=True)
    ]
    assert sums["accuracy_normalized"]["original"] == pytest.approx(np.mean(normalized))
    pairs = [record["text"].rsplit(" ", 1) for record in WORDS]
    words = [log_likelihood(model, before, f" {word}") for before, word in pairs]
    assert values["tasks"]["words"]["accuracy"]["original"] == np.mean([greedy for _, greedy in words])
    assert values["tasks"]["words"]["loss"]["original"] == pytest.approx(-np.mean([v for v, _ in words]))
    assert values["tasks"]["opinions"]["num_items"] == 3
    for task in values["tasks"].values():
        for name in ("original", "quantized", "uniform"):
            low, high = task["intervals"]["accuracy"][name]
            assert 0 <= low <= task["accuracy"][name] <= high <= 1
        assert task["paired"]["loss"]["quantized - original"]["stderr"] > 0
    samples = np.load(run.file("evaluation_samples.npz"))
    assert samples["sums/quantized/accuracy"].shape == (9,)


def test_a_classifier_needs_no_labels(model_directory, tmp_path: Path, files: dict[str, str]):
    path = write_lines(tmp_path / "numbered.jsonl", [{"text": f"text {n}", "label": n % 3} for n in range(8)])
    task = {"name": "kinds", "path": path, "type": "classification"}
    run = task_run(tmp_path / "run", model_directory("bert_classifier"), [task])
    found = evaluate(run)["tasks"]["kinds"]
    model = load_model(read_plan(run).config.model)
    right = []
    for n in range(8):
        text = list(f"text {n}".encode())
        with torch.no_grad():
            z_V = model(
                input_ids=torch.tensor([text]), attention_mask=torch.ones(1, len(text)).long()
            ).logits[0]
        right.append(int(z_V.argmax()) == n % 3)
    assert found["accuracy"]["original"] == np.mean(right)


def test_contexts_begin_as_the_tokenizer_begins_a_text(model_directory):
    path = model_directory("llama")
    save_byte_tokenizer(path)
    description = dataclasses.replace(describe_model(ModelConfig(path=str(path))), max_positions=6)
    framed, plain = (make_encoder(description, "task", value) for value in (True, False))
    tokens = plain.encode("abcdefgh")
    assert framed.request("abc", "d").context == (BOS, *tokens[:3])
    assert framed.request("", "abc") == ((BOS,), tuple(tokens[:3]))
    assert framed.tokens((BOS, *tokens[:2]), tokens[2:3]).context == (BOS, *tokens[:2])
    assert framed.request("abcdefg", "h").context == (BOS, *tokens[2:7])
    assert plain.request("abcdefg", "h").context == tuple(tokens[1:7])
    assert make_encoder(description, "task", None).request("abc", "d") == plain.request("abc", "d")


def test_a_continuation_that_joins_the_context_has_a_token_to_score():
    # "ab" is one token: of "a" + "b" nothing came after the context's one, and log p of nothing is 0, the best of all.
    words = {"ab": 9, "a": 1, "b": 2, "c": 3}

    def encode(text: str) -> list[int]:
        tokens = []
        while text:
            piece = next(word for word in words if text.startswith(word))
            tokens.append(words[piece])
            text = text.removeprefix(piece)
        return tokens

    encoder = Encoder(encode, start=0, max_length=None)
    assert encoder.request("ca", "b") == ((3,), (9,))
    assert encoder.request("a", "b") == ((0,), (9,))
    assert encoder.request("c", "b") == ((3,), (2,))
    assert encoder.request("a", "bb") == ((1,), (2,))  # as harnesses cut it


def test_padding_and_cutting_change_no_score():
    encoder = Encoder(lambda text: list(text.encode()), 10, max_length=6)
    request = encoder.request("abcdefgh ", "xy")
    assert bytes(request.context) == b"efgh" and bytes(request.continuation) == b" xy"
    assert encoder.request("", "x").context == (10,)
    generator = torch.Generator().manual_seed(0)
    table_VV = torch.randn(256, 256, generator=generator)  # a language model that sees one token back
    requests = [request, encoder.request("a", "b"), encoder.request("", "cde")]
    together = score(requests, table_VV[batch(requests)["input_ids"]])
    for each, expected in zip(requests, together, strict=True):
        ids = [each.context[-1], *each.continuation]
        log_pi = [table_VV[a].double().log_softmax(-1)[b] for a, b in zip(ids, ids[1:], strict=False)]
        assert expected.log_likelihood == pytest.approx(float(sum(log_pi)))


@pytest.mark.parametrize(
    ("record", "kind", "message"),
    [
        ({"question": "?", "choices": ["a"], "answer": 1}, "multiple_choice", "none of 'a' nor the index"),
        ({"question": "?", "choices": [], "answer": 0}, "multiple_choice", "no field 'choices'"),
        ({"choices": ["a", "b"], "answer": 0}, "multiple_choice", "does not fit the prompt '{question}'"),
        ({"text": "alone"}, "next_word", "a text of one word"),
        ({"text": "x", "label": "ugly"}, "classification", "none of 'bad', 'good' nor the index"),
        ({"text": "x", "label": True}, "classification", "the answer True"),
        ([1], "next_word", "is list; each line must be an object"),
    ],
)
def test_malformed_records(record, kind: str, message: str, tmp_path: Path):
    path = write_lines(tmp_path / "task.jsonl", [record])
    with pytest.raises(UserError, match=f"line 1.*{message}"):
        read_questions(TaskConfig("t", path, kind, ("bad", "good")))  # type: ignore[arg-type]


def test_a_prompt_that_asks_a_record_for_what_it_has_not(tmp_path: Path):
    path = write_lines(tmp_path / "task.jsonl", [{"question": "?", "choices": ["a", "b"], "answer": 0}])
    for prompt in ("{question.heading}", "{choices[a]}", "{0}"):
        with pytest.raises(UserError, match="line 1 does not fit the prompt"):
            read_questions(TaskConfig("t", path, "multiple_choice", (), prompt))


def test_tasks_that_a_model_cannot_do_are_refused_when_planning(
    model_directory, tmp_path: Path, files, monkeypatch
):
    def wrong(model: str, **task: object) -> Config:
        values = {"model": {"path": str(model_directory(model))}, "calibration": {"data": "d"}}
        return parse_config({**values, "evaluation": {"tasks": [{"name": "t", **task}]}})

    monkeypatch.setattr("hpcmpq.planning.stage.prepare", lambda *_: pytest.fail("the model was planned"))
    for config, message in (
        (
            wrong("bert_classifier", path=files["sums"], type="multiple_choice"),
            "needs a causal language model",
        ),
        (wrong("llama", path=files["opinions"], type="classification", labels=["bad"]), "none of 'bad'"),
        (wrong("llama", path=str(tmp_path / "nowhere"), type="harness"), "there is no directory"),
    ):
        with pytest.raises(UserError, match=message):
            plan(config, RunDir(tmp_path / "new"), ())


@pytest.mark.parametrize("gguf", [False, True])
def test_planning_reads_the_file_of_a_task_once(model_directory, tmp_path: Path, files, monkeypatch, gguf):
    model = tmp_path / "model.gguf" if gguf else model_directory("llama")
    if gguf:
        model.touch()
    values = {"model": {"path": str(model)}, "calibration": {"data": "d"}}
    tasks = [{"name": "sums", "path": files["sums"], "type": "multiple_choice"}]
    read, real = [], Path.read_text

    def noted(path: Path, *arguments, **settings) -> str:
        read.append(str(path))
        return real(path, *arguments, **settings)

    monkeypatch.setattr(Path, "read_text", noted)
    check_tasks(parse_config({**values, "evaluation": {"tasks": tasks}}))
    assert read.count(files["sums"]) == 1


def test_models_that_cannot_do_a_task(model_directory, tmp_path: Path, files: dict[str, str]):
    task = {"name": "sums", "path": files["sums"], "type": "multiple_choice"}
    run = task_run(tmp_path / "run", model_directory("bert_classifier"), [task])
    with pytest.raises(UserError, match="needs a causal language model in model.path"):
        evaluate(run)


def test_configs(tmp_path: Path):
    def config(**task: object):
        values = {"model": {"path": "m"}, "calibration": {"data": "d"}}
        return parse_config({**values, "evaluation": {"tasks": [task]}})

    task = {"name": "a", "path": "a.jsonl", "type": "next_word"}
    assert resolve_paths(config(**task), tmp_path).evaluation.tasks[0].path == str(tmp_path / "a.jsonl")
    with pytest.raises(UserError, match="unknown key 'evaluation.tasks.0.promt'; did you mean .*prompt"):
        config(**task, promt="x")
    with pytest.raises(UserError, match="name 'data' must be unique"):
        config(**{**task, "name": "data"})
    with pytest.raises(UserError, match="evaluation.tasks.0.type"):
        config(**{**task, "type": "essay"})
