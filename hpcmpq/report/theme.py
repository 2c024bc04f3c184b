"""How figures look: files in print colours, and SVG for the page in the page's own colours.

Figures are drawn with the light colours of `THEME`. On the page each of those is replaced by the CSS variable
of that name, so that one drawing is readable in light and dark.
"""

import io
import re
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

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


def to_svg(name: str, figure: Figure) -> str:
    """An SVG element for the page: scalable, in CSS variables, with ids of its own, hidden from readers."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        FigureCanvasSVG(figure).print_svg(
            buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    width = f"max-width: {figure.get_figwidth():.2f}in"
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>',
        rf'<svg viewBox="\1" style="{width}" aria-hidden="true" focusable="false">',
        text,
    )
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text).replace("xlink:href", "href")
    for variable, colour in THEME.items():
        text = text.replace(colour, f"var(--{variable})")
    return text


def save(figure: Figure, path: Path, suffix: str) -> None:
    """Write a figure as ``svg`` or ``png`` in print colours on white."""
    with matplotlib.rc_context(STYLE):
        if suffix == "svg":
            FigureCanvasSVG(figure).print_figure(
                path, format="svg", facecolor="white", metadata={"Date": None}
            )
        else:
            FigureCanvasAgg(figure).print_figure(path, format="png", facecolor="white", dpi=200)
