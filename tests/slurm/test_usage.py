"""What `hpcmpq status --usage` makes of sacct's lines, in the form that Slurm 22.05 and 20.11 print them."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hpcmpq.cli import app
from hpcmpq.errors import UserError
from hpcmpq.report.findings import read_findings
from hpcmpq.report.stages import usage_table
from hpcmpq.slurm.usage import read_usage
from hpcmpq.store.json_files import read_json, write_json
from hpcmpq.store.run_dir import RunDir
from tests.synthetic_run import write_run

# calibrate: an array of two tasks, of which the second was requeued once; 4 tasks on 2 nodes peak at 3 GiB each.
LINES = """\
7_0|COMPLETED|3600|03:00:00|28800|2||| 8G|8|cpu=8,gres/gpu=4,node=2|7200|2026-11-28T10:00:00|2026-11-28T10:05:00
7_0.batch|COMPLETED|3600|00:00:01|14400|1|1|100K||4|cpu=4|0|2026-11-28T10:05:00|2026-11-28T10:05:00
7_0.0|COMPLETED|3590|02:59:59|28720|2|4|3145728K||8|cpu=8|0|2026-11-28T10:05:10|2026-11-28T10:05:10
7_1|REQUEUED|600|00:10:00|4800|2||| 8G|8|cpu=8,gres/gpu=4|0|2026-11-28T10:00:00|2026-11-28T10:07:00
7_1|COMPLETED|1800|01:00:00.500|14400|2||| 8G|8|cpu=8,gres/gpu=4|800|2026-11-28T10:17:00|2026-11-28T10:30:00
8|COMPLETED|60|00:30.000|240|1|||1000Mc|4|cpu=4|0|2026-11-28T10:00:00|2026-11-28T12:00:00
8.batch|COMPLETED|60|00:30.000|240|1|1|||4|cpu=4|0|2026-11-28T12:00:00|2026-11-28T12:00:00
9|PENDING|0|00:00:00|0|1||| 4G|0|||2026-11-28T10:00:00|Unknown
77|COMPLETED|9999|00:00:00|9999|1||| 4G|1|||2026-11-28T10:00:00|2026-11-28T10:00:00
""".replace("| ", "|")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    run = write_run(tmp_path / "run")
    write_json(run.jobs_path, {"submissions": [{"jobs": {"calibrate": "7", "solve": "8", "finish": "9"}}]})
    (tmp_path / "lines").write_text(LINES)
    (tmp_path / "sacct").write_text(
        f'#!/bin/sh\ncase "$*" in *--duplicates*7,8,9*) cat {tmp_path}/lines ;; esac\n'
    )
    (tmp_path / "sacct").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return run


def test_starts_tasks_and_steps_add_up_to_jobs(run: RunDir):
    calibrate, solve, finish = read_usage(run).jobs
    assert (calibrate.starts, calibrate.elapsed_s, calibrate.longest_s) == (3, 6000, 3600)
    assert calibrate.queued_s == 300
    assert calibrate.cpu_s == 3 * 3600 + 600 + 3600.5
    assert calibrate.allocated_cpu_s == 28800 + 4800 + 14400
    assert calibrate.peak_bytes == 2 * 3 * 2**30, "two tasks of 3 GiB on a node"
    assert calibrate.requested_bytes == 4 * 2**30, "8 GiB over two nodes"
    assert calibrate.gpu_hours == 4 * 6000 / 3600
    assert calibrate.energy_j == 8000
    assert calibrate.advice == "time=01:30:00 mem=8G"
    assert (solve.peak_bytes, solve.requested_bytes, solve.queued_s) == (None, 4 * 1000 * 2**20, 7200)
    assert solve.advice == "time=00:10:00" and solve.energy_j is None
    assert (finish.starts, finish.elapsed_s, finish.queued_s, finish.advice) == (0, 0, None, "")


def test_files_and_directories_are_counted(run: RunDir):
    before = read_usage(run)
    (run.path / "shards").mkdir()
    (run.path / "shards" / "a.h5").write_bytes(bytes(1000))
    usage_bytes = run.file("usage.json").stat().st_size
    after = read_usage(run)
    assert after.num_directories == before.num_directories + 1
    assert after.num_files == before.num_files + 2, "and usage.json, which the first call wrote"
    assert after.bytes == before.bytes + 1000 + usage_bytes


def test_command_prints_and_keeps_it_for_the_report(run: RunDir):
    done = CliRunner().invoke(app, ["status", str(run.path), "--usage", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["jobs"][0]["gpu_hours"] == pytest.approx(6.667, abs=1e-3)
    table = usage_table(read_findings(run))
    assert table is not None and [row[0] for row in table.rows] == ["calibrate", "solve", "finish"]
    assert table.rows[0][-1] == "time=01:30:00 mem=8G"


@pytest.mark.parametrize(
    "submissions", [[{"jobs": {"calibrate": "1007", "solve": "1008"}}], []], ids=["other jobs", "none"]
)
def test_what_jobs_of_another_run_used_is_not_reported_as_this_ones(
    run: RunDir, submissions: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
):
    read_usage(run)
    earlier = read_json(run.jobs_path, "")["submissions"]
    write_json(run.jobs_path, {"submissions": [*earlier, *submissions]})
    assert usage_table(read_findings(run)) is not None, "of an earlier submission of this run"
    write_json(run.jobs_path, {"submissions": submissions})
    assert usage_table(read_findings(run)) is None
    assert (
        f"usage.json is of jobs that were not submitted for this run; run `hpcmpq status {run.path} --usage`"
        in caplog.text
    )


def test_no_accounting_and_no_jobs_are_sentences(run: RunDir, tmp_path: Path):
    (tmp_path / "sacct").write_text("#!/bin/sh\necho Slurm accounting storage is disabled >&2; exit 1\n")
    with pytest.raises(UserError, match="nothing on jobs 7, 8, 9: Slurm accounting storage is disabled"):
        read_usage(run)
    run.jobs_path.unlink()
    with pytest.raises(UserError, match="`hpcmpq submit` does that"):
        read_usage(run)
