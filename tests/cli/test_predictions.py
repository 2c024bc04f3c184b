"""`hpcmpq plan --workers` of runs that make codes or look through all options before they measure."""

import json
import re
from pathlib import Path

import pytest

from hpcmpq.api import stages
from hpcmpq.executors.in_process import InProcess
from hpcmpq.store.run_dir import RunDir
from tests.calling import Call
from tests.executors.tiny_model import write_config

pytestmark = pytest.mark.slow


def asked(call: Call, config: Path, run: Path) -> dict | str:
    """What is predicted, or the command that has to run first."""
    ended = call("plan", config, "--run-dir", run, "--workers", 4, "--json")
    if ended.status == 0:
        return json.loads(ended.out)
    assert ended.status == 2 and "Traceback" not in ended.err
    return re.findall(r"run `hpcmpq (calibrate [^`]*)`", ended.err)[-1]


@pytest.mark.parametrize("kind", ["rounded", "screened"])
def test_what_comes_before_measuring_is_done_by_the_command_that_is_named(
    kind: str, call: Call, tmp_path: Path
):
    config, run = write_config(tmp_path / "config.yaml", "hessian"), tmp_path / "run"
    if kind == "screened":
        config = write_config(config)
        text = config.read_text().replace("formats: [int2, int4]", "formats: [int2, int3, int4, int8]")
        config.write_text(text.replace("groups_per_unit: 1", "groups_per_unit: 1, screen: true"))
    first = asked(call, config, run)
    assert first == f"calibrate {run} --at-most 3", "three units of codes, or of the first pass"
    given: dict = {"run": RunDir(run), "pool": InProcess(), "on_outcome": lambda *_: None, "at_most": 3}
    assert stages.round_options(**given)
    stages.calibrate(**given)
    found = asked(call, config, run)
    assert isinstance(found, dict) and found["recommended"]["num_workers"] >= 1
    assert len(found["predictions"]) == 3
