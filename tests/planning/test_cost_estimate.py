"""Predicted bytes of shards and peak memory are within a stated factor of what a run takes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from hpcmpq.calibrate.neighbourhood import Neighbourhood
from hpcmpq.calibrate.opened import open_run
from hpcmpq.calibrate.worker import make_worker
from hpcmpq.evaluate import evaluate
from hpcmpq.executors.in_process import InProcess
from hpcmpq.export import export, streamed_files
from hpcmpq.models.data.splits import load_splits
from hpcmpq.planning.cost_estimate import PEAK_FACTOR
from hpcmpq.planning.later_peaks import COPIES_READ
from hpcmpq.planning.part_times import PartTimes, total_seconds
from hpcmpq.planning.stage import prepare
from hpcmpq.refine.inquiries import Around, keep_inquiry, plan_of
from hpcmpq.refine.worker import make_worker as make_refine_worker
from hpcmpq.rounding.option_units import units_of
from hpcmpq.rounding.stage import reround
from hpcmpq.rounding.worker import make_worker as make_rounding_worker
from hpcmpq.settings import (
    CalibrationConfig,
    Config,
    EvaluationConfig,
    ModelConfig,
    Quantizer,
    SensitivityConfig,
)
from hpcmpq.store.json_files import read_json, write_json
from hpcmpq.store.run_dir import RunDir
from tests.allocations import peak_bytes
from tests.export.planned import TEXT, solve_by_turns

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def deep(tmp_path_factory) -> str:
    """A Llama of 8 blocks for bytes, saved."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 8, "num_attention_heads": 4}
    directory = tmp_path_factory.mktemp("deep")
    # Small files, since one that is mapped counts as a whole.
    LlamaForCausalLM(LlamaConfig(**shape, vocab_size=256)).save_pretrained(directory, max_shard_size="200KB")
    return str(directory)


def config_of(path: str, length: int, stream: bool = False, **sensitivity) -> Config:
    return Config(
        ModelConfig(path=path, stream=stream),
        CalibrationConfig(
            "hpcmpq.examples.topics:training_text",
            2,
            length,
            held_out=1,
            samples_per_pass=2,
            samples_per_unit=2,
        ),
        formats=("int2", "int4", "int8"),
        sensitivity=SensitivityConfig(**sensitivity),
    )


def on_text(config: Config, folder: Path, text: str = TEXT) -> Config:
    """The config with a short text, where the other's tokens take more memory than the model."""
    (folder / "text.txt").write_text(text)
    return replace(config, calibration=replace(config.calibration, data=str(folder / "text.txt")))


@pytest.mark.parametrize(
    "stream, length, sensitivity",
    [
        (False, 48, {}),
        (False, 48, {"engine": "whole"}),
        (False, 48, {"groups_per_unit": 30, "probes": 4}),
        (False, 48, {"products": "bfloat16"}),
        (True, 24, {"probes": 4}),
    ],
)
def test_prediction_is_within_the_stated_factor_of_the_measured(
    tmp_path: Path, deep, stream, length, sensitivity
):
    run = RunDir(tmp_path / "run")
    plan = prepare(config_of(deep, length, stream, **sensitivity), run, ())
    predicted = read_json(run.file("cost.json"), "")
    assert predicted["engine"] == ("whole" if "engine" in sensitivity else "wavefront")
    _, peak = peak_bytes(lambda: [make_worker(run)(unit) for unit in plan.units[:1]])
    assert peak / PEAK_FACTOR < predicted["peak_bytes"] < PEAK_FACTOR * peak
    written = run.shard_path(plan.units[0].id).stat().st_size * len(plan.units)
    assert written / PEAK_FACTOR < predicted["shard_bytes"] < PEAK_FACTOR * written
    num_options = plan.space.num_options
    assert (predicted["seconds"] is None) == stream
    if stream:  # counted, not timed
        assert 0.4 * num_options < predicted["forwards"] <= num_options + 1
    else:
        assert predicted["forwards"] > 0 and predicted["seconds"] > 0


