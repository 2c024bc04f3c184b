"""What refinement asks: the loss around an assignment, or the losses of whole assignments.

An inquiry is a plan of its own. Its work units are named after it, so that a worker which is handed one finds in
RUN/refine/<inquiry>.json what to measure, and whoever asks the same again finds the shards that are there.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from hpcmpq.calibrate.neighbourhood import Neighbourhood
from hpcmpq.calibrate.reduce import sample_ranges
from hpcmpq.plan import Plan, WorkUnit, content_hash
from hpcmpq.space import SearchSpace
from hpcmpq.store.json_files import read_json, write_artefact
from hpcmpq.store.run_dir import RunDir

Split = Literal["calibration", "held_out"]

PARTS, POSITIONS = 4, 1024
"""Units of whole losses: as few as give each of them so many positions, but so many where there are samples for them.

Each unit decodes the weights of every assignment again, which takes a core as long as a forward pass of about a
thousand positions.
"""


@dataclass(frozen=True)
class WholeLosses:
    """The losses of assignments on every sample of a split.

    Attributes:
        assignments: {group: format} of each; an empty one is the original.
        split: The samples.
        num_samples: How many there are.
        samples_hash: Digest of what they are.
    """

    assignments: tuple[dict[str, str], ...]
    split: Split
    num_samples: int
    samples_hash: str

    def space(self, space: SearchSpace) -> SearchSpace:
        """All of it."""
        return space

    def ranges(self, plan: Plan) -> list[tuple[int, int]]:
        """Multiples of the samples of calibration's units."""
        step = max(stop - start for start, stop in sample_ranges(plan.units))
        enough = -(-POSITIONS // (step * plan.config.calibration.sequence_length))
        step *= max(1, min(enough, -(-self.num_samples // (PARTS * step))))
        return [(start, min(start + step, self.num_samples)) for start in range(0, self.num_samples, step)]


@dataclass(frozen=True)
class Around:
    """The loss around an assignment, on the calibration samples."""

    neighbourhood: Neighbourhood

    def space(self, space: SearchSpace) -> SearchSpace:
        """The options beside the assignment."""
        return self.neighbourhood.space(space)

    def ranges(self, plan: Plan) -> list[tuple[int, int]]:
        """Those of calibration."""
        return sample_ranges(plan.units)


Inquiry = WholeLosses | Around

KINDS: dict[str, Callable[[dict[str, Any]], Inquiry]] = {
    "whole losses": lambda values: WholeLosses(**values | {"assignments": tuple(values["assignments"])}),
    "around": lambda values: Around(
        Neighbourhood(values["neighbourhood"]["assignment"], tuple(values["neighbourhood"]["options"]))
    ),
}
"""How an inquiry is made of its plain values."""


def kind_of(inquiry: Inquiry) -> str:
    """Its key in `KINDS`."""
    return "around" if isinstance(inquiry, Around) else "whole losses"


def plan_of(inquiry: Inquiry, plan: Plan) -> Plan:
    """The plan of answering it.

    Its fingerprint is that of the run's plan, which stands for model, calibration samples and roundings, together with
    what is asked: the assignments and options. So are the names of its units.
    """
    space = inquiry.space(plan.space)
    fingerprint = content_hash([identity(plan), kind_of(inquiry), asdict(inquiry)])
    units = (
        WorkUnit(f"{fingerprint[:16]}-{start}-{stop}", 0, len(space.groups), start, stop)
        for start, stop in inquiry.ranges(plan)
    )
    return replace(plan, space=space, units=tuple(units), fingerprint=fingerprint)


def identity(plan: Plan) -> str:
    """What stands for model, calibration samples, roundings and options.

    The options of a run that is screened become more, and what an index means changes with them.
    """
    if plan.whole_space is None:
        return plan.fingerprint
    return content_hash([plan.fingerprint, plan.space.formats])


def keep_inquiry(run: RunDir, inquiry: Inquiry, own: Plan) -> None:
    """Write what workers find by the names of their units."""
    values = {"fingerprint": own.fingerprint, "kind": kind_of(inquiry), **asdict(inquiry)}
    write_artefact(run.file(f"refine/{own.fingerprint[:16]}.json"), values)


def inquiry_of(run: RunDir, unit: WorkUnit) -> tuple[Inquiry, str]:
    """The inquiry that a unit belongs to, and its fingerprint."""
    values = read_json(run.file(f"refine/{unit.id.partition('-')[0]}.json"), f"hpcmpq refine {run.path}")
    fingerprint, kind = values.pop("fingerprint"), values.pop("kind")
    return KINDS[kind](values), fingerprint
