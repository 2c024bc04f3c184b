"""The shell of a real `srun --pty` on several tasks is one process; what `srun` starts inside it is not."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SHOW = "from hpcmpq.executors.world import find_world; print('there are', find_world().size)"


def test_a_shell_is_alone_and_tasks_inside_are_together(cluster: dict[str, str], tmp_path: Path):
    inside = tmp_path / "inside.sh"
    show = f'{sys.executable} -c "{SHOW}"'
    inside.write_text(f"{show}\nsrun --overlap --ntasks=2 {show} </dev/null\n")
    command = ["srun", "--ntasks=3", "--overcommit", "--pty", "bash", str(inside)]
    in_a_terminal = f"import pty, sys; sys.exit(pty.spawn({command!r}))"
    done = subprocess.run(
        [sys.executable, "-c", in_a_terminal],
        env=cluster, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    found = [line[-1] for line in done.stdout.splitlines() if line.startswith("there are")]
    assert found == ["1", "2", "2"], done.stdout + done.stderr
