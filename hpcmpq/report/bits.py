"""The map of bits over depth and kind: cells for the page, and the same as a figure."""

from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from hpcmpq.formats import Format
from hpcmpq.report.display import show
from hpcmpq.report.findings import Findings, kind
from hpcmpq.report.theme import panels

# Background and text of a cell by number of bits; light to dark, so that the order also shows in grey.
BIT_COLOURS = {
    2: ("#fff3c4", "#1c2430"),
    3: ("#d3ecbb", "#1c2430"),
    4: ("#94d8bd", "#1c2430"),
    5: ("#4fb9c4", "#10202b"),
    6: ("#22719f", "#ffffff"),
    7: ("#2b559c", "#ffffff"),
    8: ("#23307a", "#ffffff"),
    16: ("#141a3c", "#ffffff"),
}

ROWS_OF_LIST = 40
"""Groups one below the other where a model has no blocks."""

CELL_WIDTH, CELL_HEIGHT = 0.92, 0.34
MAX_FIGURE_HEIGHT = 40.0


@dataclass(frozen=True)
class Cell:
    """One group in the map of bits.

    Attributes:
        text: Number of bits, or the format's name where it is more than that.
        bits: Key into `BIT_COLOURS`.
        share: Share of the predicted loss increase, as text; empty if that is zero.
        title: The whole story for pointer and screen reader.
        group: Place of the group in the model's order.
    """

    text: str
    bits: int
    share: str
    title: str
    group: int


@dataclass(frozen=True)
class BitMap:
    """Cells by depth and kind.

    Attributes:
        kinds: Columns; empty where no group lies in a block.
        rows: (name, cells of each kind) in model order; groups outside blocks come in rows of their own.
    """

    kinds: list[str]
    rows: list[tuple[str, list[list[Cell]]]]


def bit_map(findings: Findings) -> BitMap:
    """Every group's cell: blocks in model order, and groups outside them where they stand, one a row."""
    groups = findings.plan.space.groups
    kinds = list(dict.fromkeys(kind(group) for group in groups if group.block is not None))
    share_G = share_of_increase(findings)
    rows: dict[str, list[list[Cell]]] = {}
    for g, (group, chosen, share) in enumerate(zip(groups, findings.formats, share_G, strict=True)):
        part = "" if share is None else show(share, "share")
        cell = Cell(
            shown_format(chosen),
            nearest(chosen.num_bits),
            "" if share is None else rounded(share),
            f"{group.name}: {chosen.name}, {group.numel:,} weights"
            + (f", {part} of the predicted increase" if part else ""),
            g,
        )
        if group.block is None:
            rows[group.name] = [[cell]]
        else:
            row = rows.setdefault(f"block {group.block}", [[] for _ in kinds])
            row[kinds.index(kind(group))].append(cell)
    return BitMap(kinds, list(rows.items()))


def share_of_increase(findings: Findings) -> list[float | None]:
    """Loss alone and half of the interactions of each group, as a share of the predicted increase; they add to 1."""
    if findings.increase <= 0:
        return [None] * len(findings.formats)
    loss_G = findings.quadratic.linear_P[findings.choice_G] + 0.5 * findings.pairs_GG.sum(1)
    return [float(loss) / findings.increase for loss in loss_G]


def shown_format(chosen: Format) -> str:
    """Bits of a plain integer format and of one that only a cache is in, else its name.

    Example:
        >>> from hpcmpq.formats import FORMATS
        >>> [shown_format(FORMATS[name]) for name in ("int4", "w4a8", "int4_per_token_head")]
        ['4', 'w4a8', '4']
    """
    is_plain = chosen.type == "int" and chosen.activation is None
    return str(chosen.num_bits) if is_plain or chosen.of_caches else chosen.name


def nearest(num_bits: int) -> int:
    """The key of `BIT_COLOURS` for a number of bits."""
    return min(BIT_COLOURS, key=lambda bits: abs(bits - num_bits))


def rounded(share: float) -> str:
    """A share in as few characters as a cell has room for.

    Example:
        >>> rounded(0.1234), rounded(0.034), rounded(-0.02), rounded(0.0001)
        ('12 %', '3.4 %', '−2.0 %', '0 %')
    """
    per_cent = 100 * share
    if abs(per_cent) < 0.05:
        return "0 %"
    return (
        f"{per_cent:.0f} %".replace("-", "−")
        if abs(per_cent) >= 9.95
        else f"{per_cent:.1f} %".replace("-", "−")
    )


def bits_figure(findings: Findings) -> Figure:
    """The map as a figure, for papers and slides."""
    found = bit_map(findings)
    if not found.kinds:
        return _list_figure(found)
    names = [name for name, _ in found.rows]
    height = min(CELL_HEIGHT * len(names), MAX_FIGURE_HEIGHT)
    figure, axes = _canvas(len(found.kinds), len(names), 0.09 * max(map(len, names)), height + 1.0)
    for y, (_, row) in enumerate(found.rows):
        for x, cells in enumerate(row):
            part = (len(found.kinds) if len(row) == 1 else 1) / max(len(cells), 1)
            for place, cell in enumerate(cells):
                _box(axes, cell, x + place * part, y, part)
    axes.set_yticks([y + 0.5 for y in range(len(names))], names, fontsize=9)
    places = [x + 0.5 for x in range(len(found.kinds))]
    axes.set_xticks(places, found.kinds, fontsize=8, rotation=25, ha="left")
    axes.xaxis.tick_top()
    return figure


def _list_figure(found: BitMap) -> Figure:
    """Named boxes in model order, down and then across."""
    height = min(len(found.rows), ROWS_OF_LIST)
    columns = -(-len(found.rows) // ROWS_OF_LIST)
    room = 0.11 * max(len(name) for name, _ in found.rows) + 0.2
    figure, axes = _canvas(columns * (1 + room), height, 0.0, CELL_HEIGHT * height + 0.2)
    axes.set_xticks([])
    axes.set_yticks([])
    for place, (name, [[cell]]) in enumerate(found.rows):
        x, y = (place // ROWS_OF_LIST) * (1 + room) + room, place % ROWS_OF_LIST
        axes.text(x - 0.08, y + 0.5, name, ha="right", va="center", fontsize=9)
        _box(axes, cell, x, y, 1.0)
    return figure


def _canvas(columns: float, rows: int, margin: float, height: float) -> tuple[Figure, Axes]:
    """Axes in cells, first row on top."""
    figure, [axes] = panels(CELL_WIDTH * columns + margin, height)
    axes.grid(False)
    axes.set(xlim=(0, columns), ylim=(rows, 0))
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure, axes


def _box(axes: Axes, cell: Cell, x: float, y: float, width: float) -> None:
    background, ink = BIT_COLOURS[cell.bits]
    axes.add_patch(Rectangle((x + 0.03, y + 0.06), width - 0.06, 0.88, color=background, linewidth=0))
    middle = x + width / 2, y + 0.5
    axes.text(*middle, cell.text, ha="center", va="center", color=ink, fontsize=9, fontweight="bold")
