"""Files that people have put into the directory of an export are not lost when it is written again."""

import json
import re
from pathlib import Path

import pytest

from hpcmpq.errors import UserError
from hpcmpq.export import EXPORTERS, export
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.sums import NAME
from tests.export.planned import llama, plan_run, solve_by_turns

pytestmark = pytest.mark.slow

REFUSED = "{} holds {}, which hpcmpq did not write there, or which was edited since"


def refused(directory: Path, names: str):
    return pytest.raises(UserError, match=re.escape(REFUSED.format(directory, names)))


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made, plan = plan_run(
        tmp_path, llama(num_hidden_layers=1), formats=["int4"], quantizer={"group_size": 32}
    )
    solve_by_turns(made, plan)
    return made


def contents(directory: Path) -> dict[str, bytes]:
    return {path.as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["fake_quantized", "gguf", "tool_configs"])
def test_an_export_with_files_of_others_is_refused_and_stays(run: RunDir, name: str):
    directory = run.checkpoint_path if name == "fake_quantized" else run.path / "exports" / name
    export(run, name, verify=False)
    export(run, name, verify=False)  # nothing is in its own way
    for place in ("notes.txt", ".git/HEAD", "adapter/adapter.safetensors"):
        (directory / place).parent.mkdir(exist_ok=True)
        (directory / place).write_text("mine")
    before = contents(run.path)
    with refused(directory, ".git/HEAD, adapter/adapter.safetensors, notes.txt"):
        export(run, name, verify=False)
    assert contents(run.path) == before
    for path in directory.rglob("*"):
        if path.is_file() and path.read_text(errors="replace") == "mine":
            path.unlink()
    export(run, name, verify=False)


def test_a_card_that_was_edited_stays(run: RunDir):
    export(run, "fake_quantized", verify=False)
    card = run.checkpoint_path / "README.md"
    card.write_text(card.read_text() + "My own words.\n")
    with refused(run.checkpoint_path, "README.md"):
        export(run, "fake_quantized", verify=False)
    assert card.read_text().endswith("My own words.\n")


def test_a_link_to_a_directory_is_somebodys(run: RunDir, tmp_path: Path):
    export(run, "fake_quantized", verify=False)
    (tmp_path / "elsewhere").mkdir()
    (run.checkpoint_path / "more").symlink_to(tmp_path / "elsewhere")
    with refused(run.checkpoint_path, "more"):
        export(run, "fake_quantized", verify=False)
    assert (run.checkpoint_path / "more").is_symlink()


def test_a_directory_that_was_never_exported_to_is_somebodys(run: RunDir, monkeypatch: pytest.MonkeyPatch):
    run.checkpoint_path.mkdir()
    (run.checkpoint_path / "model.safetensors").write_text("mine")
    monkeypatch.setitem(EXPORTERS, "fake_quantized", "nowhere:export")  # it is said before anything is made
    with refused(run.checkpoint_path, "model.safetensors"):
        export(run, "fake_quantized", verify=False)
    assert (run.checkpoint_path / "model.safetensors").read_text() == "mine"


@pytest.mark.parametrize(
    "damage", ["none", "half a list", "no list", "no verification", "an earlier version"]
)
def test_what_is_damaged_or_of_an_earlier_version_is_written_anew(run: RunDir, damage: str):
    export(run, "fake_quantized", verify=False)
    whole = contents(run.checkpoint_path)
    sums, said = run.checkpoint_path / NAME, run.checkpoint_path / "verification.json"
    if damage == "half a list":
        sums.write_bytes(sums.read_bytes()[:70])
    if damage == "no verification":
        said.write_text("[]")
    if damage in ("no list", "an earlier version"):
        sums.unlink()
    if damage == "an earlier version":
        values = json.loads(said.read_text())
        del values["cards"]
        said.write_text(json.dumps(values))
    (run.checkpoint_path / "config.json").write_text("{}")
    export(run, "fake_quantized", verify=False)
    assert contents(run.checkpoint_path) == whole
    if damage != "none":
        return
    sums.unlink()
    (run.checkpoint_path / "notes.txt").write_text("mine")
    with refused(run.checkpoint_path, "notes.txt"):
        export(run, "fake_quantized", verify=False)


def test_a_file_that_comes_while_an_export_is_written_stays(run: RunDir, monkeypatch: pytest.MonkeyPatch):
    export(run, "fake_quantized", verify=False)
    notes = run.checkpoint_path / "notes.txt"
    monkeypatch.setattr("hpcmpq.export.model_card.write_card", lambda *_: notes.write_text("mine"))
    with refused(run.checkpoint_path, "notes.txt"):
        export(run, "fake_quantized", verify=False)
    assert notes.read_text() == "mine"
    assert not list(run.path.glob(".*.partial"))
