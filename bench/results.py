"""Where the benches keep what they found: Markdown tables in sections of `RESULTS.md`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "RESULTS.md"


def without_keys(values: Any, passes: Callable[[str], bool]) -> Any:
    """JSON values without those of the keys that pass, at any depth: of times and processes, not of results."""
    if isinstance(values, dict):
        return {key: without_keys(value, passes) for key, value in values.items() if not passes(key)}
    return [without_keys(value, passes) for value in values] if isinstance(values, list) else values


def write_section(name: str, text: str) -> None:
    """Put `text` between the markers of section `name` of bench/RESULTS.md, appended where there are none."""
    begin, end = markers(name)
    old = (
        RESULTS.read_text(encoding="utf-8")
        if RESULTS.exists()
        else "# Results\n\nEvery section is written by the command it names.\n"
    )
    before, found, rest = old.partition(begin)
    after = rest.partition(end)[2] if found else "\n"
    if not found:
        before = before.rstrip() + "\n\n"
    RESULTS.write_text(f"{before}{begin}\n{text.strip()}\n{end}{after}", encoding="utf-8")


def read_section(name: str) -> str:
    """What stands in section `name`, empty where there is none."""
    begin, end = markers(name)
    return RESULTS.read_text(encoding="utf-8").partition(begin)[2].partition(end)[0]


def markers(name: str) -> tuple[str, str]:
    """The lines before and after a section."""
    return f"<!-- {name}:begin -->", f"<!-- {name}:end -->"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
