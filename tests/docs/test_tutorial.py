"""The tutorial's commands, as they stand on the page, one after the other in a copy of what they need."""

import json
import shutil
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, RunPage

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ran(run_page: RunPage, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The directory after the whole page, and what each block printed; `hpcmpq` is this checkout's."""
    directory = tmp_path_factory.mktemp("tutorial")
    shutil.copytree(ROOT / "configs" / "quickstart_model", directory / "configs" / "quickstart_model")
    printed = run_page("tutorial.md", directory)
    return directory / "runs" / "tutorial", printed


def test_every_stage_is_on_the_page_and_leaves_its_file(ran: tuple[Path, dict[str, str]]):
    run, printed = ran
    commands = "\n".join(printed)
    for stage in (
        "plan",
        "calibrate",
        "reduce",
        "solve",
        "frontier",
        "refine",
        "evaluate",
        "report",
        "status",
        "run",
    ):
        assert f"hpcmpq {stage} " in commands
    for name in ("plan.json", "quadratic.h5", "frontier.json", "evaluation.json", "report.html"):
        assert (run / name).stat().st_size > 0
    assert (run / "checkpoint" / "model.safetensors").exists()


def test_what_the_page_says_about_budgets_and_points_holds(ran: tuple[Path, dict[str, str]]):
    run, printed = ran
    solution = json.loads((run / "solution.json").read_text())
    assert solution["budgets"] == {"weight_bits": 3.0}, "the last run solves for the config's one budget"
    assert solution["costs"]["weight_bits"] <= 3.0 + 1e-9
    frontier = json.loads((run / "frontier.json").read_text())
    assert [point["limit"] for point in frontier["points"]] == [2.0, 2.5, 3.0, 3.5, 4.0]
    assert all(point["bound"] <= point["objective"] + 1e-12 for point in frontier["points"])


def test_calibration_stops_after_one_unit_and_another_config_is_refused(ran: tuple[Path, dict[str, str]]):
    run, printed = ran
    num_units = len(json.loads((run / "plan.json").read_text())["units"])
    assert num_units > 1
    [stopped] = [text for block, text in printed.items() if "--at-most 1" in block]
    assert f"1 of {num_units} units" in stopped
    [refused] = [text for block, text in printed.items() if "changed.yaml" in block]
    assert "num_samples" in refused
