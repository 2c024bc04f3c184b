"""An attempt to round again that several workers share: what they find of it, by the names of their units.

Its units have shards in RUN/reround/shards/, each named NAME-STEP after the attempt and its step:

    outline                     the weights that are rounded, and the pieces that they are in
    PIECE-order                 the layers of a piece by what they are given, in the order in which they run
    PIECE-LAYERS-sums-RANGES    sums over what layers are given by some samples
    PIECE-LAYERS-fit            what all rows of these layers are rounded by, where they are many
    PIECE-LAYERS-rows-PART      codes of some rows
    PIECE-states-RANGE          the states of some samples behind a piece
    made                        the weights that have codes in the end
    losses-WHICH-START-STOP     losses of held-out samples, `before` or `after`
"""

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hpcmpq.errors import CorruptShard, DamagedFile, UserError
from hpcmpq.models.data.samples import Samples, Splits
from hpcmpq.plan import Plan, WorkUnit, content_hash
from hpcmpq.quantized.losses import Comparison
from hpcmpq.quantized.solved import codes_called, solution_codes
from hpcmpq.quantized.stored_codes import SolutionCodes, StoredCodes
from hpcmpq.quantized.variants import Variants
from hpcmpq.rounding import find_rounding_method
from hpcmpq.rounding.again import RoundingAgain
from hpcmpq.rounding.cuts import Cuts
from hpcmpq.space import Member
from hpcmpq.store.json_files import read_json, write_artefact
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.shards import Shard, read_shard_of, remove_damaged_shard, write_shard

SEEN_S, LOOK_S = 90.0, 0.1
"""Seconds in which a file system shows what another node has written, and between two looks."""


def is_seen_in_time(looks: Callable[[], bool], folder: Path) -> bool:
    """Whether what is known to be in a folder is seen there: network file systems remember for a while what was not.

    Listing the folder makes them look again.
    """
    until = time.monotonic() + SEEN_S
    while not (seen := looks()) and time.monotonic() < until:
        time.sleep(LOOK_S)
        os.listdir(folder if folder.is_dir() else folder.parent)
    return seen


def await_codes(stored: StoredCodes, members: Sequence[Member]) -> None:
    """Wait for codes that other nodes have written: without them weights would be taken for unrounded ones.

    Raises:
        UserError: If they are not seen here.
    """
    folder = stored.run.path / stored.folder
    if not is_seen_in_time(lambda: stored.are_there(members), folder):
        raise UserError(
            f"{folder} does not show on this node what others have written there; run `{stored.made_by}` again"
        )


@dataclass(frozen=True)
class RoundingAttempt:
    """What is tried.

    Attributes:
        codes: Name of the codes that are made, see `hpcmpq.quantized.solved.codes_called`.
        method: A name in `hpcmpq.rounding.METHODS`.
        strength: Of the method.
        assignment: {group: format} of all groups.
        samples: Digest of those that it is fitted on.
        before: `reround` of the solution whose weights the new ones are compared with, or None: the plan's.
        cuts: How the work is cut.
    """

    codes: str
    method: str
    strength: float
    assignment: Mapping[str, str]
    samples: str
    before: Mapping[str, Any] | None
    cuts: Cuts

    @property
    def name(self) -> str:
        """What its units are named after."""
        return content_hash([self.codes, self.before and self.before["codes"], asdict(self.cuts)])[:16]

    def stored(self, run: RunDir) -> StoredCodes:
        """The codes that are made."""
        return codes_called(run, self.codes, self.method, self.strength)

    def again(self, run: RunDir, variants: Variants, batches: list[Samples]) -> RoundingAgain:
        """Its steps, of a model that is open and the batches that it is fitted on."""
        return RoundingAgain(
            replace(variants, solved=None),
            self.assignment,
            batches,
            find_rounding_method(self.method),
            self.strength,
            self.stored(run),
            self.cuts,
        )

    def losses(
        self, plan: Plan, variants: Variants, held_out: Samples, weights: Sequence[SolutionCodes | None]
    ) -> list[np.ndarray]:
        """Losses of the assignment with each of these codes, float64 [N] each.

        Args:
            plan: The run's.
            variants: The model, open.
            held_out: Samples on its device.
            weights: As of `before_it` and `after_it`.
        """
        objective, found = plan.config.objective, []
        comparison = Comparison(variants, held_out, (objective,), plan.config.calibration.samples_per_pass)
        for solved in weights:
            # In turn from one another, so that the original's outputs are computed once.
            comparison = replace(comparison, variants=replace(variants, solved=solved))
            [measured] = comparison.measure([dict(self.assignment)])
            found.append(measured.values[objective])
        return found

    def remove_damaged(self, run: RunDir, members: Iterable[Member]) -> None:
        """Remove codes that are not what was written, of an attempt that was interrupted."""
        stored = self.stored(run)
        for member in members:
            if stored.is_there(member) and not stored.has(member):
                stored.remove(member)

    def before_it(self, run: RunDir, plan: Plan) -> SolutionCodes | None:
        """The codes of the solution's weights before."""
        return solution_codes(run, plan, {"assignment": self.assignment, "reround": self.before})

    def after_it(self, run: RunDir, plan: Plan, parameters: Iterable[str]) -> SolutionCodes:
        """The same after, of the weights that have some then."""
        planned = StoredCodes(run, plan.fingerprint)
        return SolutionCodes(self.assignment, self.stored(run), frozenset(parameters), planned)


