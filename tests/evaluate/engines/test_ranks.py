"""One process of a step whose others do not come: alone where that can be, else one sentence within seconds."""

from pathlib import Path

import pytest

from hpcmpq.config import parse_config
from hpcmpq.errors import UserError
from hpcmpq.evaluate import evaluate
from hpcmpq.evaluate.engines.ranks import joined_ranks
from hpcmpq.executors import mpi_pool, world
from hpcmpq.executors.world import ALONE, find_world
from tests.evaluate.solved_runs import TINY_CONFIG, solved_run
from tests.executors.test_roll_call import SHELL, STEP

CONFIG = {"model": {"factory": "a:b", "device": "cpu"}, "calibration": {"data": "c:d"}}


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "has_terminal", lambda: True)
    for name, value in SHELL.items():
        monkeypatch.setenv(name, value)


def test_a_process_in_the_shell_of_a_step_evaluates_alone(shell: None, tmp_path: Path):
    run = solved_run(tmp_path / "run", TINY_CONFIG)
    assert find_world() == ALONE
    assert evaluate(run, "torch", find_world())["world_size"] == 1


def test_mpi_is_not_waited_for_there(shell: None):
    with pytest.raises(UserError, match="shell of `srun --pty`.* --executor local"), mpi_pool.open_pool(0):
        pass


def test_a_rank_whose_others_do_not_come_is_told_before_deepspeed_is_loaded(monkeypatch: pytest.MonkeyPatch):
    for name, value in {**STEP, "HPCMPQ_MEETING_S": "0.3"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("hpcmpq.evaluate.engines.ranks._load_deepspeed", lambda: pytest.fail("loaded"))
    expected = (
        "rank 0 of 8: 1 of 8 ranks are at 127.0.0.1:.* after 0.3 s; start all of them together with srun"
    )
    with pytest.raises(UserError, match=expected), joined_ranks(parse_config(CONFIG), find_world()):
        pass


def test_engine_torch_says_how_to_start_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = solved_run(tmp_path / "run", TINY_CONFIG)
    with pytest.raises(UserError, match="srun started 8 ranks .*; start one, also .* --ntasks=1 --overlap"):
        evaluate(run, "torch", find_world(STEP))
