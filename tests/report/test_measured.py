"""The table of measured quality, from values per item to the page."""

import csv
from pathlib import Path

import numpy as np
import pytest

from hpcmpq.cli.summaries import task_table
from hpcmpq.evaluate.statistics import summarise
from hpcmpq.report import write_report
from hpcmpq.store.json_files import read_json, write_json
from hpcmpq.store.run_dir import RunDir
from tests.synthetic_run import write_run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_png")]

SHIFT = {"original": 0.0, "quantized": 0.05, "uniform": 0.08}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """An evaluated run whose evaluation.json is summarised from values per item, two tasks among them."""
    run = write_run(tmp_path / "run", frontier=True, evaluated=True)
    generator = np.random.default_rng(0)
    hard_N, knows_N = generator.normal(1.2, 0.3, 64), generator.random(50)
    data, task = {}, {}
    for model, shift in SHIFT.items():
        noise_N = shift * generator.uniform(0.5, 1.5, 64)
        labels = np.full(64, 127)
        data[model] = {"kl": noise_N, "ce": hard_N + noise_N, "correct": labels // 2, "labels": labels}
        task[model] = {"accuracy": (knows_N > 0.4 + shift).astype(float), "loss": knows_N + shift}
    values = summarise({"data": data, "sums": task, "words": task})
    write_json(run.evaluation_path, {**read_json(run.evaluation_path, ""), **values})
    return run


def test_every_metric_with_interval_and_differences(run: RunDir):
    write_report(run)
    with (run.file("report") / "measured.csv").open() as file:
        rows = {(row["where"], row["metric"]): row for row in csv.DictReader(file)}
    assert set(rows) == {
        ("data", "KL divergence"), ("data", "cross-entropy"), ("data", "perplexity"),
        *((task, metric) for task in ("sums", "words") for metric in ("accuracy", "−log p of the answer")),
    }  # fmt: skip
    evaluation = read_json(run.evaluation_path, "")
    row, task = rows["sums", "accuracy"], evaluation["tasks"]["sums"]
    assert float(row["quantized"]) == task["accuracy"]["quantized"]
    assert float(row["low"]) <= float(row["quantized"]) <= float(row["high"])
    assert float(row["against_original"]) == pytest.approx(
        task["accuracy"]["quantized"] - task["accuracy"]["original"]
    )
    assert rows["data", "perplexity"]["against_original"] == ""
    assert "Measured quality with 95" in run.report_path.read_text()


def test_older_evaluations_have_no_such_table(tmp_path: Path):
    run = write_run(tmp_path / "run", frontier=True, evaluated=True)
    write_report(run)
    assert not (run.file("report") / "measured.csv").exists()


def test_tasks_are_printed(run: RunDir):
    table = task_table(read_json(run.evaluation_path, ""))
    assert [column.header for column in table.columns] == [
        "task", "metric", "original", "quantized", "", "uniform int3"
    ]  # fmt: skip
    assert list(table.columns[0].cells) == ["sums", "words"]
