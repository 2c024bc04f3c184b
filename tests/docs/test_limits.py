"""The figures on the page of limits are those of bench/RESULTS.md, in the section that each names."""

import re
from collections.abc import Callable

import pytest

from tests.docs.pages import ROOT

RESULTS = (ROOT / "bench" / "RESULTS.md").read_text()
PAGE = " ".join((ROOT / "docs" / "limits.md").read_text().split())

Row = list[str]

MIDDLE = ("3", "3.5", "4", "4.5")
"""Budgets of bits per weight."""

MIXTURE = "671 B, 37 B active"

PEERS = {
    "PrismaQuant, cost and measured selection",
    "AutoBit (CASA), self-cost",
    "HAWQ, trace",
    "ModelOpt's formula, shipped codes",
    "ModelOpt",
    "AutoScheme",
}


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


def peers(method: str, bits: str, text: str = "prose", section: str = "peers_smollm2") -> list[str]:
    """KL and, but for the first row, its difference to the first row's in per cent."""
    found = rows(section)
    headers = [place for place, row in enumerate(found) if row[0] == "KL, nats"]
    start = headers[("prose", "code").index(text)]
    return next(row for row in found[start:] if row[0] == method)[found[start].index(f"{bits} b")].split()


def best_peers(text: str, *bits: str, section: str = "peers_smollm2") -> list[float]:
    """How far the best peer of each budget is above ours in per cent, the least and the largest."""
    above = [min(float(peers(name, limit, text, section)[1]) for name in PEERS) for limit in bits]
    return [min(above), max(above)]


