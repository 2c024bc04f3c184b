"""Files appear whole, and what killed writers left goes away without touching what live ones write."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpcmpq.errors import UserError
from hpcmpq.store import whole_files
from hpcmpq.store.whole_files import ABANDONED_S, placing, remove_abandoned, replacing, replacing_directory

KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from hpcmpq.store.whole_files import replacing
with replacing(Path(sys.argv[1])) as attempt:
    attempt.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def partials(path: Path) -> list[Path]:
    return list(path.glob(".*.partial"))


def kill_writer(path: Path, program: str = KILLED_WRITER) -> None:
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", program, str(path)], cwd=root, check=False)


def test_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(path) as attempt:
        attempt.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and not partials(tmp_path)


def test_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ArithmeticError), replacing(path) as attempt:
        attempt.write_text("half")
        raise ArithmeticError
    assert path.read_text() == "old" and not partials(tmp_path)


@pytest.mark.parametrize("refused", [None, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK])
def test_of_two_files_that_are_placed_the_first_stays(refused: int | None, tmp_path, monkeypatch):
    """Also where there are no hard links."""

    def refuse(*_: object) -> None:
        raise OSError(refused, os.strerror(refused or 0))

    if refused is not None:
        monkeypatch.setattr(os, "link", refuse)
    with placing(tmp_path / "file") as late:
        late.write_text("late")
        with placing(tmp_path / "file") as first:
            first.write_text("first")
        assert (tmp_path / "file").read_text() == "first"
    assert (tmp_path / "file").read_text() == "first" and not partials(tmp_path)


@pytest.mark.parametrize("killed", [False, True])
def test_whoever_comes_second_waits_for_a_name_that_is_claimed(killed: bool, tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.touch()
    monkeypatch.setattr(whole_files.time, "sleep", lambda _s: None if killed else path.write_text("first"))
    with placing(path) as attempt:
        attempt.write_text("late")
    assert path.read_text() == ("" if killed else "first") and not partials(tmp_path)


def test_other_failures_of_a_link_are_said(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(UserError, match="No space left on device"), placing(tmp_path / "file") as attempt:
        attempt.write_text("")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_is_removed(tmp_path):
    kill_writer(tmp_path / "file")
    assert len(partials(tmp_path)) == 1 and not (tmp_path / "file").exists()
    assert remove_abandoned(tmp_path) == 1
    assert not partials(tmp_path)


def test_what_a_live_writer_writes_stays(tmp_path):
    with replacing(tmp_path / "file") as attempt:
        attempt.write_text("half")
        assert remove_abandoned(tmp_path) == 0
    assert (tmp_path / "file").exists()


def test_of_another_machine_only_old_files_are_removed(tmp_path):
    kill_writer(tmp_path / "file")
    (mine,) = partials(tmp_path)
    *start, _, random, end = mine.name.split(".")
    theirs = mine.rename(tmp_path / ".".join([*start, f"feedbeef-1-{os.getpid()}", random, end]))
    assert remove_abandoned(tmp_path) == 0
    old_s = theirs.stat().st_mtime - ABANDONED_S - 1
    os.utime(theirs, (old_s, old_s))
    assert remove_abandoned(tmp_path) == 1


@pytest.mark.parametrize("ahead_s", [2 * ABANDONED_S, -2 * ABANDONED_S])
def test_a_clock_that_is_hours_wrong_abandons_nobodys_file(tmp_path, monkeypatch, ahead_s: float):
    theirs = tmp_path / ".file.feedbeef-1-7.0123abcd.partial"
    theirs.write_text("half")  # dated by the file system, whose clock is right
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + ahead_s)
    assert remove_abandoned(tmp_path) == 0
    assert list(tmp_path.iterdir()) == [theirs]
    old_s = theirs.stat().st_mtime - ABANDONED_S - 1
    os.utime(theirs, (old_s, old_s))
    assert remove_abandoned(tmp_path) == 1
    assert not list(tmp_path.iterdir())


def test_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    refused = pytest.raises(
        UserError, match=r"cannot write .*file/inside: .*; move away what stands in its place"
    )
    with refused, replacing(tmp_path / "file" / "inside") as attempt:
        attempt.write_text("")


def test_directory_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "checkpoint"
    for content in ("old", "new"):
        with replacing_directory(path) as attempt:
            (attempt / "inside").mkdir()
            (attempt / "inside" / "file").write_text(content)
            assert not path.exists() or (path / "inside" / "file").read_text() == "old"
        assert (path / "inside" / "file").read_text() == content
        assert list(tmp_path.iterdir()) == [path]


def test_of_two_directories_at_once_the_last_stays(tmp_path):
    path = tmp_path / "checkpoint"
    with replacing_directory(path) as first, replacing_directory(path) as second:
        for attempt in (first, second):
            (attempt / "file").write_text(attempt.name)
    assert (path / "file").read_text() == first.name
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_in_the_place_of_a_directory_stays(tmp_path):
    path = tmp_path / "checkpoint"
    path.write_text("mine")
    refused = pytest.raises(
        UserError, match="checkpoint: a file has that name; move away what stands in its place"
    )
    with refused, replacing_directory(path):
        pytest.fail("it is said before anything is written")
    assert path.read_text() == "mine" and not partials(tmp_path)


def test_full_disk_leaves_the_old_directory_and_nothing_else(tmp_path):
    path = tmp_path / "checkpoint"
    path.mkdir()
    (path / "file").write_text("old")
    refused = pytest.raises(UserError, match=r"cannot write .*checkpoint: No space left on device; make room")
    with refused, replacing_directory(path) as attempt:
        (attempt / "file").write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert (path / "file").read_text() == "old" and not partials(tmp_path)


def test_directory_that_a_killed_writer_left_is_removed(tmp_path):
    killed = KILLED_WRITER.replace("replacing", "replacing_directory").replace(
        "attempt.write", "(attempt / 'x').write"
    )
    kill_writer(tmp_path / "checkpoint", killed)
    (left,) = partials(tmp_path)
    assert (left / "x").exists()
    assert remove_abandoned(tmp_path) == 1
    assert not partials(tmp_path)
