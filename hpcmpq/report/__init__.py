"""The report stage: RUN/report.html, one self-contained page, and RUN/report/ with its figures and tables.

findings.py  reads the artefacts of a run directory
tables.py    findings to plain tables, also written as CSV
words.py     findings to sentences
plots.py     findings to figures
measured.py  what evaluation measured, with intervals
partition.py sequential sub-graphs and their measured times
theme.py     figures to SVG and PNG, and to the page in light and dark
html.py      tables, sentences and figures to the page, with report.html and report.css
"""

from pathlib import Path

from hpcmpq.errors import UserError
from hpcmpq.report.findings import read_findings
from hpcmpq.report.measured import measured_table
from hpcmpq.report.tables import all_tables, write_csv
from hpcmpq.store import RunDir, replacing

FILES_FOLDER = "report"


def write_report(run: RunDir) -> Path:
    """Write the page, figures and tables of a solved run directory; returns the page's path.

    Raises:
        UserError: If the run is not solved yet, or matplotlib is not installed.
    """
    findings = read_findings(run)
    try:
        from hpcmpq.report.html import page
        from hpcmpq.report.partition import partition_figure, partition_table
        from hpcmpq.report.plots import all_figures
        from hpcmpq.report.theme import save, to_svg
    except ModuleNotFoundError as error:
        raise UserError(
            f"the report needs {error.name}, which is not installed; run `pip install 'hpcmpq[report]'` and "
            f"`hpcmpq report {run.path}` again"
        ) from None
    figures, tables = all_figures(findings), all_tables(findings)
    measured = measured_table(findings)
    if measured is not None:
        tables.append(measured)
    if findings.plan.times is not None:
        figures["subgraphs"] = partition_figure(findings)
        tables.append(partition_table(findings))
    folder = run.file(FILES_FOLDER)
    for table in tables:
        with replacing(folder / f"{table.name}.csv") as attempt:
            write_csv(table, attempt)
    for name, figure in figures.items():
        for suffix in ("svg", "png"):
            with replacing(folder / f"{name}.{suffix}") as attempt:
                save(figure, attempt, suffix)
    text = page(findings, {name: to_svg(name, figure) for name, figure in figures.items()}, tables)
    with replacing(run.report_path) as attempt:
        attempt.write_text(text)
    return run.report_path
