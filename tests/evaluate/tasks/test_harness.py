"""lm-evaluation-harness on local tasks, against our own reading of the same questions."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from hpcmpq.errors import UserError
from hpcmpq.evaluate import evaluate
from hpcmpq.evaluate.tasks.harness import HarnessTask
from tests.evaluate.tasks.test_tasks import ARITHMETIC, task_run, write_lines

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


def test_a_task_that_is_not_there(model_directory, tmp_path: Path, folder: Path):
    tasks = [{"name": "differences", "path": str(folder / "none"), "type": "harness"}]
    run = task_run(tmp_path / "run", model_directory("llama"), tasks)
    with pytest.raises(UserError, match="there is no directory"):
        evaluate(run)


def test_without_the_library(monkeypatch, tmp_path: Path, folder: Path):
    import sys

    from hpcmpq.settings import TaskConfig

    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match=r"pip install 'hpcmpq\[lm-eval\]'"):
        HarnessTask(TaskConfig("a", str(folder), "harness"), None, 1).measure(None)  # type: ignore[arg-type]
