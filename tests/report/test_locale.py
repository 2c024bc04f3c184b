"""A machine whose locale is not UTF-8 gets the same files, and question marks on its terminal."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.executors.launch import ROOT
from tests.synthetic_run import write_run

pytestmark = pytest.mark.slow

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_report_in_an_ascii_locale_is_utf_8(tmp_path: Path):
    run = write_run(tmp_path / "läufe" / "rün", evaluated=True)
    command = [sys.executable, "-m", "hpcmpq", "report", str(run.path)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **ASCII}, capture_output=True, encoding="ascii", check=False
    )
    assert done.returncode == 0, done.stderr
    assert "report in" in done.stdout
    page = run.report_path.read_text(encoding="utf-8")
    assert "×" in page and "rün" in page
    assert all(path.read_text(encoding="utf-8") for path in (run.path / "report").glob("*.csv"))
