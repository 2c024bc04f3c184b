"""How the work of rounding again is cut, whoever does it: into ranges of samples, and into rows of weights.

Sums over samples are those of ranges, added up in their order, and products are those of some rows, so cuts change last
bits. They follow from the samples and the weights alone: codes do not depend on how many workers there are.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hpcmpq.models.data.samples import Samples
from hpcmpq.space import Member

FLOAT_POSITIONS = 128
"""What a sample without tokens, such as an image, counts as."""

MemberRows = tuple[Member, slice]
"""Some rows of a weight."""


@dataclass(frozen=True)
class Cuts:
    """Sizes.

    Attributes:
        positions: Of the samples of a range, at least: sums of fewer take as long to store as to make.
        ranges: At most.
        sums_bytes: Of all sums over the inputs of a layer that are stored before they are added up, at most.
        row_work: Rows times the square of the columns that are rounded at once: seconds of a core.
        fewest_rows: The same in rows, since all need the factor of Σ x xᵀ.
    """

    positions: int = 2048
    ranges: int = 64
    sums_bytes: int = 2**35
    row_work: int = 2**34
    fewest_rows: int = 512

    def sample_ranges(self, batches: Sequence[Samples]) -> list[range]:
        """Consecutive batches, as indices."""
        sizes = [_positions(batch) for batch in batches]
        enough = max(self.positions, -(-sum(sizes) // self.ranges))
        found, start, size = [], 0, 0
        for number, own in enumerate(sizes, 1):
            size += own
            if size >= enough:
                found.append(range(start, number))
                start, size = number, 0
        if start < len(sizes):
            found.append(range(start, len(sizes)))
        return found

    def sum_parts(self, num_ranges: int, num_columns: int) -> list[range]:
        """Ranges, as numbers, whose sums over the inputs of a layer with so many are one: few parts of a wide layer.

        Example:
            >>> Cuts(sums_bytes=2 * 16 * 64**2).sum_parts(3, 64)
            [range(0, 1), range(1, 3)]
        """
        count = max(1, min(num_ranges, self.sums_bytes // (16 * num_columns**2)))
        limits = [num_ranges * k // count for k in range(count + 1)]
        return [range(start, stop) for start, stop in zip(limits, limits[1:], strict=False)]

    def row_parts(self, members: Iterable[Member], on_cpu: bool) -> list[list[MemberRows]]:
        """Rows of weights that are given the same inputs, as they are rounded together.

        On a GPU the columns take as long with all rows as with few, so a weight is rounded whole.
        """
        parts: list[list[MemberRows]] = []
        room = 0
        for member in members:
            enough = (
                max(self.fewest_rows, self.row_work // member.num_columns**2) if on_cpu else member.num_rows
            )
            for start in range(0, member.num_rows, enough):
                rows = slice(start, min(start + enough, member.num_rows))
                if not parts or rows.stop - rows.start > room or not on_cpu:
                    parts.append([])
                    room = enough
                parts[-1].append((member, rows))
                room -= rows.stop - rows.start
        return parts


def _positions(batch: Samples) -> int:
    first = next(iter(batch.inputs.values()))
    is_tokens = first.ndim == 2 and not first.is_floating_point()
    return first.numel() if is_tokens else FLOAT_POSITIONS * len(batch)