def test_weights_in_bfloat16_are_counted_as_a_worker_holds_them(tmp_path: Path, deep):
    """In float32, of which it rounds what it multiplies."""
    run = RunDir(tmp_path / "run")
    config = config_of(deep, 8, probes=1)
    config = replace(config, model=replace(config.model, dtype="bfloat16"), formats=("int4",))
    plan = prepare(config, run, ())
    weights = read_json(run.file("cost.json"), "")["peak_parts"]["weights of the model"]
    opened = open_run(run, plan, replace(config.model, dtype="float32"))  # as `make_worker` does
    assert weights == sum(p.nbytes for p in opened.variants.model.parameters())


@pytest.mark.parametrize("stream, dtype", [(False, "float32"), (True, "float32"), (False, "bfloat16")])
def test_memory_of_refinement_is_predicted_too(tmp_path: Path, deep, stream, dtype):
    run = RunDir(tmp_path / "run", "refine")
    config = on_text(config_of(deep, 24, stream, probes=4), tmp_path)
    plan = prepare(replace(config, model=replace(config.model, dtype=dtype)), run, ())
    predicted = read_json(run.file("cost.json"), "")["refine_peak_bytes"]
    assignment = {group.name: "int4" for group in plan.space.groups}
    beside = tuple(option.index for option in plan.space.options if option.format != "int4")
    inquiry = Around(Neighbourhood(assignment, beside))
    own = plan_of(inquiry, plan)
    keep_inquiry(run, inquiry, own)
    _, peak = peak_bytes(lambda: make_refine_worker(run)(own.units[0]))
    assert peak / PEAK_FACTOR < predicted < PEAK_FACTOR * peak
    weights = 4 * sum(group.numel for group in plan.space.groups)
    assert (peak < 2 * weights) == stream  # original and rounded weights in memory, or some blocks


@pytest.mark.parametrize("stream", [False, True])
def test_memory_of_the_stages_after_a_solution_is_predicted_too(tmp_path: Path, deep, stream, monkeypatch):
    monkeypatch.setattr(streamed_files.write_streamed, "__defaults__", ((), 200_000))
    run = RunDir(tmp_path / "run")
    config = replace(config_of(deep, 24, stream), evaluation=EvaluationConfig(num_samples=4))
    plan = prepare(on_text(config, tmp_path), run, ())
    solve_by_turns(run, plan)
    solution = read_json(run.solution_path, "")
    uniform = {name: {"costs": {"weight_bits": float(name[3:])}} for name in plan.config.formats}
    write_json(run.solution_path, solution | {"budgets": {"weight_bits": 5.0}, "uniform": uniform})
    predicted = read_json(run.file("cost.json"), "")
    peaks = {
        "reround": peak_bytes(lambda: reround(run, "qep", None, lambda *_: None))[1],
        "evaluate": peak_bytes(lambda: evaluate(run))[1],
        "export": peak_bytes(lambda: export(run, "fake_quantized"))[1],
    }
    weights = 4 * sum(group.numel for group in plan.space.groups)
    for stage, peak in peaks.items():
        assert peak / PEAK_FACTOR < predicted[f"{stage}_peak_bytes"] < PEAK_FACTOR * peak
        share = (
            1.2 if stage == "reround" else 0.7
        )  # with matrices of as many rows as a weight has columns, in float64
        assert (peak < share * weights) == stream
    _, shared = peak_bytes(lambda: reround(run, "gptaq", None, lambda *_: None, InProcess()))
    assert shared < PEAK_FACTOR * predicted["reround_peak_bytes"]  # a worker's states are of fewer samples