def below_presets(section: str, column: int) -> list[float]:
    """How far the KL of mixes is below that of llama.cpp's presets, in per cent, in the order of their sizes."""
    names = ("Q2_K", "Q3_K_M", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K")
    return [-number(row(section, name)[column]) for name in names]


def above_in_same_bytes(text: int) -> list[float]:
    """How far ModelOpt's KL is above that of ours in its bytes at 4.75, 5.25 and 6 bits; column of a text."""
    return [float(row("peers_floats", bits)[text].split()[0]) for bits in ("4.75", "5.25", "6")]


def clear_in_same_bytes(text: int) -> int:
    """How many of these have a whole interval above nothing; none may have one below."""
    cells = [row("peers_floats", bits)[text] for bits in ("4.75", "5.25", "6")]
    ends = [[float(end) for end in re.findall(r"[+-][\d.]+", cell)[1:]] for cell in cells]
    assert all(high > 0 for _, high in ends)
    return sum(low > 0 for low, _ in ends)


def uniform_floats() -> list[Row]:
    """The rows of uniform formats in the tables of KL, on prose and code."""
    return [found for found in rows("peers_floats") if found[0] == "uniform" and "/" not in found[1]]


def lower_beyond_noise(section: str) -> tuple[int, int]:
    """Peers' cells of tables of KL whose whole interval is below ours, and all of them."""
    found, total, in_kl = 0, 0, False
    for row in rows(section):
        in_kl = row[0] == "KL, nats" or (in_kl and not row[0].startswith("perplexity"))
        if row[0] in PEERS and in_kl:
            ends = [re.search(r" to ([+-][\d.]+)\)", cell) for cell in row[1:]]
            found += sum(1 for end in ends if end and float(end[1]) < 0)
            total += len(ends)
    return found, total


def difference_range(tokens: str, *bits: str, section: str = "shrinkage_smollm2") -> list[float]:
    """Least and largest difference of cross terms, shrunk by default, to cross terms dropped, per cent."""
    cells = row(section, tokens, "shrunk by reliability (default)")
    header = rows(section)[0]
    found = [float(cells[header.index(f"{limit} b")].split()[1]) for limit in bits]
    return [min(found), max(found)]


def spared(column: int) -> list[str]:
    """Per cent of the calibration that a first pass need not measure, by budgets."""
    return [f"{100 - number(found[column]):.0f}" for found in rows("screening_smollm2")[2:]]


def screened(*models: str, section: str = "screened") -> tuple[list[float], int, int, float]:
    """Shares of the cost of some models' budgets; how many of how many have other solutions; how much worse at most."""
    found = [cells for cells in rows(section)[2:] if cells[0] in models]
    other = [cells for cells in found if number(cells[6])]
    assert section != "screened" or all(number(cells[7]) == 0 for cells in found)
    worst = max((number(cells[8]) for cells in other), default=0.0)
    return [number(cells[4]) for cells in found], len(other), len(found), worst


def busy(model: str, workers: str) -> str:
    """Shares of time in work on so many workers, with the copy on disk and in memory."""
    found = [row("scaling", model, workers, copy)[7] for copy in ("disk", "memory")]
    return "{} to {} %".format(*(share.removesuffix(" %") for share in found))


def shared(model: str, column: int) -> str:
    """The same of several runs, whose number the column says, on 1,024 workers."""
    found = [row("scaling", "1024", model, copy)[column] for copy in ("disk", "memory")]
    return "{} to {} %".format(*(share.removesuffix(" %") for share in found))


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
    "a real model at few bits": lambda: (
        f"answer had a KL of {number(peers('ours: secant', '2.5')[0]):.1f} on other text, and the best of the "
        "portfolio that `hpcmpq refine` measures first "
        f"{number(peers('ours: secant, portfolio', '2.5')[0]):.2f}; uniform int2 had "
        f"{number(peers('uniform', '2.5')[0]):.1f}"
    ),
    "peers": lambda: (
        "above on prose, and {2:.1f} to {3:.1f} % on code".format(*budgets)
        if (budgets := best_peers("prose", *MIDDLE) + best_peers("code", *MIDDLE))
        and f"{budgets[0]:.1f} to {budgets[1]:.1f} % above on prose" in PAGE
        and max(budgets) < 10
        else "the figures of peers"
    ),
    "peers, rounded to the nearest": lambda: (
        "the best of each budget was {:.1f} to {:.1f} % above on prose, most at 3.5 bits, "
        "and {:.1f} to {:.1f} % on code".format(
            *best_peers("prose", *MIDDLE, section="peers_smollm2_nearest"),
            *best_peers("code", *MIDDLE, section="peers_smollm2_nearest"),
        )
        if best_peers("prose", "3.5", section="peers_smollm2_nearest")[0]
        == best_peers("prose", *MIDDLE, section="peers_smollm2_nearest")[1]
        else "the largest is at other bits"
    ),
    "no peer is lower, rounded to the nearest": lambda: (
        "no peer was lower beyond noise either"
        if lower_beyond_noise("peers_smollm2_nearest") == (0, 84)
        else "some peer was lower"
    ),
    "peers on a second real model": lambda: (
        "at 3, 3.5 and 4 bits was {:.1f}, {:.1f} and {:.1f} % above on prose".format(
            *(best_peers("prose", bits, section="peers_gemma3")[0] for bits in ("3", "3.5", "4"))
        )
    ),
    "peers beside a refined answer": lambda: (
        "the best peer was {:.1f} % above on prose, within noise, and {:.1f} % on code".format(
            *(best_peers(text, "3", section="peers_smollm2_refined")[0] for text in ("prose", "code"))
        )
    ),
    "peers beside a refined answer, second model": lambda: (
        f"and {best_peers('prose', '3', section='peers_gemma3_refined')[0]:.1f} % at 3 bits after one expansion"
    ),
    "one peer is lower": lambda: "in {} of {} comparisons".format(*lower_beyond_noise("peers_quickstart")),
    "no peer is lower": lambda: (
        "No peer was lower than that portfolio beyond noise"
        if lower_beyond_noise("peers_smollm2") == (0, 84)
        else "some peer was lower"
    ),
    "floats": lambda: (
        "ModelOpt's KL was {:.1f}, {:.1f} and {:.1f} % above ours on prose and {:.1f}, {:.1f} and {:.1f} % on code; "
        "{} of the 6 differences are beyond noise, both above ours".format(
            *above_in_same_bytes(-2),
            *above_in_same_bytes(-1),
            clear_in_same_bytes(-2) + clear_in_same_bytes(-1),
        )
    ),
    "presets": lambda: (
        "had a KL {:.0f}, {:.0f}, {:.0f}, {:.0f}, {:.0f} and {:.0f} % below Q2_K, Q3_K_M, Q4_K_S, Q4_K_M, Q5_K_M and "
        "Q6_K on prose, and {:.0f}, {:.0f}, {:.0f}, {:.0f}, {:.0f} and {:.0f} % below on code".format(
            *below_presets("presets", 5), *below_presets("presets", 10)
        )
    ),
    "presets' own types": lambda: "made {:.0f}, {:.0f}, {:.0f}, {:.0f}, {:.0f} and {:.0f} % on prose".format(
        *below_presets("presets_alone", 5)
    ),
    "uniform floats": lambda: (
        "Uniform NVFP4 was {:.0f} % above ours at 4.75 bits on prose and {:.0f} % on code; at the bits of uniform FP8 "
        "that was {:.1f} % above on prose and {:.1f} % on code".format(
            *(float(found[column].split()[1]) for column in (1, 4) for found in uniform_floats())
        )
    ),
    "cross terms on a real model": lambda: (
        "by {:.0f} to {:+.0f} % from 3 to 4 bits with 512 calibration tokens, and by {:.0f} to {:+.0f} % with 1,536; "
        "at 2.5 bits they made it worse, by {:.0f} and {:.0f} %".format(
            *difference_range("512", "3", "3.5", "4"),
            *difference_range("1,536", "3", "3.5", "4"),
            difference_range("512", "2.5")[0],
            difference_range("1,536", "2.5")[0],
        )
    ),
    "cross terms of 8,192 tokens": lambda: "with 8,192 tokens by {:.0f} to {:+.0f} % from 3 to 6 bits".format(
        *difference_range("8,192", "3", "3.5", "4", "4.5", "6", section="shrinkage_smollm2_8192")
    ),
    "cross terms of 8,192 tokens at few bits": lambda: "made the solver's answer worse by {:.0f} %".format(
        difference_range("8,192", "2.5", section="shrinkage_smollm2_8192")[0]
    ),
    "screened transformers": lambda: "{:.0f} to {:.0f} % of the blocks".format(
        *(f(screened("quickstart", "vit")[0]) for f in (min, max))
    ),
    "screened transformers, solutions": lambda: (
        "another in {1} of {2} budgets, predicted to lose {3:.2f} % more at most".format(
            *screened("quickstart", "vit")
        )
    ),
    "screened digits": lambda: (
        "{:.0f} to {:.0f} % of the blocks of the digits' six groups, with the same solutions".format(
            *(f(screened("digits")[0]) for f in (min, max))
        )
        if not screened("digits")[1]
        else "other solutions"
    ),
    "screened mixture": lambda: (
        "On the mixture it ran {0[0]:.0f} %, and the solution was predicted to lose {3:.1f} % more".format(
            *screened("mixture")
        )
    ),
    "screened SmolLM2": lambda: "it ran {:.0f} to {:.0f} % of the blocks between 2.5 and 6 bits".format(
        *(f(screened("smollm2", section="screened_smollm2")[0]) for f in (min, max))
    ),
    "screened SmolLM2, solutions": lambda: (
        "another in {1} of {2} budgets, predicted to lose {3:.2f} % more at most".format(
            *screened("smollm2", section="screened_smollm2")
        )
    ),
    "screening": lambda: (
        "spare {0} % of the calibration for one budget, {3} % for 3 to 4 bits and {4} % for 2.5 to 6".format(
            *spared(1)
        )
    ),
    "screening by a cheap pass": lambda: (
        f"{min(spared(4)[:3])} to {max(spared(4)[:3])}, {spared(4)[3]} and {spared(4)[4]} %"
    ),
    "closed gaps": lambda: f"in {max(number(found[3]) for found in solver_rows(54)):.1f} s at most",
    "open gaps": lambda: f"it was {min(gaps(224)):.2f} to {max(gaps(224)):.2f} % after a minute",
    "weak proofs": lambda: (
        f"{max(gaps(560)):.1f} % is left at 560 groups after five minutes and {gaps(2000)[0]:.1f} % at 2,000"
    ),
    "bfloat16": lambda: "at most {:.1f} %".format(
        max(
            float(part)
            for cell in row("low_precision", "compensated (the package)")[1:]
            for part in cell.split("/")
        )
    ),
    "large models on 256 workers": lambda: (
        f"for {busy('70 B', '256')} of their time for 70 B and {busy('405 B', '256')} for 405 B"
    ),
    "large models on 1,024 workers": lambda: (
        f"1,024 for {busy('70 B', '1024')} and {busy('405 B', '1024')}; a mixture of 671 B for "
        f"{busy(MIXTURE, '256')} of 256 and {busy(MIXTURE, '1024')} of 1,024"
    ),
    "several runs": lambda: (
        f"eight of 405 B keep 1,024 busy for {shared('405 B', 6)}, four for {shared('405 B', 5)}, and eight of the "
        f"mixture for {shared(MIXTURE, 6)}"
    ),
    "what ranges take": lambda: (
        "{2} GB for 405 B in seven formats, and ".format(*row("scaling", "405 B", "30"))
        + "{2} GB for 671 B, whose experts of a layer take {3} GB more".format(*row("scaling", MIXTURE, "51"))
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
    named = re.findall(r"RESULTS\.md#([\w-]+)\)?,? `python -m bench\.([\w.]+)`", PAGE)
    assert len(named) >= 8
    for anchor, command in named:  # a bench of several models has a section for each
        names = {command.rpartition(".")[2], command.replace(".", "_")}
        assert any(anchors[anchor] == name or anchors[anchor].startswith(f"{name}_") for name in names)
