"""A run in MLflow's directory, read back by MLflow."""

import json
from pathlib import Path

import pytest

from hpcmpq.errors import UserError
from hpcmpq.store.json_files import read_json, write_json
from hpcmpq.tracking.mlflow_runs import track
from hpcmpq.tracking.record import record_of
from tests.synthetic_run import round_again, write_run


@pytest.mark.slow
def test_mlflow_reads_back_settings_numbers_frontier_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("mlflow", reason="mlflow, of the extra tracking, is not installed")
    run = write_run(tmp_path / "runs/one run", frontier=True, evaluated=True)
    write_json(run.file("timings.json"), {"solve": {"seconds": 2.5, "finished": ""}})
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    numbers = [track(run, tmp_path / "ml runs") for _ in range(2)]
    assert len(set(numbers)) == 2

    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=(tmp_path / "ml runs").as_uri())
    experiment = client.get_experiment_by_name("hpcmpq").experiment_id
    assert {found.info.run_id for found in client.search_runs([experiment])} == set(numbers)
    found = client.get_run(numbers[0])
    solution, evaluation = read_json(run.solution_path, ""), read_json(run.evaluation_path, "")
    assert found.info.run_name == "one run" and found.info.status == "FINISHED"
    assert found.data.tags["fingerprint"] == solution["fingerprint"]
    assert found.data.params["budgets.weight_bits"] == "3.0"
    assert found.data.params["calibration.num_samples"] == "64"
    metrics = found.data.metrics
    assert metrics["predicted_loss"] == solution["predicted_loss"] and metrics["bound"] == solution["bound"]
    assert metrics["size_bytes"] == solution["costs"]["size_bytes"]
    assert metrics["measured.kl.quantized"] == evaluation["kl"]["quantized"]
    assert metrics["measured.perplexity.uniform"] == evaluation["perplexity"]["uniform"]
    assert metrics["seconds.solve"] == 2.5
    points = read_json(run.frontier_path, "")["points"]
    history = client.get_metric_history(numbers[0], "frontier.predicted_loss")
    assert [(m.step, m.value) for m in history] == list(
        enumerate(point["predicted_loss"] for point in points)
    )
    files = {file.path for file in client.list_artifacts(numbers[0])}
    assert files == {"plan.json", "solution.json", "evaluation.json", "frontier.json"}


def test_an_evaluation_of_another_assignment_is_left_out(tmp_path: Path):
    run = write_run(tmp_path / "run", evaluated=True)
    assert "measured.kl.quantized" in record_of(run).metrics
    evaluation = json.loads(run.evaluation_path.read_text())
    evaluation["assignment"][next(iter(evaluation["assignment"]))] = "int8"
    write_json(run.evaluation_path, evaluation)
    assert not [name for name in record_of(run).metrics if name.startswith("measured.")]


def test_an_evaluation_of_the_codes_before_is_left_out(tmp_path: Path):
    run = write_run(tmp_path / "run", evaluated=True)
    round_again(run)
    assert not [name for name in record_of(run).metrics if name.startswith("measured.")]


def test_without_mlflow_it_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "mlflow", None)
    with pytest.raises(UserError, match=r"tracking needs mlflow, .* `pip install 'hpcmpq\[tracking\]'`"):
        track(write_run(tmp_path / "run"), tmp_path / "mlruns")


def test_an_unsolved_run_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="hpcmpq solve"):
        track(write_run(tmp_path / "run", solved=False), tmp_path / "mlruns")
