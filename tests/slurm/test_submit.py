"""What is submitted, word for word; what is refused; status with and without a cluster."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from hpcmpq.batch.scheduler import JOBS
from hpcmpq.batch.status import read_status
from hpcmpq.batch.submit import make_files, make_jobs, submit_files
from hpcmpq.cli import app
from hpcmpq.cli.arguments import parse_part
from hpcmpq.errors import DamagedFile, UserError
from hpcmpq.plan import UnitOutcome, make_units, plan_to_json
from hpcmpq.slurm.chain import chain_script
from hpcmpq.slurm.settings import KEYS, one_rank_per_gpu, parse_settings
from hpcmpq.slurm.usage import read_usage
from hpcmpq.space import SearchSpace
from hpcmpq.store.attempts import recording
from hpcmpq.store.json_files import read_json, write_json
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.quadratic_file import write_quadratic
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.shards import Shard, write_shard
from hpcmpq.units import starting_from
from tests.executors.tiny_model import write_config
from tests.synthetic_run import synthetic_model, synthetic_plan

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).parent / "golden"
SCRIPTS = sorted(path for path in (ROOT / "slurm").rglob("*") if path.is_file())

CHAINS = {
    "mpi": (
        "mpi",
        [
            "partition=gpu",
            "account=abc nodes=4",
            "ntasks_per_node=8",
            "gpus_per_task=1",
            "solve.partition=cpu",
        ],
    ),
    "array": ("array", ["array=16%8", "time=1:00:00", "finish.gpus=2"]),
    "ray": ("ray", ["nodes=3", "gpus-per-node=4", "signal=B:USR2@300"]),
    "sharded": ("mpi", ["nodes=2", "ntasks_per_node=16 gpus_per_node=a100:4", "evaluate.time=2:00:00"]),
}


@pytest.mark.parametrize("name", CHAINS)
def test_the_chain_is_as_in_the_golden_file(name: str, tmp_path: Path):
    executor, texts = CHAINS[name]
    run, settings = RunDir(tmp_path / "run"), parse_settings(texts, executor)
    plan_from = tmp_path / "config.yaml" if name == "ray" else None
    jobs = make_jobs(
        run, executor, settings, refine=name != "ray", sharded=name == "sharded", plan_from=plan_from
    )
    script = chain_script(run, jobs)
    shown = script.replace(str(tmp_path), "/home/me").replace(sys.executable, "/home/me/venv/bin/python")
    assert shown == (GOLDEN / f"submit_{name}.sh").read_text()


@pytest.mark.parametrize(("refine", "reround"), [(True, True), (True, False), (False, False)])
def test_the_solution_is_rounded_again_after_it_is_refined(refine: bool, reround: bool, tmp_path: Path):
    settings = parse_settings(["partition=gpu", "gpus_per_task=1", "reround.time=1:00:00"], "mpi")
    jobs = make_jobs(RunDir(tmp_path), "mpi", settings, refine=refine, reround=reround)
    between = ["refine"] * refine + ["reround"] * reround
    assert [job.name for job in jobs] == ["calibrate", "solve", *between, "finish"]
    for job in jobs:
        if job.name == "reround":
            assert job.arguments == (str(tmp_path), "reround") and job.script == "solve.sbatch"
            assert job.options == {"partition": "gpu", "gpus": "1", "time": "1:00:00"}


@pytest.mark.parametrize("name", CHAINS)
def test_dry_run_prints_every_script_and_writes_nothing(name: str, tmp_path: Path):
    executor, texts = CHAINS[name]
    words = [word for text in texts for word in ("--slurm", text)]
    config = tmp_path / "config.yaml"
    engine = "deepspeed" if name == "sharded" else "torch"
    model, data = "hpcmpq.examples.digits:model", "hpcmpq.examples.digits:calibration"
    config.write_text(
        f'{{model: {{factory: "{model}"}}, calibration: {{data: "{data}"}}, evaluation: {{engine: {engine}}}}}'
    )
    command = ["submit", str(config), "--run-dir", str(tmp_path / "run"), "--executor", executor, "--dry-run"]
    result = CliRunner().invoke(app, [*command, *words])
    assert result.exit_code == 0, result.output
    sharded = name == "sharded"
    files = make_files(RunDir(tmp_path / "run"), config, executor, texts, False, refine=True, sharded=sharded)
    assert ("evaluate.sbatch" in files) is sharded
    for text in files.values():
        assert text in result.stdout
    assert not (tmp_path / "run").exists()


def test_a_sites_file_in_any_encoding_is_passed_on_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    site = tmp_path / "site.sh"
    site.write_bytes((ROOT / "slurm" / "env.sh").read_bytes() + b"# caf\xe9\n")
    fake_sbatch(tmp_path / "bin", "echo 1")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    run, config = RunDir(tmp_path / "run"), write_config(tmp_path / "config.yaml")
    files = make_files(run, config, "mpi", [f"env={site}"], False, refine=False)
    submit_files(run, files)
    assert (run.path / "slurm" / "env.sh").read_bytes() == site.read_bytes()
    words = ["submit", str(config), "--run-dir", str(run.path), "--slurm", f"env={site}", "--dry-run"]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0 and "submit solve" in shown.stdout, shown.output
    site.chmod(0)
    if not os.access(site, os.R_OK):
        with pytest.raises(UserError, match="cannot read .*site.sh: Permission denied"):
            make_files(run, config, "mpi", [f"env={site}"], False, refine=False)


def solve_call(executor: str, texts: list[str], solve_bytes: int, folder: Path) -> str:
    """What submits the job `solve`, on one line."""
    config = folder / "config.yaml"
    files = make_files(
        RunDir(folder / "run"), config, executor, texts, False, refine=False, solve_bytes=solve_bytes
    )
    lines = files["submit.sh"].replace(" \\\n   ", "").splitlines()
    return next(line for line in lines if line.startswith("submit solve"))


def test_solve_asks_for_the_memory_that_is_predicted_where_none_is_named(tmp_path: Path):
    assert "--mem" not in solve_call("mpi", [], 400_000_000, tmp_path)
    assert "--mem=9G" in solve_call("mpi", [], 7_000_000_000, tmp_path)
    assert "--mem=9G" in solve_call("mpi", ["calibrate.mem=64G"], 7_000_000_000, tmp_path)
    for texts in (["mem=2G"], ["solve.mem=2G"], ["solve.mem_per_cpu=2G"]):
        call = solve_call("mpi", texts, 7_000_000_000, tmp_path)
        assert "2G" in call and "9G" not in call


def test_submit_predicts_the_memory_of_solve_from_the_plan(tmp_path: Path):
    plan = synthetic_plan()
    space = SearchSpace(plan.space.groups * 20, plan.space.formats * 20)
    run = RunDir(tmp_path / "run")
    write_json(run.plan_path, plan_to_json(dataclasses.replace(plan, space=space)))
    config = tmp_path / "config.yaml"
    config.write_text(
        '{model: {factory: "hpcmpq.examples.digits:model"}, '
        'calibration: {data: "hpcmpq.examples.digits:calibration"}}'
    )
    command = ["submit", str(config), "--run-dir", str(run.path), "--dry-run", "--slurm", "partition=gpu"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    asked = re.findall(r"submit solve [^#]*?--mem=(\d+)G", result.stdout)
    assert len(asked) == 1 and 2 <= int(asked[0]) <= 8


@pytest.mark.parametrize(
    ("executor", "text", "message"),
    [
        ("mpi", "partitoin=gpu", "unknown Slurm setting 'partitoin'; did you mean 'partition'?"),
        ("mpi", "colour=red", "unknown Slurm setting 'colour'"),
        ("mpi", "later.time=10", "unknown Slurm setting 'later.time'"),
        ("mpi", "partition", "'partition' is not KEY=VALUE"),
        ("mpi", "time=", "'time=' is not KEY=VALUE"),
    ],
)
def test_a_bad_setting_is_refused_with_the_list_of_all(executor: str, text: str, message: str):
    with pytest.raises(UserError) as caught:
        parse_settings([text], executor)
    assert message in str(caught.value)
    assert all(key in str(caught.value) for key in (*KEYS, "env", "|".join(JOBS)))


def test_settings_that_do_not_fit_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="array needs --executor array, not mpi"):
        parse_settings(["array=4"], "mpi")
    with pytest.raises(UserError, match="unknown executor 'mpu'; known: mpi, ray, array, local"):
        parse_settings([], "mpu")
    with pytest.raises(
        UserError, match=r"--slurm account=o'neil time=1: no closing quotation; put a backslash"
    ):
        parse_settings(["account=o'neil", "time=1"], "mpi")
    assert parse_settings([r"account=o\'neil"], "mpi").options["solve"] == {"account": "o'neil"}
    with pytest.raises(UserError, match="no such file; copy slurm/env.sh"):
        parse_settings([f"env={tmp_path / 'mine.sh'}"], "mpi")


@pytest.mark.parametrize("stage", ["refine", "reround"])
def test_what_measures_is_shared_out_over_an_array_where_one_is_named(stage: str, tmp_path: Path):
    settings = parse_settings([f"{stage}.array=8%2", f"{stage}.mem=4G"], "mpi")
    jobs = {j.name: j for j in make_jobs(RunDir(tmp_path), "mpi", settings, refine=True, reround=True)}
    assert jobs[stage].script == "calibrate_array.sbatch"
    assert jobs[stage].arguments == (str(tmp_path), stage)
    assert jobs[stage].options == {"array": "0-7%2", "mem": "4G"}
    assert all("array" not in job.options for name, job in jobs.items() if name != stage)
    with pytest.raises(UserError, match="only calibrate, refine and reround are shared out over a job array"):
        parse_settings(["finish.array=8"], "array")


def test_settings_of_a_job_that_the_chain_lacks_are_refused(tmp_path: Path):
    for sharded, text in ((True, "finish.time=1"), (False, "evaluate.ntasks=4")):
        with pytest.raises(UserError, match="there is no job"):
            make_jobs(RunDir(tmp_path), "mpi", parse_settings([text], "mpi"), refine=False, sharded=sharded)


def test_evaluation_gets_a_rank_a_gpu_unless_told_otherwise():
    def evaluation(*texts: str) -> dict[str, str]:
        return dict(parse_settings(texts, "mpi").options["evaluate"])

    assert evaluation() == {"ntasks": "2"}
    assert evaluation("nodes=3 ntasks_per_node=8") == {"nodes": "3", "ntasks_per_node": "8"}
    assert evaluation("gpus=h100:6 ntasks=4") == {"gpus": "h100:6", "ntasks": "6"}
    assert evaluation("gres=gpu:2 nodes=2") == {"gres": "gpu:2", "nodes": "2", "ntasks_per_node": "2"}
    assert evaluation("gpus_per_task=1 ntasks=4") == {"gpus_per_task": "1", "ntasks": "4"}
    assert evaluation("gpus_per_node=4", "evaluate.ntasks=1 evaluate.gpus=1") == {"gpus": "1", "ntasks": "1"}
    assert one_rank_per_gpu({"gpus_per_node": "a100:2,h100:1"})["ntasks_per_node"] == "3"
    assert evaluation("gres=lscratch:100,gpu:a100:2(S:0-1)")["ntasks_per_node"] == "2"


def test_whoever_measures_gets_a_gpu_where_calibrate_alone_names_some():
    options = parse_settings(["calibrate.gpus_per_node=4", "nodes=2", "export.gpus=2"], "mpi").options
    assert {job: options[job].get("gpus") for job in ("solve", "refine", "reround", "finish", "export", "report")} == {
        "solve": None, "refine": "1", "reround": "1", "finish": "1", "export": "2", "report": None,
    }  # fmt: skip


def test_no_node_is_excluded_where_exclude_is_empty():
    options = parse_settings(["exclude=n[1-2]", "solve.exclude="], "mpi").options
    assert options["refine"] == {"exclude": "n[1-2]"} and options["solve"] == {}
    assert parse_settings(["exclude="], "mpi").options["refine"] == {}


def test_local_disks_are_no_gpus():
    options = parse_settings(["gres=lscratch:100 nodes=2 ntasks_per_node=8"], "mpi").options
    assert options["evaluate"] == {"gres": "lscratch:100", "nodes": "2", "ntasks_per_node": "8"}
    assert options["finish"] == options["refine"] == {}
    options = parse_settings(["gpus_per_node=4", "finish.gres=lscratch:100"], "mpi").options
    assert options["finish"] == {"gres": "lscratch:100", "gpus": "1"}


def test_a_site_file_takes_the_place_of_ours(tmp_path: Path):
    (tmp_path / "mine.sh").write_text("export SBATCH_PARTITION=mine\n")
    files = toy_files(RunDir(tmp_path / "run"), f"env={tmp_path / 'mine.sh'}")
    assert files["env.sh"] == "export SBATCH_PARTITION=mine\n"
    assert set(files) == {"env.sh", "submit.sh", "calibrate_array.sbatch", "solve.sbatch"}


def fake_sbatch(directory: Path, body: str) -> None:
    directory.mkdir(exist_ok=True)
    (directory / "sbatch").write_text(f"#!/bin/bash\n{body}\n")
    (directory / "sbatch").chmod(0o755)


def toy_files(run: RunDir, *texts: str) -> dict[str, str]:
    return make_files(run, Path("config.yaml"), "local", texts, False, refine=False)


def submit_toy(run: RunDir, path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setenv("PATH", f"{path}:/usr/bin:/bin")
    return submit_files(run, toy_files(run, "partition=a"))


def test_each_job_waits_for_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake_sbatch(tmp_path / "bin", f'echo "$@" >>{tmp_path}/calls; echo "$(wc -l <{tmp_path}/calls);cluster"')
    run = RunDir(tmp_path / "run")
    assert submit_toy(run, tmp_path / "bin", monkeypatch) == {"calibrate": "1", "solve": "2", "finish": "3"}
    calls = (tmp_path / "calls").read_text().splitlines()
    assert "--dependency" not in calls[0]
    assert "--dependency=afterok:1 --kill-on-invalid-dep=yes" in calls[1]
    assert "--dependency=afterok:2 --kill-on-invalid-dep=yes" in calls[2]
    submit_toy(run, tmp_path / "bin", monkeypatch)
    submissions = read_json(run.jobs_path, "")["submissions"]
    assert [entry["jobs"]["calibrate"] for entry in submissions] == ["1", "4"]


def test_a_refused_job_names_those_already_submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    count = f"echo x >>{tmp_path}/calls; [ $(wc -l <{tmp_path}/calls) = 1 ]"
    fake_sbatch(tmp_path / "bin", f'{count} && echo 17 || {{ echo "invalid qos" >&2; exit 1; }}')
    with pytest.raises(
        UserError, match=r"invalid qos; already submitted: calibrate 17, end them with scancel 17"
    ):
        submit_toy(RunDir(tmp_path / "run"), tmp_path / "bin", monkeypatch)


def test_without_slurm_it_says_where_to_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("bash", "sh", "env", "cat"):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).symlink_to(shutil.which(name) or "")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    run = RunDir(tmp_path / "run")
    with pytest.raises(UserError, match="no sbatch here; run `hpcmpq submit` on a login node"):
        submit_files(run, toy_files(run))


# --- status


def planned(path: Path) -> RunDir:
    run = RunDir(path)
    write_json(run.plan_path, plan_to_json(synthetic_plan()))
    return run


def finish(run: RunDir, number: int) -> None:
    plan = synthetic_plan()
    write_shard(run, Shard("sums", plan.units[number].id, plan.fingerprint, 1, 1, {}))


def test_status_counts_units_and_shows_failed_and_damaged_ones(tmp_path: Path):
    run, units = planned(tmp_path / "run"), synthetic_plan().units
    with recording(run) as record:
        for number in range(3):
            record(UnitOutcome(units[number], 0.5))
            finish(run, number)
        record(UnitOutcome(units[3], 0.0, "ValueError: not finite"))
        record(UnitOutcome(units[4], 0.0, "OSError: gone", final=False))
        record(UnitOutcome(units[4], 0.5))
        finish(run, 4)
    damaged = run.shard_path(units[1].id)
    damaged.write_bytes(damaged.read_bytes()[:-100])
    state = read_status(run)
    assert (state.num_done, state.num_units) == (3, len(units))
    assert state.failed == {str(units[3]): "ValueError: not finite"}
    assert [str(damaged) in sentence for sentence in state.damaged] == [True]
    assert state.units_per_s is not None
    assert state.seconds_left == pytest.approx((len(units) - 3) / state.units_per_s)
    shown = CliRunner().invoke(app, ["status", str(run.path)]).stdout
    for words in (
        "3 of 8 units",
        "units per hour",
        "left at that rate",
        "ValueError: not finite",
        "is damaged",
    ):
        assert words in shown


@pytest.mark.parametrize("held_out", [0, 4])
def test_status_waits_for_no_refinement_where_nothing_is_held_out(held_out: int, tmp_path: Path):
    run, plan = RunDir(tmp_path), synthetic_plan()
    calibration = dataclasses.replace(plan.config.calibration, held_out=held_out)
    config = dataclasses.replace(plan.config, calibration=calibration)
    write_json(run.plan_path, plan_to_json(dataclasses.replace(plan, config=config)))
    assert ("refine" in [stage.name for stage in read_status(run).stages]) is (held_out > 0)


def test_status_says_how_many_tokens_experts_were_given(tmp_path: Path):
    """Once calibration is reduced, where they were counted."""
    run = planned(tmp_path / "run")
    said = []
    for tokens_LE in (None, np.array([[300, 200], [7, 400]])):
        model = dataclasses.replace(synthetic_model(), tokens_LE=tokens_LE)
        write_quadratic(run.quadratic_path, model, model.linear_P, read_plan(run).fingerprint)
        assert read_status(run).expert_tokens == (() if tokens_LE is None else ((300, 200), (7, 400)))
        said.append(" ".join(CliRunner().invoke(app, ["status", str(run.path)]).stdout.split()))
    assert "experts" not in said[0]
    assert "experts: 7 to 400 calibration tokens" in said[1] and "1 had fewer than 100" in said[1]


def test_a_torn_record_loses_its_last_line_only(tmp_path: Path):
    run, units = planned(tmp_path / "run"), synthetic_plan().units
    with recording(run) as record:
        record(UnitOutcome(units[0], 0.5, "ValueError: no"))
        record(UnitOutcome(units[1], 0.5, "ValueError: no"))
    [path] = run.attempts_path.iterdir()
    path.write_text(path.read_text()[:-10])
    assert list(read_status(run).failed) == [str(units[0])]


def test_a_number_that_is_none_loses_its_line_only(tmp_path: Path):
    run, units = planned(tmp_path / "run"), synthetic_plan().units
    with recording(run) as record:
        record(UnitOutcome(units[0], 0.5))
        record(UnitOutcome(units[1], 0.25))
    [path] = run.attempts_path.iterdir()
    path.write_text(path.read_text().replace("0.25", "NaN"))
    assert read_status(run).units_per_s == pytest.approx(2.0)


@pytest.mark.parametrize("text", ["{", '{"submissions": []}', '{"submissions": [{"jobs": {}}]}', "[]"])
def test_damaged_jobs_hide_nothing_else(text: str, tmp_path: Path):
    run = planned(tmp_path / "run")
    finish(run, 0)
    run.jobs_path.write_text(text)
    state = read_status(run)
    assert (state.num_done, state.jobs) == (1, ())
    if text != '{"submissions": []}':
        [sentence] = state.damaged
        assert "jobs.json is damaged" in sentence and "move it away: the scheduler lists" in sentence
        with pytest.raises(DamagedFile, match="move it away"):
            read_usage(run)


def test_damaged_jobs_are_named_where_the_plan_is_a_job_too(tmp_path: Path):
    """`hpcmpq plan`, which a missing plan asks for otherwise, would be a second one beside the job's."""
    run = RunDir(tmp_path)
    run.jobs_path.write_text("{")
    shown = CliRunner().invoke(app, ["status", str(run.path)])
    assert shown.exit_code == 0, shown.output
    assert "jobs.json is damaged" in " ".join(shown.stdout.split())
    run.jobs_path.unlink()
    with pytest.raises(UserError, match=r"plan\.json is missing"):
        read_status(run)


