"""lm-evaluation-harness on local tasks, against our own reading of the same questions."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from hpcmpq.config import parse_config
from hpcmpq.errors import UserError
from hpcmpq.evaluate import evaluate
from hpcmpq.evaluate.tasks import check_tasks
from hpcmpq.evaluate.tasks.harness import HarnessTask, values_of
from hpcmpq.settings import TaskConfig
from hpcmpq.store.metric_names import higher_is_better
from tests.evaluate.tasks.test_tasks import ARITHMETIC, WORDS, task_run, write_lines

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed"),
]

YAML = """
task: sums_by_harness
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Q: {{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tasks").mkdir()
    data = write_lines(tmp_path / "sums.jsonl", ARITHMETIC)
    (tmp_path / "tasks" / "sums.yaml").write_text(YAML.format(data=data))
    return tmp_path / "tasks"


def test_the_harness_finds_what_we_find(model_directory, tmp_path: Path, folder: Path):
    tasks = [
        {"name": "sums_by_harness", "path": str(folder), "type": "harness"},
        {
            "name": "sums", "path": str(tmp_path / "sums.jsonl"), "type": "multiple_choice",
            "prompt": "Q: {question}",
        },
    ]  # fmt: skip
    run = task_run(tmp_path / "run", model_directory("llama"), tasks)
    values = evaluate(run)["tasks"]
    samples = np.load(run.file("evaluation_samples.npz"))
    assert values["sums_by_harness"]["num_items"] == 9
    for model in ("original", "quantized", "uniform"):
        for metric in ("accuracy", "accuracy_normalized"):
            theirs, ours = (samples[f"{task}/{model}/{metric}"] for task in ("sums_by_harness", "sums"))
            assert (theirs == ours).all()
    assert values["sums_by_harness"]["intervals"]["accuracy"] == values["sums"]["intervals"]["accuracy"]


def test_perplexity_of_answers_is_their_loss(model_directory, tmp_path: Path, folder: Path):
    data = write_lines(tmp_path / "words.jsonl", WORDS)
    text = YAML.format(data=data).replace("multiple_choice", "loglikelihood").split("doc_to_text")[0]
    (folder / "sums.yaml").write_text(
        text.replace("sums_by", "words_by")
        + """doc_to_text: "{{text.rsplit(' ', 1)[0]}}"
doc_to_target: " {{text.rsplit(' ', 1)[1]}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: median, higher_is_better: true}
"""
    )
    tasks = [
        {"name": "words_by_harness", "path": str(folder), "type": "harness"},
        {"name": "words", "path": data, "type": "next_word"},
    ]
    found = evaluate(task_run(tmp_path / "run", model_directory("llama"), tasks))["tasks"]
    theirs, ours = found["words_by_harness"], found["words"]
    assert set(theirs["intervals"]) == {"loss"}  # a median of accuracies is no mean
    for model in ("original", "quantized", "uniform"):
        assert (
            theirs["loss"][model] == pytest.approx(ours["loss"][model], rel=1e-5) and ours["loss"][model] > 0
        )


def test_metrics_that_are_no_mean_are_left_out_and_directions_said():
    from lm_eval.api.metrics import mean, median

    row = {"acc": 1, "acc_gap": 0.5, "bleu": 2.0, "middle": 1.0, "f1": (0, 1), "bits": 3.0, "exact_match": 0}
    higher = {"acc": True, "acc_gap": False, "bleu": True, "exact_match": True, "bits": False}
    found = values_of([row, row], {**dict.fromkeys(row, mean), "middle": median}, higher)
    assert list(found) == [
        "accuracy", "acc_gap (lower is better)", "bleu (higher is better)", "bits", "exact_match",
    ]  # fmt: skip
    assert [name for name in found if higher_is_better(name)] == [
        "accuracy", "bleu (higher is better)", "exact_match",
    ]  # fmt: skip


@pytest.mark.parametrize("error", [ConnectionError("no route"), ImportError("no module jieba")])
def test_what_is_not_on_disk_is_a_sentence(model_directory, tmp_path: Path, folder: Path, monkeypatch, error):
    import lm_eval

    def fails(*_args: object, **_named: object) -> None:
        raise error

    monkeypatch.setattr(lm_eval, "simple_evaluate", fails)
    task = HarnessTask(TaskConfig("sums_by_harness", str(folder), "harness"), None, 1)  # type: ignore[arg-type]
    monkeypatch.setattr("hpcmpq.evaluate.tasks.harness._model", lambda *_: None)
    with pytest.raises(
        UserError, match=f"{error}; what it reads must be on disk: fetch it where there is network"
    ):
        task.measure(None)  # type: ignore[arg-type]


def test_a_plan_refuses_a_name_that_the_harness_does_not_know(model_directory, folder: Path):
    values = {"model": {"path": str(model_directory("llama"))}, "calibration": {"data": "text.txt"}}
    task = {"name": "products", "path": str(folder), "type": "harness"}
    with pytest.raises(UserError, match="knows no task 'products'"):
        check_tasks(parse_config({**values, "evaluation": {"tasks": [task]}}))
    check_tasks(parse_config({**values, "evaluation": {"tasks": [{**task, "name": "sums_by_harness"}]}}))


def test_a_task_that_is_not_there(model_directory, tmp_path: Path, folder: Path):
    tasks = [{"name": "differences", "path": str(folder / "none"), "type": "harness"}]
    run = task_run(tmp_path / "run", model_directory("llama"), tasks)
    with pytest.raises(UserError, match="there is no directory"):
        evaluate(run)


def test_without_the_library(monkeypatch, tmp_path: Path, folder: Path):
    import sys

    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match=r"pip install 'hpcmpq\[lm-eval\]'"):
        HarnessTask(TaskConfig("a", str(folder), "harness"), None, 1).measure(None)  # type: ignore[arg-type]