@dataclass(frozen=True)
class Steps:
    """The shards of an attempt.

    Attributes:
        run: Measuring ``reround``.
        plan: The run's.
        name: Of the attempt.
    """

    run: RunDir
    plan: Plan
    name: str

    def unit(self, step: str, start: int = 0, stop: int = 1) -> WorkUnit:
        """The unit of a step; the numbers are for people, such as samples."""
        return WorkUnit(f"{self.name}-{step}", 0, len(self.plan.space.groups), start, stop)

    def plan_of(self, units: Iterable[WorkUnit]) -> Plan:
        """The plan of some units."""
        return replace(self.plan, units=tuple(units), fingerprint=self.name, rounds=())

    def is_there(self, step: str) -> bool:
        """Whether a step is done; nothing is read."""
        return self.run.shard_path(f"{self.name}-{step}").exists()

    def read(self, step: str) -> Shard:
        """What it made; it is removed if it is damaged, so that the same command makes it anew.

        Raises:
            CorruptShard: If it is, or is gone.
        """
        try:
            return read_shard_of(self.plan_of(()), self.run, self.unit(step))
        except CorruptShard:
            remove_damaged_shard(self.plan_of(()), self.run, self.unit(step))
            raise

    def write(self, step: str, arrays: dict[str, Any], num_samples: int = 0, number: int = 0) -> None:
        """Keep what it made."""
        write_shard(self.run, Shard("reround", f"{self.name}-{step}", self.name, num_samples, number, arrays))

    def made_nothing(self, step: str) -> bool:
        """Whether a step is done and made nothing, as rows of layers that are given nothing; not where it is gone."""
        try:
            return self.is_there(step) and not self.read(step).arrays
        except CorruptShard:
            return False

    def remove(self, steps: Iterable[str]) -> None:
        """Remove what steps made that nobody needs any more."""
        for step in steps:
            self.run.shard_path(f"{self.name}-{step}").unlink(missing_ok=True)

    def reached(self) -> set[str]:
        """The steps that are done."""
        names = (path.stem.partition("-") for path in self.run.shards_path.glob(f"{self.name}-*.h5"))
        return {step for _, _, step in names}


def keep_attempt(run: RunDir, attempt: RoundingAttempt) -> None:
    """Write what workers find by the names of their units."""
    write_artefact(run.file(f"reround/{attempt.name}.json"), asdict(attempt))


def attempt_called(run: RunDir, name: str) -> RoundingAttempt:
    """The attempt that units are named after.

    Raises:
        DamagedFile: If its file is that of another one.
    """
    path, command = run.file(f"reround/{name}.json"), f"hpcmpq reround {run.path}"
    values = dict(read_json(path, command))
    found = RoundingAttempt(**{**values, "cuts": Cuts(**values["cuts"])})
    if found.name != name:
        raise DamagedFile(f"{path} is of another attempt; run `{command}` again to write it anew")
    return found


def fitted_on(splits: Splits) -> Samples:
    """The samples that rounding again is fitted on."""
    return splits.calibration if splits.rounding is None else splits.rounding
