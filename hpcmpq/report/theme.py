"""How figures look: files in print colours, and SVG for the page in the page's own colours.

Figures are drawn with the light colours of `THEME`. On the page each of those is replaced by the CSS variable
of that name, so that one drawing is readable in light and dark.
"""

import io
import re
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

THEME = {
    "ink": "#1c2430",
    "muted": "#5a6575",
    "line": "#d5dbe3",
    "ours": "#0a5fc4",
    "uniform": "#b3530b",
    "more": "#c2352b",
    "less": "#1b6fb5",
}
"""CSS variable: colour in the files."""

SMALLEST = 0.68
"""Share of its own width that a figure keeps on a narrow screen, where it scrolls: labels stay readable."""

STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": THEME["ink"],
    "axes.labelcolor": THEME["ink"],
    "axes.edgecolor": THEME["line"],
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": THEME["line"],
    "grid.linewidth": 0.7,
    "xtick.color": THEME["muted"],
    "ytick.color": THEME["muted"],
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "hpcmpq",
}


def panels(width: float, height: float, ratios: tuple[float, ...] = (1,)) -> tuple[Figure, list[Axes]]:
    """A figure of axes one above the other with a common horizontal axis, on any background."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
    axes = figure.subplots(len(ratios), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
    for part in axes:
        part.set_facecolor("none")
    return figure, list(axes)


def logarithmic(axis: Axis) -> None:
    """Ticks of a logarithmic axis as 0.02, not 2 × 10⁻²; at 1, 2 and 5 where that is few enough to read."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1e3 * low else (1,), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def draw_svg(figure: Figure) -> str:
    """The figure as an SVG document, the same text each time; what `for_page` and `for_file` start from."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        canvas = FigureCanvasSVG(figure)
        if (layout := figure.get_layout_engine()) is not None:
            layout.execute(figure)
            figure.set_layout_engine("none")  # laid out once for all drawings
        canvas.print_svg(buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return buffer.getvalue()


def point_of(figure: Figure, x: float, y: float) -> list[float]:
    """A point of a drawn figure's first axes, as fractions of the figure from its left and its top."""
    across, up = figure.transFigure.inverted().transform(figure.axes[0].transData.transform((x, y)))
    return [round(float(across), 5), round(1 - float(up), 5)]


def frame(figure: Figure) -> list[float]:
    """Left, top, width and height of a drawn figure's first axes, as fractions of the figure from its left and top."""
    left, bottom, width, height = figure.axes[0].get_position().bounds
    return [round(float(part), 5) for part in (left, 1 - bottom - height, width, height)]


def for_page(name: str, svg: str) -> str:
    """An SVG element for the page: scalable, in CSS variables, with ids of its own, hidden from readers."""
    text = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    [points] = re.findall(r'<svg [^>]*?width="([\d.]+)pt"', text)
    width = float(points) / 72
    style = f"max-width: {width:.2f}in; min-width: {SMALLEST * width:.2f}in"
    text = re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>',
        rf'<svg viewBox="\1" style="{style}" aria-hidden="true" focusable="false">',
        text,
    )
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text).replace("xlink:href", "href")
    for variable, colour in THEME.items():
        text = text.replace(colour, f"var(--{variable})")
    return text


def for_file(svg: str) -> str:
    """An SVG document on white."""
    return re.sub(r"(<svg [^>]*>)", r'\1<rect width="100%" height="100%" fill="white"/>', svg, count=1)


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure in print colours on white."""
    with matplotlib.rc_context(STYLE):
        FigureCanvasAgg(figure).print_figure(path, format="png", facecolor="white", dpi=160)
