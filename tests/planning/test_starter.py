"""`hpcmpq init`: the written config is read, planned with, and says what the model is."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import transformers
from typer.testing import CliRunner

from hpcmpq.cli import app
from hpcmpq.config import read_config
from hpcmpq.errors import UserError
from hpcmpq.planning.starter import write_starter
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir
from tests.export.planned import mixtral

pytestmark = pytest.mark.slow

Save = Callable[[str], Path]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(f"{n} squared is {n * n} and cubed {n**3}." for n in range(400)))
    return path


def test_written_config_is_planned_as_it_is(model_directory: Save, text: Path, tmp_path: Path):
    output, runner = tmp_path / "config.yaml", CliRunner()
    model = str(model_directory("llama"))
    made = runner.invoke(app, ["init", model, "--output", str(output), "--data", str(text)])
    assert made.exit_code == 0, made.output
    config = read_config(output)
    assert config.groups.tie == (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
    assert config.quantizer.group_size is None  # 24 inputs are no multiple of 16
    run = RunDir(tmp_path / "run")
    planned = runner.invoke(app, ["plan", str(output), "--run-dir", str(run.path)])
    assert planned.exit_code == 0, planned.output
    groups = read_plan(run).space.groups
    assert f"# {len(groups)} groups with {sum(g.numel for g in groups):,} weights" in output.read_text()
    assert "2 x model.layers.*.self_attn.{q_proj,k_proj,v_proj}" in output.read_text()
    assert len(groups) == 8


@pytest.mark.parametrize(("name", "outputs"), [("bert", "the outputs;"), ("bert_masked", "the 256 outputs;")])
def test_outputs_are_words_only_of_a_language_model(
    model_directory: Save, tmp_path: Path, name: str, outputs: str
):
    output = tmp_path / "config.yaml"
    write_starter(model_directory(name), output)
    assert f"Random projections of {outputs}" in output.read_text()
    assert "vocabulary of 256" in output.read_text()


@pytest.mark.parametrize("name", ["𠮷田 😀", 'a "quoted" \\ name', "\x85\u2028\x7f", os.fsdecode(b"caf\xe9")])
def test_names_beyond_the_basic_plane_and_bytes_are_read_back(
    model_directory: Save, text: Path, tmp_path: Path, name: str
):
    model, data = tmp_path / name, tmp_path / f"{name}.txt"
    shutil.copytree(model_directory("llama"), model)
    shutil.copyfile(text, data)
    output = tmp_path / "config.yaml"
    write_starter(model, output, data=str(data))
    config = read_config(output)
    assert (config.model.path, config.calibration.data) == (str(model.resolve()), str(data.resolve()))


def test_without_data_there_is_a_placeholder(model_directory: Save, tmp_path: Path):
    output = tmp_path / "deep" / "config.yaml"
    write_starter(model_directory("gpt2"), output)
    config = read_config(output)
    assert config.model.path == str(tmp_path / "gpt2")
    assert "CHANGE THIS" in output.read_text()
    assert "vocabulary of 256" in output.read_text()
    assert config.groups.tie == ()
    assert config.calibration.sequence_length == 64  # as many as the model has positions
    assert 'exclude: ["*.c_proj"]' in output.read_text()
    assert "No target" in output.read_text()
    assert "# target:" not in output.read_text()


@pytest.mark.parametrize("name", ["bert", "bert_masked", "bert_classifier", "vit"])
def test_models_of_other_kinds(name: str, model_directory: Save, tmp_path: Path):
    output = tmp_path / "config.yaml"
    groups = write_starter(model_directory(name), output)
    config = read_config(output)
    assert config.objective == ("mse" if name == "bert" else "kl")
    assert any("{" in group.name for group in groups) == bool(config.groups.tie)
    assert "# target: transformers" in output.read_text()
    assert "llama_cpp" not in output.read_text()
    assert ("`label`" in output.read_text()) == (name == "bert_classifier")


def test_images_are_planned_too(model_directory: Save, tmp_path: Path):
    data, output = tmp_path / "images.npy", tmp_path / "config.yaml"
    np.save(data, np.random.default_rng(0).normal(size=(20, 3, 16, 16)).astype(np.float32))
    write_starter(model_directory("vit"), output, str(data))
    config = read_config(output)
    counts = (config.calibration.num_samples, config.calibration.held_out, config.evaluation.num_samples)
    assert counts == (10, 4, 4)
    planned = CliRunner().invoke(app, ["plan", str(output), "--run-dir", str(tmp_path / "run")])
    assert planned.exit_code == 0, planned.output


@pytest.mark.parametrize("target", ["transformers", "vllm"])
def test_each_target_can_be_uncommented(target: str, model_directory: Save, text: Path, tmp_path: Path):
    output = tmp_path / "config.yaml"
    write_starter(model_directory("llama"), output, str(text))
    written = output.read_text()
    assert f"# target: {target} " in written
    output.write_text(written.replace(f"# target: {target} ", f"target: {target} "))
    planned = CliRunner().invoke(app, ["plan", str(output), "--run-dir", str(tmp_path / "run")])
    assert planned.exit_code == 0, planned.output


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_groups_to_leave_alone_can_be_uncommented(name: str, model_directory: Save, tmp_path: Path):
    output = tmp_path / "config.yaml"
    write_starter(model_directory(name), output)
    lines = output.read_text().splitlines()
    uncommented = (
        re.sub("# ", "", line, count=1) if re.match(" *# *(groups|exclude):", line) else line
        for line in lines
    )
    output.write_text("\n".join(uncommented))
    groups = read_config(output).groups
    assert len(groups.exclude) == 1 and bool(groups.tie) == (name == "llama")


def test_few_data_make_shorter_samples(model_directory: Save, text: Path, tmp_path: Path):
    text.write_text(text.read_text()[:5000])
    write_starter(model_directory("llama"), tmp_path / "config.yaml", str(text))
    calibration = read_config(tmp_path / "config.yaml").calibration
    assert calibration.sequence_length == 16
    text.write_text("too little for anything")
    with pytest.raises(UserError, match="fewer than|different samples"):
        write_starter(model_directory("llama"), tmp_path / "other.yaml", str(text))
    assert not (tmp_path / "other.yaml").exists()


def test_nothing_is_overwritten(model_directory: Save, tmp_path: Path):
    output = tmp_path / "config.yaml"
    output.write_text("mine")
    with pytest.raises(UserError, match="not overwritten"):
        write_starter(model_directory("llama"), output)
    assert output.read_text() == "mine"


def test_no_model_there(tmp_path: Path):
    with pytest.raises(UserError, match="no model directory"):
        write_starter(tmp_path / "nothing", tmp_path / "config.yaml")


def test_experts_are_looked_at_by_their_shapes_alone(text: Path, tmp_path: Path, monkeypatch):
    mixtral().save_pretrained(tmp_path / "mixtral")
    monkeypatch.setattr("hpcmpq.planning.starter.load_model", lambda config: pytest.fail("reads the weights"))
    groups = write_starter(tmp_path / "mixtral", tmp_path / "config.yaml", str(text))
    assert "model.layers.0.mlp.experts.gate_up_proj" in [group.name for group in groups]


def test_data_say_how_large_images_are_where_the_model_does_not(tmp_path: Path):
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", num_labels=3
    )
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path / "resnet")
    np.save(
        tmp_path / "images.npy", np.zeros((20, 3, 16, 16), np.float32) + np.arange(20)[:, None, None, None]
    )
    with pytest.raises(UserError, match="does not say its image_size; give data with --data"):
        write_starter(tmp_path / "resnet", tmp_path / "config.yaml")
    assert write_starter(tmp_path / "resnet", tmp_path / "config.yaml", str(tmp_path / "images.npy"))
