"""What every command promises: an example in its help, --json that is one document, --quiet that is silence."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from hpcmpq.cli import app
from hpcmpq.doctor import Diagnosis
from hpcmpq.errors import Interrupted
from hpcmpq.store.json_files import read_json
from hpcmpq.store.run_dir import RunDir
from tests.calling import Call
from tests.executors.launch import ROOT, environment
from tests.executors.tiny_model import write_config
from tests.synthetic_run import write_run

pytestmark = pytest.mark.slow

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunDir, str]:
    """Config and directory of a run of every stage, and the document that it printed."""
    folder = tmp_path_factory.mktemp("command_line")
    config = write_config(folder / "config.yaml")
    text = config.read_text().replace("[int2, int4]", "[int2, bf16]")  # one that has kernels for `time`
    config.write_text(text + "timing: {rounds: 2}\n")
    command = [
        sys.executable,
        "-m",
        "hpcmpq",
        "run",
        str(config),
        "--run-dir",
        str(folder / "run"),
        "--json",
        "--workers=1",
    ]
    ended = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=200, check=True
    )
    assert "predicted kl" in ended.stderr
    return config, RunDir(folder / "run"), ended.stdout


GOOD = {
    "compare": "compare RUN RUN",
    "doctor": "doctor --directory FOLDER",
    "plan": "plan CONFIG --run-dir RUN --workers 4",
    "calibrate": "calibrate RUN",
    "reduce": "reduce RUN",
    "solve": "solve RUN --budget weight_bits=9",
    "refine": "refine RUN --workers 1",
    "reround": "reround RUN --workers 1",
    "frontier": "frontier RUN --from 4 --to 8 --step 2",
    "time": "time RUN",
    "export": "export RUN",
    "evaluate": "evaluate RUN",
    "report": "report RUN",
    "status": "status RUN",
    "track": "track RUN --directory FOLDER",
    "submit": "submit CONFIG --run-dir RUN --dry-run",
    "init": "init MODEL --output NEW",
}
"""A call of each command that succeeds; `run` is tested by the fixture."""

KEYS = {
    "compare": {
        "settings",
        "budgets",
        "costs",
        "losses",
        "evaluation",
        "formats",
        "notes",
        "num_shared_groups",
    },
    "plan": {
        "plan",
        "num_groups",
        "num_weights",
        "num_options",
        "num_units",
        "fingerprint",
        "predictions",
        "recommended",
    },
    "calibrate": {"num_units", "num_done"},
    "reduce": {"quadratic", "objective", "loss0", "num_samples", "asymmetry"},
    "solve": {"assignment", "objective", "bound", "gap", "termination", "costs", "seconds", "predicted_loss"},
    "refine": {"assignment", "expected_loss", "measured_loss", "refine"},
    "reround": {"assignment", "reround"},
    "frontier": {"points"},
    "time": {"phases"},
    "export": {"exports"},
    "evaluate": {"loss", "kl", "num_tokens", "engine", "world_size"},
    "report": {"report"},
    "track": {"directory", "run_id"},
    "status": {"stages", "num_units", "num_done", "failed", "jobs"},
    "submit": {"files"},
    "init": {"config", "num_groups", "num_weights"},
}

BAD = {
    name: text.replace("RUN", "/nowhere").replace("CONFIG", "/nowhere.yaml") for name, text in GOOD.items()
}
BAD["demo"] = "demo --run-dir /dev/null/demo"
BAD["run"] = "run /nowhere.yaml --run-dir /nowhere"
BAD["init"] = "init /nowhere --output /nowhere.yaml"
BAD["doctor"] = "doctor --directory /nowhere --fast"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_ends_with_an_example_that_parses(name: str):
    command, example = COMMANDS[name], str(COMMANDS[name].epilog)
    assert example.startswith("Example: ") and f"hpcmpq {name} " in example
    words = shlex.split(example.split(f"hpcmpq {name} ")[1].split(";")[0])
    command.make_context(name, words)
    assert command.help


@pytest.mark.parametrize("name", COMMANDS)
def test_errors_are_one_document_with_the_same_status(name: str, call: Call):
    words = shlex.split(BAD[name])
    plain, silent, document = call(*words), call(*words, "--quiet"), call(*words, "--json")
    assert plain.status == silent.status == document.status == 2
    error = json.loads(document.out)["error"]
    assert error["exit_status"] == 2 and error["message"] in " ".join(document.err.split())
    assert silent.out == ""
    assert silent.err


def test_run_prints_one_document(finished: tuple[Path, RunDir, str]):
    _, run, printed = finished
    values = json.loads(printed)
    assert set(values) == {"run", "solution", "evaluation", "report"}
    assert values["evaluation"] == read_json(run.evaluation_path, "")


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("run", "demo")])
def test_commands_print_one_document_or_nothing(
    name: str,
    finished: tuple[Path, RunDir, str],
    call: Call,
    model_directory: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    config, run, _ = finished
    monkeypatch.setattr("hpcmpq.cli.doctor.examine", lambda _: [Diagnosis("Python", "ok", "3.11")])
    monkeypatch.setattr("hpcmpq.tracking.mlflow_runs.track", lambda run, directory: "0123")

    def words(new: str) -> list[str]:
        places = {"CONFIG": config, "RUN": run.path, "FOLDER": tmp_path, "NEW": tmp_path / new}
        if name == "init":
            places["MODEL"] = model_directory("llama")
        return [str(places.get(word, word)) for word in shlex.split(GOOD[name])]

    document = call(*words("a.yaml"), "--json")
    assert document.status == 0, document.err
    values = json.loads(document.out)
    if name == "doctor":
        assert {"name", "state", "found", "fix", "needed"} == set(values[0])
    else:
        assert KEYS[name] <= set(values)
    assert document.err  # what people read goes there
    silent = call(*words("b.yaml"), "--quiet")
    assert silent == (0, "", "")


def test_no_assignment_and_interruptions_keep_their_status(
    finished: tuple[Path, RunDir, str], call: Call, monkeypatch: pytest.MonkeyPatch
):
    _, run, _ = finished
    infeasible = call("solve", run.path, "--budget", "weight_bits=1", "--json")
    assert infeasible.status == json.loads(infeasible.out)["error"]["exit_status"] == 3

    def interrupted(*_: object) -> None:
        raise Interrupted("SIGTERM")

    monkeypatch.setattr("hpcmpq.refine.stage.refine", interrupted)
    stopped = call("refine", run.path, "--json")
    assert stopped.status == json.loads(stopped.out)["error"]["exit_status"] == 75


def test_words_that_are_no_command_are_errors_too(call: Call):
    assert json.loads(call("slove", "--json").out)["error"]["type"]
    assert call("slove").status == call("slove", "--json").status == 2


def test_what_a_model_prints_is_not_in_the_document(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "loud.py").write_text(
        "import os\nfrom tests.executors.tiny_model import model as quiet\n"
        "def model():\n    print('hello')\n    os.write(1, b'from below\\n')\n    return quiet()\n"
    )
    text = write_config(tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace("tests.executors.tiny_model:model", "loud:model"))
    document = call("plan", tmp_path / "config.yaml", "--run-dir", tmp_path / "run", "--json")
    assert document.status == 0 and json.loads(document.out)["num_groups"] == 3
    assert "hello" in document.err and "from below" in document.err


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_signal_while_a_model_loads_is_no_failure_of_the_model(
    call: Call, tmp_path: Path, flags: list[str]
):
    (tmp_path / "signalled.py").write_text(
        "import signal\ndef model():\n    signal.raise_signal(signal.SIGUSR2)\n"
    )
    text = write_config(tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace("tests.executors.tiny_model:model", "signalled:model"))
    ended = call("plan", tmp_path / "config.yaml", "--run-dir", tmp_path / "run", *flags)
    assert ended.status == 75
    assert "interrupted (SIGUSR2); run the same command" in ended.err


def test_what_is_still_in_a_buffer_is_not_in_the_document():
    code = (
        "import ctypes, sys\nfrom hpcmpq.cli.json_output import described\nkept = sys.stdout\n"
        "def noisy() -> dict[str, int]:\n    kept.write('kept')\n"
        "    ctypes.CDLL(None).printf(b'buffered')\n    return {'answer': 1}\n"
        "described(noisy)(as_json=True, quiet=False)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**environment(), "PYTHONUNBUFFERED": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(ended.stdout) == {"answer": 1}
    assert "kept" in ended.stderr and "buffered" in ended.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("compare RUN RUN --json", 141),
        ("compare RUN RUN", 141),
        ("compare --help", 141),
        ("compare RUN /nowhere --json", 2),
    ],
)
def test_output_that_nobody_reads_ends_quietly(words: str, status: int, unbuffered: str, tmp_path: Path):
    run = write_run(tmp_path / "run")
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "hpcmpq", *words.replace("RUN", str(run.path)).split()],
            cwd=ROOT,
            env={**environment(), "PYTHONUNBUFFERED": unbuffered},
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writer)
    assert ended.returncode == status, ended.stderr
    assert "Traceback" not in ended.stderr and "Broken" not in ended.stderr


def test_streams_that_the_shell_closed_are_no_error(tmp_path: Path):
    run = write_run(tmp_path / "run")
    compare = f"{sys.executable} -m hpcmpq compare {run.path} {run.path} --json <&- >&-"
    ended = subprocess.run(
        ["sh", "-c", compare], cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (0, ""), ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_broken_pipe_to_a_worker_is_a_bug_of_ours(call: Call, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("hpcmpq.cli.doctor.examine", broken)
    for flags in ([], ["--json"]):
        with pytest.raises(BrokenPipeError):
            call("doctor", *flags)
