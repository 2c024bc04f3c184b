"""Rounds of passes that measure every combination once, in an order that is another each time.

In a pass every part runs in some combination; parts with the same signature share the combinations among them, and
each part meets all of them over the rounds. Slow drifts of the machine fall on all alike.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from hpcmpq.timing.combinations import Combinations
from hpcmpq.timing.passes import ORIGINAL, TimedModel, time_parts

MAX_PIECES = 4096
"""Built parts up to which every part meets every combination; beyond, each has its fixed share of them."""

WARM_UP_PASSES = 3

Classes = Mapping[str, tuple[list[int], Combinations]]


def schedule(classes: Classes, num_parts: int, round_number: int) -> list[list[tuple[str, int] | None]]:
    """For each pass of a round, for each part its class and combination (0 is the original), or None.

    Example:
        >>> classes = {"k": ([1, 2], Combinations("", ((0,),), (("a",), ("b",))))}
        >>> passes = schedule(classes, 4, 0)
        >>> len(passes), sorted(step[part][1] for step in passes for part in (1, 2))[:3]
        (2, [0, 1, 2])
    """
    random = np.random.default_rng(round_number)
    sizes = {key: len(found.formats) + 1 for key, (_, found) in classes.items()}
    num_passes = max(-(-sizes[key] // len(parts)) for key, (parts, _) in classes.items())
    fixed = sum(sizes[key] * len(parts) for key, (parts, _) in classes.items()) > MAX_PIECES
    passes: list[list[tuple[str, int] | None]] = [[None] * num_parts for _ in range(num_passes)]
    for key, (parts, _) in classes.items():
        slots = num_passes * len(parts)
        order = np.arange(slots) % sizes[key]
        if fixed:  # part k keeps the numbers k, k + n, ...; only when it runs them changes
            table = order.reshape(num_passes, len(parts))[random.permutation(num_passes)]
        else:
            rest = random.permutation(sizes[key])[order[sizes[key] :] % sizes[key]]
            table = random.permutation(np.concatenate([np.arange(sizes[key]), rest])).reshape(num_passes, -1)
        for step, row in zip(passes, table, strict=True):
            for part, combination in zip(parts, row, strict=True):
                step[part] = (key, int(combination))
    return passes


def measure_round(timed: TimedModel, classes: Classes, round_number: int) -> dict[str, Any]:
    """Seconds of one round: {"combinations": {class: {number: [seconds]}}, "shared": [seconds of a pass]}.

    ``shared`` is what no group changes: everything in front of the first group and behind the last.
    """
    seconds: dict[str, dict[str, list[float]]] = {key: {} for key in classes}
    shared = []
    for step in schedule(classes, len(timed.parts), round_number):
        found = time_parts(timed, formats_of(timed, classes, step))
        for place, spent in zip(step, found, strict=True):
            if place is not None:
                seconds[place[0]].setdefault(str(place[1]), []).append(spent)
        shared.append(sum(spent for place, spent in zip(step, found, strict=True) if place is None))
    return {"combinations": seconds, "shared": shared}


def warm_up(timed: TimedModel, classes: Classes) -> None:
    """Run the model, and every kernel at least once, before anything counts."""
    for step in schedule(classes, len(timed.parts), 0):
        time_parts(timed, formats_of(timed, classes, step))
    for _ in range(WARM_UP_PASSES):
        time_parts(timed, formats_of(timed, classes, [None] * len(timed.parts)))


def formats_of(
    timed: TimedModel, classes: Classes, step: list[tuple[str, int] | None]
) -> list[tuple[str, ...]]:
    """Formats of each part's groups in one pass."""
    formats = []
    for part, place in zip(timed.parts, step, strict=True):
        if place is None or place[1] == 0:
            formats.append((ORIGINAL,) * len(part.groups))
        else:
            formats.append(classes[place[0]][1].formats[place[1] - 1])
    return formats