def test_status_asks_squeue_and_then_sacct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = planned(tmp_path / "run")
    jobs = {"calibrate": "7", "solve": "8", "finish": "9"}
    write_json(run.jobs_path, {"submissions": [{"submitted": "", "jobs": jobs}]})
    assert [row[2] for row in read_status_with(tmp_path / "none", run, monkeypatch)] == [
        "unknown: no Slurm here"
    ] * 3
    fake = tmp_path / "bin"
    fake_sbatch(fake, "")
    (fake / "squeue").write_text('#!/bin/sh\nprintf "8|PENDING|Dependency\\n9|PENDING|Dependency\\n"\n')
    (fake / "sacct").write_text('#!/bin/sh\nprintf "7_0|COMPLETED\\n7_1|COMPLETED\\n7_2|FAILED\\n"\n')
    for name in ("squeue", "sacct"):
        (fake / name).chmod(0o755)
    assert read_status_with(fake, run, monkeypatch) == (
        ("calibrate", "7", "2 COMPLETED, 1 FAILED"),
        ("solve", "8", "PENDING (Dependency)"),
        ("finish", "9", "PENDING (Dependency)"),
    )


def read_status_with(
    path: Path, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> tuple[tuple[str, str, str], ...]:
    path.mkdir(exist_ok=True)
    if not (path / "sh").exists():
        (path / "sh").symlink_to("/bin/sh")
    monkeypatch.setenv("PATH", str(path))
    return read_status(run).jobs


def test_status_needs_no_torch(tmp_path: Path):
    run = planned(tmp_path / "run")
    code = f"import sys; sys.argv = ['hpcmpq', 'status', {str(run.path)!r}]\nfrom hpcmpq.cli import app\n"
    code += "try: app()\nexcept SystemExit: print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ
    )
    assert done.stdout.splitlines()[-1] == "False", done.stderr


