"""Colours: text and lines stand out in light, dark and print, on the page and in the figures."""

import re
from pathlib import Path

import pytest

import hpcmpq.report

pytest.importorskip("matplotlib")
from hpcmpq.report.bits import BIT_COLOURS
from hpcmpq.report.theme import THEME

CSS = (Path(hpcmpq.report.__file__).parent / "report.css").read_text()
SCHEMES = dict(zip(("light", "dark", "print"), re.findall(r":root \{(.*?)\}", CSS, re.DOTALL), strict=True))
TEXT = ("ink", "muted", "ours", "uniform", "good", "care", "bad")
LINES = ("ours", "uniform", "more", "less", "muted")


def variables(scheme: str) -> dict[str, str]:
    """{name: colour} that a scheme sets."""
    found = dict(re.findall(r"--([\w-]+): (#\w+);", SCHEMES[scheme]))
    return {
        name: value if len(value) == 7 else "#" + "".join(2 * c for c in value[1:])
        for name, value in found.items()
    }


def luminance(colour: str) -> float:
    """Relative luminance of an sRGB colour, as WCAG 2 defines it."""
    channels = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    """Contrast ratio of two colours, from 1 to 21."""
    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_that_of_the_standard():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_is_complete_and_stands_out(scheme: str):
    colours = variables(scheme)
    assert set(colours) == set(variables("light"))
    for name in TEXT:
        for background in ("page", "panel", "notice", "ours-soft"):
            if name in ("ink", "muted", "ours") or background == "page":
                assert contrast(colours[name], colours[background]) >= 4.5, (name, background)
    for name in LINES:
        assert contrast(colours[name], colours["page"]) >= 3, name


def test_figures_are_drawn_in_the_light_scheme():
    light = variables("light")
    assert {name: light[name] for name in THEME} == THEME


@pytest.mark.parametrize("bits", BIT_COLOURS)
def test_numbers_stand_out_in_the_map(bits: int):
    assert contrast(*BIT_COLOURS[bits]) >= 4.5


def test_more_bits_are_darker():
    assert [luminance(background) for background, _ in BIT_COLOURS.values()] == sorted(
        (luminance(background) for background, _ in BIT_COLOURS.values()), reverse=True
    )
