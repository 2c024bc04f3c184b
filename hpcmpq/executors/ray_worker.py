"""What an actor of Ray does: makes its worker once, then tries units."""

import os
import pickle
import sys
import time
from contextlib import suppress

from hpcmpq.executors.collector import collect_rarely
from hpcmpq.executors.reply import Reply, attempt, start
from hpcmpq.executors.world import node_name
from hpcmpq.plan import WorkUnit

REST_S = 1.0
"""Seconds in which units that wait are left to other nodes."""


class RayWorker:
    """Runs in an actor's process."""

    def start(self, recipe: bytes, directory: str, import_paths: list[str]) -> Reply:
        """Make the worker, with the driver's working directory and import paths if this node has them."""
        with suppress(OSError):
            os.chdir(directory)
        sys.path.extend(path for path in import_paths if path not in sys.path)
        collect_rarely()
        self._worker, reply = start(lambda: pickle.loads(recipe)())
        return reply

    def rest(self) -> Reply:
        """Leave the units that wait to other nodes for a while."""
        time.sleep(REST_S)
        return Reply(start=True, node=node_name())

    def measure(self, unit: WorkUnit) -> Reply:
        """Try a unit once."""
        assert self._worker is not None
        return attempt(self._worker, unit)
