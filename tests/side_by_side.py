"""Which tests run side by side: pytest's hooks, for `tests/conftest.py`.

Three workers of pytest-xdist share all tests, one more than a small machine has cores: a job in Slurm's queue, a Ray
that starts and ranks that meet are waited for; with four, two cores took longer. Tests that need the same thing stay in
one worker, in order: there is one Ray, one Slurm and one MPI launcher at a time, each ends with its last test, and what
tests of a file share is made once.

Workers tell the scheduler of their groups in a file: `--dist loadgroup` of pytest-xdist 3.8 writes them into names of
tests, where pytest 9.2 no longer looks, and so keeps nothing together.
"""

import fcntl
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NUM_WORKERS, NUM_QUICK_WORKERS = 3, 2
"""Of about 1 GiB each; quick tests wait for nothing."""

LAUNCHED = {"slurm": ("cluster",), "ray": ("ray",), "mpi": ("mpi", "deepspeed"), "pages": ("started_once",)}
"""{group: fixtures or markers of its tests}; the longest waits come first."""

NOT_QUICK = ("slow", "browser")

_FOLDER = pytest.StashKey[tempfile.TemporaryDirectory]()
_OPEN = pytest.StashKey[list[pytest.FixtureDef]]()
"""Launchers that may be there."""


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """None of them, but this process, for files that are named: nothing is gained by starting Python twice more."""
    if all(Path(argument.split("::")[0]).is_file() for argument in config.args):
        return 0
    return NUM_QUICK_WORKERS if config.getoption("markexpr") == "quick" else NUM_WORKERS


def only_deals_out(config: pytest.Config) -> bool:
    """Whether tests run in workers of this process, and none here."""
    return not (
        hasattr(config, "workerinput")
        or config.getoption("dist", "no") == "no"
        or config.getoption("collectonly")
    )


def pytest_configure_node(node: Any) -> None:
    """Tell a worker where to write its groups."""
    stash = node.config.stash
    if _FOLDER not in stash:
        stash[_FOLDER] = tempfile.TemporaryDirectory(prefix="hq")
        node.config.add_cleanup(stash[_FOLDER].cleanup)
    node.workerinput["groups"] = f"{stash[_FOLDER].name}/groups.json"


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A scheduler that gives groups to workers, in the order of their first tests."""
    from xdist.scheduler.loadscope import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        known: dict[str, str] = {}

        def _split_scope(self, nodeid: str) -> str:
            if not self.known:
                self.known |= json.loads(Path(config.stash[_FOLDER].name, "groups.json").read_text())
            return self.known[nodeid]

    return Groups(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the quick tests, and let workers begin with what takes longest."""
    groups = {item: group_of(item) for item in items}
    for item, group in groups.items():
        if group not in LAUNCHED and not any(map(item.get_closest_marker, NOT_QUICK)):
            item.add_marker("quick")
    if not hasattr(config, "workerinput"):
        return
    slow = {group for item, group in groups.items() if item.get_closest_marker("slow")}
    turns = {group: turn for turn, group in enumerate(LAUNCHED)}

    def turn(item: pytest.Item) -> tuple[int, bool]:
        """Of its group, and in it last what needs a launcher of another group, which has ended by then."""
        others = LAUNCHED.keys() - {groups[item]}
        return turns.get(groups[item], len(turns) + (groups[item] not in slow)), any(
            map(item.get_closest_marker, others)
        )

    items.sort(key=turn)
    # All workers write the same, each its own file first.
    path = Path(config.workerinput["groups"])
    own = path.with_name(config.workerinput["workerid"])
    own.write_text(json.dumps({item.nodeid: group for item, group in groups.items()}))
    own.replace(path)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """End a launcher with the last test of its group: idle, it would take time from all others."""
    open_ones = item.config.stash.setdefault(_OPEN, [])
    for name in ("ray_cluster", "cluster", "started_once"):
        open_ones += item._fixtureinfo.name2fixturedefs.get(name, ())
    yield
    if (group := group_of(item)) in LAUNCHED and (nextitem is None or group_of(nextitem) != group):
        while open_ones:
            open_ones.pop().finish(item._request)


@contextmanager
def the_only(config: pytest.Config, launcher: str) -> Iterator[None]:
    """Inside, no other worker that asks for it has this launcher."""
    if not hasattr(config, "workerinput"):
        yield
        return
    with Path(config.workerinput["groups"]).with_name(launcher).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def group_of(item: pytest.Item) -> str:
    """What a test starts, else the file whose fixtures it shares with others, else the test itself."""
    for group, needs in LAUNCHED.items():
        if any(need in item.fixturenames or item.get_closest_marker(need) for need in needs):
            return group
    definitions = [made for found in item._fixtureinfo.name2fixturedefs.values() for made in found]
    shared = any(made.scope == "module" for made in definitions)
    return item.nodeid.partition("::")[0] if shared else item.nodeid