# --- parts of a job array


def test_parts_start_apart_and_cover_everything():
    units = make_units("f", 3, 20, groups_per_unit=1, samples_per_unit=1)
    orders = [starting_from(units, units, index, 7) for index in range(7)]
    assert len({order[0].id for order in orders}) == 7
    for order in orders:
        assert sorted(unit.id for unit in order) == sorted(unit.id for unit in units)
    own = [order[: len(units) * (i + 1) // 7 - len(units) * i // 7] for i, order in enumerate(orders)]
    assert [unit for part in own for unit in part] == list(units)


@pytest.mark.parametrize("text", ["4/4", "1", "a/b", "-1/4", "1/0", "", "²/4", "1/④"])
def test_a_bad_part_is_refused(text: str):
    with pytest.raises(UserError, match="is not I/N"):
        parse_part(text)


# --- the scripts themselves


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_scripts_pass_shellcheck():
    done = subprocess.run(
        ["shellcheck", "-x", *map(str, SCRIPTS)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "script", [path for path in SCRIPTS if path.suffix == ".sbatch"], ids=lambda path: path.name
)
def test_batch_scripts_of_many_ranks_leave_their_number_to_the_caller(script: Path):
    # Slurm takes a line `--ntasks` of the script for the whole, and --ntasks-per-node for a mere maximum.
    many = script.name in ("calibrate_mpi.sbatch", "evaluate.sbatch")
    assert ("#SBATCH --ntasks" in script.read_text()) is not many


@pytest.mark.parametrize(
    "script", [path for path in SCRIPTS if path.suffix == ".sbatch"], ids=lambda path: path.name
)
def test_batch_scripts_name_no_site(script: Path):
    text = script.read_text()
    for word in ("--partition", "--account", "--qos", "--time", "module load", "apptainer"):
        assert word not in text
    assert "#SBATCH --requeue" in text
    assert "#SBATCH --open-mode=append" in text


def test_a_model_is_staged_once_and_again_when_it_changes(tmp_path: Path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_text("one")
    twice = 'stage_here "$1" "$copy"; stage_here "$1" "$copy"'
    code = f'. slurm/env.sh; copy=$(staged_name "$1"); {twice}; echo "$copy"'

    def stage() -> Path:
        done = subprocess.run(
            ["bash", "-euc", code, "bash", str(model)],
            cwd=ROOT,
            env={**os.environ, "HPCMPQ_SCRATCH": str(tmp_path / "scratch")},
            capture_output=True,
            text=True,
            check=True,
        )
        return Path(done.stdout.strip())

    first = stage()
    assert (first / "weights").read_text() == "one"
    assert stage() == first
    (model / "weights").write_text("another")
    second = stage()
    assert second != first
    assert (second / "weights").read_text() == "another"
    assert sorted(first.parent.iterdir()) == sorted([first, second])  # no half copies


def test_jobs_json_is_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake_sbatch(tmp_path / "bin", "echo 5")
    run = RunDir(tmp_path / "run")
    submit_toy(run, tmp_path / "bin", monkeypatch)
    [submission] = json.loads(run.jobs_path.read_text())["submissions"]
    assert submission["jobs"] == {"calibrate": "5", "solve": "5", "finish": "5"}
