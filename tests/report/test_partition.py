"""The section on sub-graphs: there once times were measured, with what was chosen beside the original."""

import csv
from pathlib import Path

import pytest

from hpcmpq.report import write_report
from hpcmpq.report.findings import read_findings
from hpcmpq.report.partition import partition_table
from hpcmpq.store.json_files import write_json
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir
from tests.synthetic_run import write_run

pytestmark = pytest.mark.slow

pytest.importorskip("matplotlib")


@pytest.fixture
def timed(tmp_path: Path) -> RunDir:
    """A solved run with two sub-graphs a block, of which only those at int4 and less have kernels."""
    run = write_run(tmp_path / "run")
    plan = read_plan(run)
    names = [group.name for group in plan.space.groups]

    def kind(size: int) -> dict:
        rows = [{"formats": [f"int{bits}"] * size, "seconds": 1e-3 * bits} for bits in (2, 3, 4)]
        return {
            "rule": "all groups share a format",
            "tied": [list(range(size))],
            "combinations": rows,
            "original": {"seconds": 0.016},
        }

    parts = [{"groups": [], "class": None, "operations": 3}]
    for block in range(4):
        own = names[7 * block : 7 * block + 7]
        parts.append({"groups": own[:4], "class": "attention", "operations": 12})
        parts.append({"groups": own[4:], "class": "feed_forward", "operations": 5})
    phase = {
        "parts": parts,
        "classes": {"attention": kind(4), "feed_forward": kind(3)},
        "shared_s": 0.001,
        "original_s": 0.129,
    }
    machine = {"processor": "a processor", "device": "cpu", "threads": 1}
    times = {"fingerprint": plan.fingerprint, "machine": machine, "generated_tokens": 0}
    write_json(run.time_path, {**times, "phases": {"prefill": phase}})
    return run


def test_every_sub_graph_has_a_row_in_order(timed: RunDir):
    findings = read_findings(timed)
    table = partition_table(findings)
    assert [row[0] for row in table.rows] == list(range(1, 9))
    groups = [name for row in table.rows for name in row[1].split(", ")]
    assert groups == [group.name for group in findings.plan.space.groups]
    seconds = {f"int{bits}": 1.0 * bits for bits in (2, 3, 4)}
    for row in table.rows:
        formats = set(row[5].split(", "))
        one = formats.pop() if len(formats) == 1 else None
        assert row[6] == pytest.approx(16.0)
        assert row[7] == (None if one not in seconds else pytest.approx(seconds[one]))


def test_the_page_shows_the_sub_graphs(timed: RunDir):
    text = write_report(timed).read_text()
    assert 'id="time"' in text and 'id="plot-subgraphs"' in text and "a processor" in text
    with (timed.file("report") / "subgraphs.csv").open() as file:
        assert len(list(csv.reader(file))) == 9
    assert (timed.file("report") / "subgraphs.png").stat().st_size > 1000


@pytest.mark.usefixtures("no_png")
def test_without_times_there_is_no_such_section(tmp_path: Path):
    run = write_run(tmp_path / "run")
    assert 'id="time"' not in write_report(run).read_text()
    assert not (run.file("report") / "subgraphs.csv").exists()
