"""The figures on the page of limits are those of bench/RESULTS.md, in the section that each names."""

import re
from collections.abc import Callable

import pytest

from tests.docs.pages import ROOT

RESULTS = (ROOT / "bench" / "RESULTS.md").read_text()
PAGE = " ".join((ROOT / "docs" / "limits.md").read_text().split())

Row = list[str]


def rows(section: str) -> list[Row]:
    """Rows of a section's tables."""
    [text] = re.findall(rf"<!-- {section}:begin -->(.*?)<!-- {section}:end -->", RESULTS, flags=re.DOTALL)
    return [
        [cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines() if "|" in line
    ]


def row(section: str, *first: str) -> Row:
    """The one row whose first cells are these."""
    [found] = [row for row in rows(section) if tuple(row[: len(first)]) == first]
    return found


def solver_rows(groups: int) -> list[Row]:
    """Rows of problems with so many groups."""
    return [row for row in rows("solver") if row[0].startswith(f"{groups} × 7")]


def number(text: str) -> float:
    """The first number in a cell."""
    [first, *_] = re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", text)
    return float(first)


def lowered_by(bits: str) -> float:
    return -number(row("budgets", bits)[3])


def better_without(model: str, column: int) -> float:
    with_, without = (
        number(row("methods", model, name)[column]) for name in ("secant", "secant, cross terms dropped")
    )
    return 100 * (1 - without / with_)


def peers_difference(method: str, column: int) -> str:
    """Of the KL to the first row's, in the first of the section's tables."""
    return next(found for found in rows("peers_smollm2") if found[0] == method)[column].split()[1]


def gaps(groups: int) -> list[float]:
    return [number(found[2]) for found in solver_rows(groups)]


FIGURES: dict[str, Callable[[], str]] = {
    "interactions": lambda: (
        f"by {lowered_by('2.25'):.0f} % at 2.25 bits, {lowered_by('2.5'):.0f} % at 2.5 and "
        f"{min(map(lowered_by, ('3.0', '3.5', '4.0'))):.0f} to "
        f"{max(map(lowered_by, ('3.0', '3.5', '4.0'))):.0f} % from 3 to 4"
    ),
    "interactions that do not help, CNN": lambda: f"was {better_without('digits', 3):.1f} % better",
    "interactions that do not help, ViT": lambda: f"at 2.25 bits {better_without('vit', 2):.0f} %",
    "mixing": lambda: (
        f"KL was {number(row('budgets', '3.0')[1]):.4f} and uniform int3's {number(row('budgets', '3.0')[4]):.4f}"
    ),
    "ratios": lambda: (
        f"`secant` predicts {number(row('rank', 'secant:kl')[3]):.2f} times the measured KL at 2 bits and "
        f"`hessian` {number(row('rank', 'hessian:kl')[3]):.2f} times"
    ),
    "a real model": lambda: f"ours by {number(peers_difference('ours: secant', 2)):.0f} %",
    "closed gaps": lambda: f"in {max(number(found[3]) for found in solver_rows(54)):.1f} s at most",
    "open gaps": lambda: f"it was {min(gaps(224)):.1f} to {max(gaps(224)):.1f} % after a minute",
    "weak proofs": lambda: (
        f"{gaps(560)[0]:.0f} % at 560 groups after five minutes and {gaps(2000)[0]:.0f} % at 2,000"
    ),
    "bfloat16": lambda: "at most {:.1f} %".format(
        max(
            float(part)
            for cell in row("low_precision", "compensated (the package)")[1:]
            for part in cell.split("/")
        )
    ),
    "times": lambda: "up to {:.0f} % (prefill) and {:.0f} % (decode)".format(
        *(number(row("time", f"quickstart, {phase}")[3].split("(")[1]) for phase in ("prefill", "decode"))
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figure_is_the_measured_one(name: str):
    assert FIGURES[name]() in PAGE


def test_every_section_named_is_written_by_the_command_beside_it():
    sections = dict(re.findall(r"^<!-- (\w+):begin -->\n## (.*)$", RESULTS, flags=re.MULTILINE))
    anchors = {
        re.sub(r"[^\w -]", "", title).lower().replace(" ", "-"): name for name, title in sections.items()
    }
    named = re.findall(r"RESULTS\.md#([\w-]+)\)?,? `python -m bench\.(\w+)`", PAGE)
    assert len(named) >= 8
    for anchor, command in named:  # a bench of several models has a section for each
        assert anchors[anchor] == command or anchors[anchor].startswith(f"{command}_")
