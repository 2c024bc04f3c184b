"""The page: tables, sentences and figures in one file that needs no network."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from hpcmpq.report import tables, words
from hpcmpq.report.findings import Findings, kind

FOLDER = Path(__file__).parent

# Background and text of a cell by number of bits; light to dark, so that the order also shows in grey.
BIT_COLOURS = {
    2: ("#fff3c4", "#1c2430"),
    3: ("#d3ecbb", "#1c2430"),
    4: ("#94d8bd", "#1c2430"),
    5: ("#4fb9c4", "#10202b"),
    6: ("#2a7fb4", "#ffffff"),
    7: ("#2b559c", "#ffffff"),
    8: ("#23307a", "#ffffff"),
    16: ("#141a3c", "#ffffff"),
}


@dataclass(frozen=True)
class Cell:
    """One group in the map of bits.

    Attributes:
        text: Number of bits, or the format's name when it is not an integer format.
        style: CSS class of its colour.
        title: The whole story for pointer and screen reader.
    """

    text: str
    style: str
    title: str


def page(findings: Findings, figures: dict[str, str], all_tables: list[tables.Table]) -> str:
    """The report as HTML.

    Args:
        findings: What the run found.
        figures: {name: SVG element}.
        all_tables: Every table that there is.
    """
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["show"] = words.show
    environment.filters["coded"] = coded
    kinds, rows = bit_map(findings)
    used = sorted(
        {chosen.name: chosen.num_bits for chosen in findings.formats}.items(), key=lambda pair: pair[1]
    )
    shown = {table.name: table for table in all_tables}
    return environment.get_template("report.html").render(
        findings=findings,
        words=words,
        tables=shown,
        figures={name: Markup(svg) for name, svg in figures.items()},
        css=Markup((FOLDER / "report.css").read_text()),
        bit_colours=BIT_COLOURS,
        bit_kinds=kinds,
        bit_rows=rows,
        legend=[(name, bits, sum(f.name == name for f in findings.formats)) for name, bits in used],
        model_name=model_name(findings),
        config=config_text(findings),
        command=f"hpcmpq run config.yaml --run-dir {shlex.quote(findings.run.path.name or 'run')}",
        environment=findings.plan.environment,
    )


def coded(sentence: str) -> Markup:
    """A sentence with `commands` in backticks as code elements, everything escaped.

    Example:
        >>> coded("run `hpcmpq solve <RUN>` first")
        Markup('run <code>hpcmpq solve &lt;RUN&gt;</code> first')
    """
    parts = sentence.split("`")
    marked = [
        Markup("<code>{}</code>").format(part) if k % 2 else escape(part) for k, part in enumerate(parts)
    ]
    return Markup("").join(marked)


def bit_map(findings: Findings) -> tuple[list[str], list[tuple[str, list[list[Cell]]]]]:
    """Kinds of groups, and per block in model order the cells of each kind; other groups come one a row."""
    groups = findings.plan.space.groups
    kinds = list(dict.fromkeys(kind(group) for group in groups if group.block is not None))
    cells: dict[str, list[list[Cell]]] = {}
    for group, chosen in zip(groups, findings.formats, strict=True):
        cell = Cell(
            str(chosen.num_bits) if chosen.type == "int" else chosen.name,
            f"b{min(BIT_COLOURS, key=lambda bits: abs(bits - chosen.num_bits))}",
            f"{group.name}: {chosen.name}, {group.numel:,} weights",
        )
        if group.block is None:
            cells[group.name] = [[cell]]
        else:
            row = cells.setdefault(f"block {group.block}", [[] for _ in kinds])
            row[kinds.index(kind(group))].append(cell)
    return kinds, list(cells.items())


def model_name(findings: Findings) -> str:
    """The last part of the model's path, or its factory."""
    model = findings.plan.config["model"]
    return str(model.get("factory") or Path(model["path"]).name)


def config_text(findings: Findings) -> str:
    """The resolved config with the budgets and solver settings of the solution, as YAML."""
    config: dict[str, Any] = {
        **findings.plan.config,
        "budgets": findings.solution["budgets"],
        "solver": findings.solution["solver"],
    }
    return yaml.safe_dump(_plain(config), sort_keys=False, width=100)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
