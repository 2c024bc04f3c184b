"""evaluation.json of the whole stage, with the torch engine."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from hpcmpq.cli import app
from hpcmpq.errors import UserError
from hpcmpq.evaluate import evaluate
from hpcmpq.executors.world import World
from hpcmpq.store.json_files import read_json, write_json
from hpcmpq.store.run_dir import RunDir
from tests.evaluate.solved_runs import TEXT, solved_run

pytestmark = pytest.mark.slow

TINY = {
    "model": {"factory": "tests.executors.tiny_model:model"},
    "calibration": {"data": "tests.executors.tiny_model:samples"},
    "groups": {"include": ["*"]},
    "formats": ["int2", "int4"],
    "quantizer": {"group_size": None},
    "evaluation": {"num_samples": 18},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return solved_run(tmp_path_factory.mktemp("tiny") / "run", TINY)


@pytest.fixture
def llama(model_directory, tmp_path: Path) -> RunDir:
    config = {"model": {"path": str(model_directory("llama"))}, "formats": ["int2", "int4"]}
    return solved_run(tmp_path / "run", config, TEXT)


def test_values_and_where_they_lie(llama: RunDir):
    values = evaluate(llama)
    assert read_json(llama.evaluation_path, "") == values
    samples = np.load(llama.file("evaluation_samples.npz"))
    assert not llama.file("evaluation").exists()
    for metric in ("kl", "ce"):
        for name in ("original", "quantized", "uniform"):
            each_N = samples[f"data/{name}/{metric}"]
            assert len(each_N) == values["num_samples"]
            assert values[metric][name] == pytest.approx(each_N.mean())
            low, high = values["intervals"][metric][name]
            assert low <= values[metric][name] <= high
    assert values["loss"] == values["ce"]
    labels_N = samples["data/quantized/labels"]
    per_token = (samples["data/quantized/ce"] * labels_N).sum() / labels_N.sum()
    assert values["perplexity"]["quantized"] == pytest.approx(np.exp(per_token))
    pair = values["paired"]["ce"]["quantized - original"]
    difference_N = samples["data/quantized/ce"] - samples["data/original/ce"]
    assert pair["difference"] == pytest.approx(difference_N.mean())
    assert pair["stderr"] == pytest.approx(difference_N.std(ddof=1) / len(difference_N) ** 0.5)
    assert set(values["paired"]["kl"]) == {"quantized - original", "quantized - uniform"}
    assert values["engine"] == "torch" and values["world_size"] == 1
    assert values["model_bytes"] == 4 * sum(p.numel() for p in parameters(llama))


def test_other_samples_than_before_are_told(tmp_path: Path, caplog):
    arrays = [np.random.default_rng(seed).normal(size=(9, 6)).astype(np.float32) for seed in (1, 2)]
    np.save(tmp_path / "samples.npy", arrays[0])
    config = {**TINY, "evaluation": {"data": str(tmp_path / "samples.npy"), "num_samples": 9}}
    run = solved_run(tmp_path / "run", config)
    first = evaluate(run)
    assert evaluate(run)["samples_hash"] == first["samples_hash"]
    assert "are others than" not in caplog.text
    np.save(tmp_path / "samples.npy", arrays[1])
    assert evaluate(run)["samples_hash"] != first["samples_hash"]
    assert "9 samples are others than the 9" in caplog.text and "cannot be compared" in caplog.text


def test_an_evaluation_of_an_earlier_version_is_judged_by_its_number_of_samples(tiny: RunDir, caplog):
    values = evaluate(tiny)
    del values["samples_hash"]
    write_json(tiny.evaluation_path, values)
    evaluate(tiny)
    assert "are others than" not in caplog.text
    write_json(tiny.evaluation_path, {**values, "num_samples": 5})
    evaluate(tiny)
    assert "18 samples are others than the 5" in caplog.text


def parameters(run: RunDir):
    from hpcmpq.models.load import load_model
    from hpcmpq.settings import ModelConfig

    path = json.loads(run.plan_path.read_text())["config"]["model"]["path"]
    return list(load_model(ModelConfig(path=path, device="cpu")).parameters())


def test_the_command_line_goes_on_after_an_interruption(tiny: RunDir, monkeypatch):
    import hpcmpq.evaluate.engines.torch_engine as engine
    from hpcmpq.errors import Interrupted

    expected = evaluate(tiny)
    forward, calls = engine.TorchEngine.forward, []

    def interrupted(self, inputs):
        calls.append(1)
        if len(calls) == 20:
            raise Interrupted("SIGTERM")
        return forward(self, inputs)

    with monkeypatch.context() as patch:
        patch.setattr(engine.TorchEngine, "forward", interrupted)
        with pytest.raises(Interrupted):
            CliRunner().invoke(app, ["evaluate", str(tiny.path)])
    kept = list(tiny.file("evaluation").rglob("*.npz"))
    assert kept
    result = CliRunner().invoke(app, ["evaluate", str(tiny.path), "--engine", "torch"])
    assert result.exit_code == 0, result.output
    values = json.loads(tiny.evaluation_path.read_text())
    assert values["kl"] == expected["kl"]
    assert not tiny.file("evaluation").exists()


def test_a_damaged_chunk_is_named_and_measured_anew(tiny: RunDir, monkeypatch, caplog):
    expected = evaluate(tiny)
    import hpcmpq.evaluate.stage as stage

    with monkeypatch.context() as patch:
        patch.setattr(stage, "finish", lambda *arguments: None)
        evaluate(tiny)
    (first, *_) = sorted(tiny.file("evaluation").rglob("*.npz"))
    first.write_bytes(first.read_bytes()[:-20])
    with caplog.at_level("WARNING"):
        assert evaluate(tiny)["kl"] == expected["kl"]
    assert f"{first.name} is damaged" in caplog.text


def test_one_process_is_enough_for_torch(tiny: RunDir):
    with pytest.raises(UserError, match="srun started 2 ranks.*--engine deepspeed"):
        evaluate(tiny, "torch", World(0, 2, 0, "srun"))


def test_unknown_engine(tiny: RunDir):
    with pytest.raises(UserError, match="unknown engine 'jax'; known: torch, deepspeed"):
        evaluate(tiny, "jax")
