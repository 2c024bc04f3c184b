"""The shipped configs through every stage: real models, data and processes; the quickstart on fewer samples."""

import html
import json
import re

import pytest
import torch
from transformers import AutoModelForCausalLM

from hpcmpq.config import read_config
from hpcmpq.models.load import load_model
from hpcmpq.planning.stage import prepare
from hpcmpq.quantized.variants import Variants
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.quadratic_file import read_quadratic
from hpcmpq.store.run_dir import RunDir
from tests.calling import Call
from tests.executors.launch import ROOT
from tests.executors.launch import run as start

pytestmark = pytest.mark.slow


FEWER = {
    "num_samples: 64\n  sequence_length: 128": "num_samples: 8\n  sequence_length: 64",
    "held_out: 32": "held_out: 8",
    "max_evaluations: 40": "max_evaluations: 8",
    'evaluation_text", num_samples: 64': 'evaluation_text", num_samples: 16',
}
"""Of the quickstart: calibration takes most of its time, in proportion, and the same path with any number."""


@pytest.fixture(scope="module", params=["quickstart", "digits"])
def finished(request, started_once: str, tmp_path_factory) -> tuple[RunDir, str]:
    """A finished run of a shipped config, and what it printed."""
    folder = tmp_path_factory.mktemp(request.param)
    command = folder / "hpcmpq"
    command.write_text(started_once)
    command.chmod(0o755)
    run, config = RunDir(folder / "run"), ROOT / "configs" / f"{request.param}.yaml"
    if request.param == "quickstart":
        text = config.read_text().replace("quickstart_model", str(ROOT / "configs" / "quickstart_model"))
        for shipped, fewer in FEWER.items():
            assert shipped in text
            text = text.replace(shipped, fewer)
        config = folder / "quickstart.yaml"
        config.write_text(text)
    ended = start([str(command), "run", str(config), "--run-dir", str(run.path)], timeout_s=900)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return run, ended.stdout


def test_every_artefact_is_there_and_what_was_found_is_printed(finished):
    run, printed = finished
    paths = (run.plan_path, run.quadratic_path, run.solution_path, run.frontier_path, run.evaluation_path)
    for path in (*paths, run.report_path):
        assert path.stat().st_size > 0
    assert (run.checkpoint_path / "assignment.json").exists()
    for word in ("assignment", "predicted", "measured", "uniform", "report.html"):
        assert word in printed


def test_the_solution_is_within_budget_bounded_and_no_worse_than_uniform(finished):
    run, _ = finished
    plan, solution = read_plan(run), json.loads(run.solution_path.read_text())
    evaluation = json.loads(run.evaluation_path.read_text())
    for name, limit in plan.config.budgets.items():
        assert solution["costs"][name] <= limit
    assert solution["bound"] <= solution["objective"]
    low, high = solution["expected_interval"]
    assert low <= solution["expected_loss"] <= high
    objective = plan.config.objective
    measured = evaluation[objective]
    assert measured["quantized"] <= measured["uniform"] * 1.1
    assert solution["evaluated_loss"] == measured["quantized"]
    for metric in ("loss", "kl"):
        assert set(evaluation[metric]) == {"original", "quantized", "uniform"}
    assert ("perplexity" in evaluation) != ("accuracy" in evaluation)


def test_the_quadratic_is_as_specified(finished):
    run, _ = finished
    plan, model = read_plan(run), read_quadratic(run.quadratic_path)
    assert (model.quad_PP == model.quad_PP.T).all()
    group_P = plan.space.group_P
    assert not model.quad_PP[group_P[:, None] == group_P[None, :]].any()
    assert model.num_samples == plan.config.calibration.num_samples
    assert (model.stderr_linear_P > 0).all()


def test_the_checkpoint_holds_exactly_the_quantizers_values(finished):
    run, _ = finished
    plan, solution = read_plan(run), json.loads(run.solution_path.read_text())
    config = plan.config
    if config.model.path is None:
        from safetensors.torch import load_file

        exported = load_file(run.checkpoint_path / "model.safetensors")
    else:
        exported = AutoModelForCausalLM.from_pretrained(run.checkpoint_path).state_dict()
    model = load_model(config.model, import_paths=plan.import_paths)
    variants, changed = Variants(model, plan.space, config.quantizer), set()
    for group in plan.space.groups:
        for name, tensor in variants.quantized(group, solution["assignment"][group.name]).items():
            assert torch.equal(exported[name], tensor)
            changed.add(name)
    for name, tensor in model.state_dict().items():
        if name not in changed:
            assert torch.equal(exported[name], tensor)


def test_a_finished_run_has_nothing_to_measure_again(call: Call, finished):
    run, _ = finished
    before = {path.name: path.stat().st_mtime_ns for path in run.shards_path.iterdir()}
    ended = call("calibrate", run.path)
    assert ended.status == 0, ended.err
    assert {path.name: path.stat().st_mtime_ns for path in run.shards_path.iterdir()} == before


def test_status_says_that_all_is_done(call: Call, finished):
    run, _ = finished
    ended = call("status", run.path)
    assert ended.status == 0, ended.err
    assert f"{len(read_plan(run).units)} of {len(read_plan(run).units)}" in ended.out


def test_the_config_in_the_report_plans_the_same_measurement(finished, tmp_path):
    run, _ = finished
    [text] = re.findall(r'aria-label="Config"><code>(.*?)</code>', run.report_path.read_text(), re.DOTALL)
    (tmp_path / "config.yaml").write_text(html.unescape(text))
    made = prepare(read_config(tmp_path / "config.yaml"), RunDir(tmp_path / "again"), (str(ROOT),))
    assert made.fingerprint == read_plan(run).fingerprint
