"""What holds one value is given once: of two the first would be dropped, and the command still end with 0."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from hpcmpq.cli import app
from hpcmpq.errors import UserError, exit_status
from tests.synthetic_run import write_run

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
MANY = {"--budget", "--slurm", "--pbs"}
"""Options that the documentation repeats."""


def places(command: str) -> list[str]:
    """Something for each argument that a command wants."""
    return [p.name for p in COMMANDS[command].params if p.param_type_name == "argument"]


def wanted(command: str, but: str) -> list[str]:
    """Options without which a command does not start, other than one."""
    needed = [p.opts[0] for p in COMMANDS[command].params if p.param_type_name == "option" and p.required]
    return [word for option in needed if option != but for word in (option, "place")]


OPTIONS = [
    (command, parameter.opts[0])
    for command, made in COMMANDS.items()
    for parameter in made.params
    if parameter.param_type_name == "option" and not parameter.is_flag and parameter.opts[0] not in MANY
]


def test_options_of_one_value_are_found():
    assert {("export", "--format"), ("solve", "--time-limit")} <= set(OPTIONS)
    assert len(OPTIONS) > 40


@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_an_option_of_one_value_is_refused_the_second_time(command: str, option: str):
    words = [command, *places(command), *wanted(command, option)]
    ended = CliRunner().invoke(app, [*words, option, "1", f"{option}=1"])
    assert isinstance(ended.exception, UserError), ended.output
    assert exit_status(ended.exception) == 2
    assert str(ended.exception) == f"{option} is given 2 times and takes one value; give it once"


def test_flags_and_options_of_many_values_are_repeated(tmp_path: Path):
    run = write_run(tmp_path / "run")
    words = ["solve", str(run.path), "--budget", "weight_bits=3", "--budget", "bops=1e12"]
    ended = CliRunner().invoke(app, [*words, "--time-limit", "1", "--quiet", "--quiet"])
    assert ended.exit_code == 0, ended.output


def test_help_is_shown_whatever_is_given_twice():
    ended = CliRunner().invoke(app, ["export", "--format", "gguf", "--format", "mlx", "--help"])
    assert ended.exit_code == 0 and "fake_quantized" in ended.output


@pytest.mark.parametrize("again", ["partition=gpu partition=cpu", "solve.mem=4G solve.mem=4G"])
def test_a_setting_of_jobs_is_refused_the_second_time(tmp_path: Path, again: str):
    words = ["submit", "configs/digits.yaml", "--run-dir", str(tmp_path / "run"), "--dry-run"]
    for texts in ([again], again.split()):
        ended = CliRunner().invoke(app, [*words, *(word for text in texts for word in ("--slurm", text))])
        assert isinstance(ended.exception, UserError), ended.output
        name = again.partition("=")[0]
        assert f"--slurm {name} is given more than once; give it one value" == str(ended.exception)


def test_the_solve_path_of_its_own_takes_a_value_once(tmp_path: Path):
    words = [sys.executable, "-m", "hpcmpq.solve", str(tmp_path), "--solver", "greedy", "--solver", "linear"]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "--solver is given again and takes one value; give it once" in ended.stderr
