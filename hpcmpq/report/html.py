"""The page: tables, sentences and figures in one file that needs no network."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from hpcmpq.report import pairs, provenance, words
from hpcmpq.report.bits import BIT_COLOURS, bit_map, nearest, shown_format
from hpcmpq.report.checks import all_checks
from hpcmpq.report.curves import curve_words
from hpcmpq.report.display import cost_title, show
from hpcmpq.report.findings import Findings
from hpcmpq.report.tables import Table
from hpcmpq.report.what_if import questions, stretches
from hpcmpq.store.of_solution import solution_id

FOLDER = Path(__file__).parent
MARKS = {"passes": "✓", "take care": "!", "fails": "✗", "open": "?"}


def page(
    findings: Findings,
    figures: dict[str, str],
    all_tables: list[Table],
    marks: list[list[float] | None],
    frame: list[float] | None,
) -> str:
    """The report as HTML.

    Args:
        findings: What the run found.
        figures: {name: SVG element}.
        all_tables: Every table that there is.
        marks: Places of assignments on the figure of losses, see `hpcmpq.report.curves.marks`.
        frame: Of the map of interactions on its figure, see `hpcmpq.report.theme.frame`.
    """
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=unbroken,
    )
    environment.filters["show"] = show
    environment.filters["cost_title"] = cost_title
    environment.filters["coded"] = coded
    environment.filters["breakable"] = breakable
    script = (FOLDER / "report.js").read_text(encoding="utf-8")
    return environment.get_template("report.html").render(
        findings=findings,
        words=words,
        pairs=pairs,
        provenance=provenance,
        checks=[(check, MARKS[check.state]) for check in all_checks(findings)],
        tables={table.name: table for table in all_tables},
        figures={name: Markup(svg) for name, svg in figures.items()},
        curve_words=curve_words(findings),
        css=Markup((FOLDER / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii"),
        data=as_data({"budgets": questions(findings, marks), "pairs": pairs.all_pairs(findings, frame)}),
        stretches=stretches(findings),
        bit_colours=BIT_COLOURS,
        bits=bit_map(findings),
        legend=_legend(findings),
        model_name=provenance.model_name(findings),
        environment=findings.plan.environment,
        solution_id=solution_id(findings.solution),
    )


def as_data(values: Any) -> Markup:
    r"""Values as JSON within a script element, which no text in them can end.

    Example:
        >>> as_data({"name": "</script>"})
        Markup('{"name":"\\u003c/script>"}')
    """
    return Markup(json.dumps(values, separators=(",", ":")).replace("<", "\\u003c"))


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
    return unbroken(Markup("").join(marked))


def breakable(text: str) -> Markup:
    """A text that narrow columns may break before the dots of a long name.

    Example:
        >>> breakable("model.layers.0")
        Markup('model<wbr>.layers<wbr>.0')
        >>> breakable("2.5 MB")
        Markup('2.5 MB')
    """
    return escape(text) if text[:1] in "+−0123456789<" else Markup("<wbr>.").join(text.split("."))


def unbroken(value: Any) -> Any:
    """A sentence whose per cents stay with their numbers at the end of a line; anything else as it is."""
    return (
        value.replace(" %", "\N{NO-BREAK SPACE}%") if isinstance(value, str) and len(value) < 2000 else value
    )


def _legend(findings: Findings) -> list[tuple[str, str, int, str]]:
    """(format, text and colour of its cells, what it holds) of every format in use, fewest bits first."""
    groups, total = findings.plan.space.groups, sum(group.numel for group in findings.plan.space.groups)
    found = []
    for chosen in sorted(dict.fromkeys(findings.formats), key=lambda form: form.num_bits):
        sizes = [g.numel for g, form in zip(groups, findings.formats, strict=True) if form == chosen]
        counted = f"{len(sizes)} group{'' if len(sizes) == 1 else 's'}"
        holds = counted if total == 0 else f"{counted}, {show(sum(sizes) / total, 'share')} of the weights"
        found.append((chosen.name, shown_format(chosen), nearest(chosen.num_bits), holds))
    return found
