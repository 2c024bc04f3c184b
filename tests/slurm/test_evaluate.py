"""Evaluation with the model sharded over the ranks of real Slurm jobs."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from hpcmpq.evaluate import evaluate
from tests.evaluate.solved_runs import TINY_CONFIG, assert_same, solved_run
from tests.slurm.conftest import refusal
from tests.slurm.toy_jobs import ToyRun, jobs_in, output, toy_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.deepspeed,
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed"),
]


def test_a_chain_whose_evaluation_is_sharded_and_interrupted(cluster: dict[str, str], tmp_path: Path):
    # Nodes that are no hosts are this machine, and no name of theirs leads to it.
    address = {"MASTER_ADDR": "127.0.0.1"} if refusal(cluster) else {}
    toy = toy_run(tmp_path / "toy", {**cluster, **address}, unit_s=1.0)
    text = toy.config.read_text().replace("num_samples: 32", "num_samples: 4")
    sharded = 'evaluation: {data: "tests.slurm.slow_toy:more_samples", engine: deepspeed, num_samples: 20}'
    toy.config.write_text(f"{text}\n{sharded}\n")
    settings = ["--slurm", "array=2", "--slurm", "evaluate.nodes=2 evaluate.ntasks_per_node=1"]
    shown = toy.hpcmpq(*("submit", toy.config, "--run-dir", toy.run.path, "--executor", "array", *settings))
    jobs = jobs_in(shown)
    assert list(jobs) == ["calibrate", "solve", "export", "evaluate", "report"]
    try:
        toy.wait_for(lambda: len(list(toy.run.path.glob("evaluation/*/*.npz"))) >= 3)
        assert toy.field(jobs["export"], "JobState") == "COMPLETED"
        assert toy.field(jobs["report"], "Dependency").startswith(f"afterok:{jobs['evaluate']}")
        output(["scancel", "--batch", "--signal=USR2", jobs["evaluate"]], cluster)
        toy.wait_for_job(jobs["evaluate"], "PENDING")
        assert toy.field(jobs["report"], "JobState") == "PENDING" and not toy.run.report_path.exists()
        toy.start_again(jobs["evaluate"])
        toy.wait_for_job(jobs["report"], "COMPLETED", "CANCELLED", "FAILED")
        assert toy.field(jobs["report"], "JobState") == "COMPLETED", toy.log()
        assert toy.field(jobs["evaluate"], "Restarts") == "1"
    finally:
        toy.cancel()
    assert "interrupted (SIGUSR2)" in toy.log() and "is back in the queue" in toy.log()
    values = json.loads(toy.run.evaluation_path.read_text())
    assert (values["engine"], values["world_size"], values["num_samples"]) == ("deepspeed", 2, 20)
    assert_same(values, evaluate(toy.run, "torch"))


def test_one_rank_under_srun_finds_what_one_process_does(cluster: dict[str, str], tmp_path: Path):
    run_dir = solved_run(tmp_path / "run", TINY_CONFIG)
    plain = evaluate(run_dir)
    command = ["sbatch", "--parsable", "--ntasks=1", "--time=5", "--output", str(tmp_path / "log")]
    job = output([*command, "slurm/evaluate.sbatch", str(run_dir.path)], cluster).strip()
    toy = ToyRun(run_dir, tmp_path, cluster)
    toy.wait_for_job(
        job, "COMPLETED", "CANCELLED", "FAILED", "TIMEOUT"
    )  # `sbatch --wait` looks every 30 seconds
    assert toy.field(job, "JobState") == "COMPLETED", (tmp_path / "log").read_text()
    values = json.loads(run_dir.evaluation_path.read_text())
    assert (values["engine"], values["world_size"]) == ("deepspeed", 1)
    assert_same(values, plain)