def test_memory_of_reading_the_data_is_predicted_too(tmp_path: Path, deep):
    config = on_text(config_of(deep, 24), tmp_path, TEXT * 5)
    splits, peak = peak_bytes(lambda: load_splits(config))
    assert peak / PEAK_FACTOR < COPIES_READ * splits.pool_bytes < PEAK_FACTOR * peak
    assert splits.pool_bytes > 16 * 5 * 0.9 * len(TEXT)  # two numbers of 8 bytes a token


@pytest.mark.parametrize("stream", [False, True])
def test_memory_of_rounding_is_predicted_too(tmp_path: Path, deep, stream):
    run = RunDir(tmp_path / "run")
    config = replace(
        config_of(deep, 24, stream, probes=4), quantizer=Quantizer(rounding="gptq", group_size=32)
    )
    plan = prepare(config, run, ())
    predicted = read_json(run.file("cost.json"), "")
    first, *_ = units_of(plan)
    _, peak = peak_bytes(lambda: make_rounding_worker(run)(first))
    assert peak / PEAK_FACTOR < predicted["round_peak_bytes"] < PEAK_FACTOR * peak
    weights = 4 * sum(group.numel for group in plan.space.groups)
    assert (peak < weights) == stream  # all blocks in memory, or one
    assert (predicted["round_seconds"] is None) == stream


def test_seconds_are_the_sum_of_what_every_pass_and_every_worker_does():
    times = PartTimes(
        forward=1.0, blocks=0.5, leave=0.25, score=0.125, prepare=2.0, products=4.0, rounding=8.0, ranges=16.0
    )
    each = 1 + 2 + 4 + 2 * (0.25 + 0.125) + (1.0 + 0.5) * 0.5
    assert total_seconds(times, [1.0, 0.5], 3, keeps_rounded=False) == 3 * (each + 8) + 16
    assert total_seconds(times, [1.0, 0.5], 3, keeps_rounded=True) == 3 * each + 8 + 16


def test_memory_before_a_linear_head_is_predicted_too(tmp_path: Path, deep):
    settings = {"probes": 2, "loss_positions": 4}
    run = RunDir(tmp_path / "run")
    plan = prepare(config_of(deep, 48, **settings), run, ())
    _, peak = peak_bytes(lambda: [make_worker(run)(unit) for unit in plan.units[:1]])
    predicted = read_json(run.file("cost.json"), "")["peak_bytes"]
    assert peak / PEAK_FACTOR < predicted < PEAK_FACTOR * peak
    assert plan.facts["sensitivity.loss_positions"] == 4
    exact = prepare(config_of(deep, 48, probes=2), RunDir(tmp_path / "exact"), ())
    assert "sensitivity.loss_positions" not in exact.facts


def units_and_pools() -> nn.Module:
    """Convolutions of equal cost with pooling between them that keeps the size: eight layers, four with weights."""
    torch.manual_seed(0)
    unit = [nn.Conv2d(4, 4, 3, padding=1), nn.MaxPool2d(3, 1, 1)]
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.MaxPool2d(3, 1, 1), *unit, *unit, *unit[:1], nn.Flatten(),
        nn.Linear(256, 10)).eval().requires_grad_(False)  # fmt: skip


def test_shares_are_counted_in_the_blocks_that_run(tmp_path: Path):
    """Numbers of a list's modules are no numbers of blocks: a pool between two convolutions is no block of its own."""
    run = RunDir(tmp_path / "run")
    config = Config(
        ModelConfig(factory="tests.planning.test_cost_estimate:units_and_pools", device="cpu"),
        CalibrationConfig("hpcmpq.examples.digits:calibration", 4, held_out=2),
        formats=("int4",),
    )
    plan = prepare(config, run, ())
    predicted = read_json(run.file("cost.json"), "")
    assert predicted["engine"] == "wavefront"
    # The original once; then options that start at 0, 1/4, 1/2, 3/4 of the way at the earliest.
    passes = predicted["flops"] / (2 * 4 * sum(group.macs for group in plan.space.groups))
    assert 1.0 + 0.3 * len(plan.space.groups) < passes < 1.0 + len(plan.space.groups)
