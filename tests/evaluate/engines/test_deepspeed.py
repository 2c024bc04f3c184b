"""DeepSpeed for real, on CPU: the numbers of plain torch under every launcher, with the model in pieces."""

import json
import os
import shutil
import signal
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from hpcmpq.evaluate import evaluate
from hpcmpq.store.run_dir import RunDir
from tests.evaluate.solved_runs import TEXT, TINY_CONFIG, assert_same, solved_run
from tests.executors.background import Background, wait_until
from tests.executors.launch import MARKS, MPIEXEC, run
from tests.executors.tiny_model import PAUSE_S

pytestmark = [
    pytest.mark.deepspeed,
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed"),
]
DEEPSPEED = Path(sys.executable).with_name("deepspeed")
HPCMPQ = [sys.executable, "-m", "hpcmpq", "evaluate"]


def measured(run_dir: RunDir, command: list[str]) -> dict[str, Any]:
    """evaluation.json that a command writes."""
    ended = run([*command, str(run_dir.path)])
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "never calibrated on" in ended.stdout
    assert ended.stdout.count("never calibrated on") == 1  # rank 0 alone speaks
    values: dict[str, Any] = json.loads(run_dir.evaluation_path.read_text())
    assert values["engine"] == "deepspeed"
    return values


def deepspeed_launcher(ranks: int) -> list[str]:
    port = str(29600 + os.getpid() % 300)
    return [
        *(str(DEEPSPEED), "--num_accelerators", str(ranks), "--master_port", port),
        "jobs/deepspeed_evaluate.py",
    ]


@MARKS["mpi"][-1]
def test_one_rank(tmp_path: Path):
    run_dir = solved_run(tmp_path / "run", TINY_CONFIG)
    plain = evaluate(run_dir)
    values = measured(run_dir, [str(MPIEXEC), "-n", "1", *HPCMPQ, "--engine", "deepspeed"])
    assert values["world_size"] == 1
    assert_same(values, plain)


def test_two_ranks_of_the_deepspeed_launcher(model_directory, tmp_path: Path):
    # Weights stored transposed, a head tied to the embedding, an odd number of chunks, rounded inputs, and codes
    # that were made before.
    config = {
        "model": {"path": str(model_directory("gpt2"))},
        "formats": ["int2", "w4a8"],
        "quantizer": {"rounding": "gptq", "symmetric": False},
        "evaluation": {"num_samples": 10},
    }
    run_dir = solved_run(tmp_path / "run", config, TEXT)
    plain = evaluate(run_dir)
    values = measured(run_dir, deepspeed_launcher(2))
    assert values["world_size"] == 2
    assert_same(values, plain)


@MARKS["mpi"][-1]
def test_two_ranks_of_mpiexec_hold_half_a_model_each(tmp_path: Path):
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=256, hidden_size=512, intermediate_size=1536, num_hidden_layers=16,
            num_attention_heads=8, max_position_embeddings=64, bos_token_id=None, eos_token_id=None,
        )
    )  # fmt: skip
    model.save_pretrained(tmp_path / "model", max_shard_size="60MB")
    config = {
        "model": {"path": str(tmp_path / "model")},
        "formats": ["int3", "int4"],
        "quantizer": {"range": "absmax"},
        "evaluation": {"num_samples": 4},
    }
    run_dir = solved_run(tmp_path / "run", config, TEXT)
    plain = evaluate(run_dir)
    del model
    values = measured(run_dir, [str(MPIEXEC), "-n", "2", *HPCMPQ, "--engine", "deepspeed"])
    assert values["world_size"] == 2
    assert_same(values, plain)
    assert values["model_bytes"] == plain["model_bytes"] > 200e6
    assert sum(values["shard_bytes"]) == pytest.approx(values["model_bytes"], rel=1e-3)
    # Pieces, one gathered layer, activations, and what DeepSpeed itself takes.
    assert max(values["peak_bytes"]) < values["model_bytes"]
    shutil.rmtree(tmp_path / "model")


@MARKS["mpi"][-1]
def test_two_ranks_with_matrices_cut_by_init_inference(tmp_path: Path):
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=256, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, bos_token_id=None, eos_token_id=None,
        )
    )  # fmt: skip
    model.save_pretrained(tmp_path / "model")
    config = {
        "model": {"path": str(tmp_path / "model")},
        "formats": ["int3", "int4"],
        "evaluation": {"num_samples": 6, "sharding": "tensor"},
    }
    run_dir = solved_run(tmp_path / "run", config, TEXT)
    plain = evaluate(run_dir)
    values = measured(run_dir, [str(MPIEXEC), "-n", "2", *HPCMPQ, "--engine", "deepspeed"])
    assert (values["world_size"], values["sharding"]) == (2, "tensor")
    assert_same(values, plain, absolute=2e-6)  # sums over parts of a dot product round differently
    assert max(values["shard_bytes"]) < 0.7 * values["model_bytes"]  # embedding and head stay whole


@MARKS["mpi"][-1]
def test_ranks_stop_together_and_one_rank_goes_on(tmp_path: Path):
    run_dir = solved_run(tmp_path / "run", TINY_CONFIG)
    plain = evaluate(run_dir)
    command = [*HPCMPQ, str(run_dir.path), "--engine", "deepspeed"]

    def chunks() -> list[Path]:
        return list(run_dir.path.glob("evaluation/*/*.npz"))

    with Background([str(MPIEXEC), "-n", "2", *command], **{PAUSE_S: "0.4"}) as background:
        wait_until(lambda: len(chunks()) >= 4, "some chunks are measured")
        ranks = [p for p in background.descendants() if b"hpcmpq" in Path(f"/proc/{p}/cmdline").read_bytes()]
        python = [p for p in ranks if b"mpiexec" not in Path(f"/proc/{p}/cmdline").read_bytes()]
        os.kill(max(python), signal.SIGUSR2)  # one rank alone, as batch systems may
        status, output = background.end()
    assert status == 75, output
    assert "interrupted (SIGUSR2)" in output and "Traceback" not in output
    kept = {path: path.read_bytes() for path in chunks()}
    assert 4 <= len(kept) < 54
    ended = run(command)
    assert ended.returncode == 0, ended.stderr
    values = json.loads(run_dir.evaluation_path.read_text())
    assert values["world_size"] == 1
    assert_same(values, plain)
    assert not chunks()
