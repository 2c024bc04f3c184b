"""Evaluation with the model sharded over the ranks of a real Slurm job."""

import json
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from hpcmpq.evaluate import evaluate
from tests.evaluate.solved_runs import TEXT, assert_same, solved_run

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.deepspeed
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")
def test_ranks_on_two_nodes_find_what_one_process_does(
    cluster: dict[str, str], model_directory, tmp_path: Path
):
    config = {
        "model": {"path": str(model_directory("llama"))},
        "formats": ["int2", "int4"],
        "quantizer": {"rounding": "gptq", "symmetric": False},
    }
    run_dir = solved_run(tmp_path / "run", config, TEXT)
    plain = evaluate(run_dir)
    # Both nodes are this machine, and no name of theirs leads to it.
    environment = {**cluster, "MASTER_ADDR": "127.0.0.1"}
    command = ["sbatch", "--wait", "--nodes=2", "--ntasks=2", "--time=5", "--output", str(tmp_path / "log")]
    ended = subprocess.run(
        [*command, "slurm/evaluate.sbatch", str(run_dir.path)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr + (tmp_path / "log").read_text()
    values = json.loads(run_dir.evaluation_path.read_text())
    assert (values["engine"], values["world_size"]) == ("deepspeed", 2)
    assert_same(values, plain)
