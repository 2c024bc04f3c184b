"""The report stage: RUN/report.html, one self-contained page, and RUN/report/ with its figures and tables.

findings.py   reads the artefacts of a run directory
checks.py     what to know before using the result
tables.py     size, costs and groups as plain tables, also written as CSV
measured.py   what evaluation measured, with intervals
bits.py       bits over depth and kind
what_if.py    the assignments of other budgets
curves.py     loss over size: frontier, bounds, uniform curve; frontier_tables.py the same in numbers
pairs.py      interactions of groups
partition.py  sequential sub-graphs and their measured times
stages.py     time and cost of each stage
provenance.py model, data, files, environment, and how to get it all again
display.py    numbers with units
words.py      findings to sentences
plots.py      figures; theme.py turns them to SVG and PNG, and to the page in light and dark
html.py       everything to the page, with report.html, report.css and report.js, which lets it be asked
"""

from pathlib import Path

from hpcmpq.errors import UserError
from hpcmpq.report.findings import Findings, read_findings
from hpcmpq.report.measured import measured_table
from hpcmpq.report.pairs import pair_table
from hpcmpq.report.provenance import files_table
from hpcmpq.report.stages import stage_table, usage_table
from hpcmpq.report.tables import Table, budget_table, comparison_table, group_table, write_csv
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.sums import check_sums
from hpcmpq.store.whole_files import replacing

FILES_FOLDER = "report"

AS_TABLE = ("bits",)
"""Figures that the page shows as tables instead."""


def write_report(run: RunDir) -> Path:
    """Write the page, figures and tables of a solved run directory; returns the page's path.

    Raises:
        UserError: If the run is not solved yet, or matplotlib is not installed.
        DamagedFile: If an artefact or a file of an export is damaged.
    """
    _check_exports(run)
    findings = read_findings(run)
    try:
        from hpcmpq.report.curves import marks
        from hpcmpq.report.html import page
        from hpcmpq.report.plots import all_figures
        from hpcmpq.report.theme import draw_svg, for_file, for_page, frame, save_png
    except ModuleNotFoundError as error:
        raise UserError(
            f"the report needs {error.name}, which is not installed; run `pip install 'hpcmpq[report]'` and "
            f"`hpcmpq report {run.path}` again"
        ) from None
    figures, tables = all_figures(findings), every_table(findings)
    folder = run.file(FILES_FOLDER)
    for table in tables:
        with replacing(folder / f"{table.name}.csv") as attempt:
            write_csv(table, attempt)
    drawn = {name: draw_svg(figure) for name, figure in figures.items()}
    for name, figure in figures.items():
        with replacing(folder / f"{name}.svg") as attempt:
            attempt.write_text(for_file(drawn[name]), encoding="utf-8")
        with replacing(folder / f"{name}.png") as attempt:
            save_png(figure, attempt)
    _remove_others(folder, {f"{table.name}.csv" for table in tables}, set(figures))
    shown = {name: for_page(name, svg) for name, svg in drawn.items() if name not in AS_TABLE}
    text = page(
        findings,
        shown,
        tables,
        marks(findings, figures["loss_against_size"]),
        frame(figures["interactions"]) if "interactions" in figures else None,
    )
    with replacing(run.report_path) as attempt:
        attempt.write_text(text, encoding="utf-8", errors="surrogateescape")
    return run.report_path


def _check_exports(run: RunDir) -> None:
    """That the files of exports, whose sizes and verification the page shows, are those that were read back."""
    check_sums(run.checkpoint_path, f"run `hpcmpq export {run.path}` again to write it anew")
    for folder in sorted(run.file("exports").glob("*")):
        check_sums(folder, f"run `hpcmpq export {run.path} --format {folder.name}` again to write it anew")


def _remove_others(folder: Path, tables: set[str], figures: set[str]) -> None:
    """Remove what an earlier report wrote of artefacts that are gone."""
    kept = tables | {f"{name}.{suffix}" for name in figures for suffix in ("svg", "png")}
    for path in folder.iterdir():
        if path.suffix in (".csv", ".svg", ".png") and path.name not in kept:
            path.unlink()


def every_table(findings: Findings) -> list[Table]:
    """Every table that the artefacts allow."""
    from hpcmpq.report.frontier_tables import assignments_table, frontier_table
    from hpcmpq.report.partition import partition_table

    found = [comparison_table(findings), budget_table(findings), group_table(findings), pair_table(findings)]
    found.append(stage_table(findings))
    optional = [measured_table(findings), files_table(findings), usage_table(findings)]
    if findings.frontier is not None:
        optional += [frontier_table(findings), assignments_table(findings)]
    if findings.plan.times is not None:
        optional.append(partition_table(findings))
    return [*found, *(table for table in optional if table is not None)]
