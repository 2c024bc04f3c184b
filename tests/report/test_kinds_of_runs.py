"""The report of other kinds of runs: many groups, no blocks, no interactions, other formats, objectives and goals."""

import csv
from importlib.util import find_spec
from pathlib import Path

import pytest

from hpcmpq.report import write_report
from hpcmpq.report.findings import read_findings
from hpcmpq.report.provenance import commands, config_text
from hpcmpq.store.json_files import read_json, write_json
from hpcmpq.store.run_dir import RunDir
from tests.report.other_runs import transformer, write_other_run
from tests.report.parsed_page import Page, squeezed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("matplotlib") is None, reason="needs the extra report"),
]

KINDS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up", "mlp.down")
NAMES = {"stem.conv": None, "layer1.conv": None, "layer2.conv": None, "head": None}
INTEGERS = ("int2", "int3", "int4", "int8")


def read(run: RunDir) -> Page:
    """The run's report, and what has to hold of every report."""
    page = Page(write_report(run).read_text())
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link["href"][1:] for link in page.all("a")} <= set(ids)
    sections = [attributes["id"] for attributes in page.all("section")]
    linked = [link["href"][1:] for link in page.all("a") if link.get("class") != "skip"]
    assert linked == sections
    assert not {"nan", "inf", "None"} & set(squeezed(page.text).split())
    return page


def texts(page: Page, style: str) -> list[str]:
    """Titles of the cells of the map."""
    return [a["title"] for a in page.all("span") if a.get("class", "").startswith(style)]


def test_hundreds_of_groups_stay_readable_and_small(tmp_path: Path):
    names = transformer(40, KINDS, head=True)
    run = write_other_run(tmp_path / "run", names, INTEGERS, budgets={"weight_bits": 5.0})
    page = read(run)
    assert len(texts(page, "bits ")) == 241
    spans = [cell for cell in page.all("td") if cell.get("colspan")]
    assert [cell["colspan"] for cell in spans] == ["6"], "the head outside the blocks stands under no kind"
    assert "None" not in run.report_path.read_text()
    assert (
        run.report_path.stat().st_size < 800_000
    )  # of which every pair of groups, to be pointed at, is 155 kB
    assert sum(path.stat().st_size for path in run.file("report").iterdir()) < 3_000_000


@pytest.mark.usefixtures("no_png")
def test_model_without_blocks_is_a_list_of_named_cells(tmp_path: Path):
    measured = {"original": 0.0, "quantized": 0.02, "uniform": 0.05}
    run = write_other_run(tmp_path / "run", NAMES, INTEGERS, budgets={"weight_bits": 5.0}, measured=measured)
    page = read(run)
    text = squeezed(page.text)
    assert [title.split(":")[0] for title in texts(page, "bits ")] == list(NAMES)
    assert "Groups in model order." in text and "block of the model" not in text
    assert "Accuracy" in text and "Perplexity" not in text
    assert "held-out samples" in text and "held-out tokens" not in text


@pytest.mark.usefixtures("no_png")
def test_formats_that_round_inputs_go_by_their_names(tmp_path: Path):
    run = write_other_run(
        tmp_path / "run", NAMES, ("w4a8", "w8a8", "fp8_e4m3", "bf16"), budgets={"bops": 1e9}
    )
    page = read(run)
    text = squeezed(page.text)
    for name in ("w4a8", "w8a8", "fp8_e4m3", "bf16"):
        assert f"{name} {name}: 1 group" in text
    assert "bit operations" in text


@pytest.mark.usefixtures("no_png")
def test_without_interactions_there_is_a_sentence_and_no_empty_picture(tmp_path: Path):
    run = write_other_run(tmp_path / "run", NAMES, INTEGERS, cross_terms=False, budgets={"weight_bits": 5.0})
    page = read(run)
    assert "the sensitivity fisher looks at each group alone" in squeezed(page.text)
    assert not run.file("report/interactions.png").exists()
    assert "plot-interactions" not in {a.get("id") for a in page.all("figure")}


@pytest.mark.usefixtures("no_png")
def test_unknown_size_of_interactions_is_said(tmp_path: Path):
    run = write_other_run(tmp_path / "run", NAMES, INTEGERS, budgets={"weight_bits": 5.0})
    assert "Calibration samples differ on the sign." in squeezed(read(run).text)


@pytest.mark.usefixtures("no_png")
def test_interactions_that_are_all_noise_are_said_to_be(tmp_path: Path):
    run = write_other_run(tmp_path / "run", NAMES, INTEGERS, noise=2.0, budgets={"weight_bits": 5.0})
    assert "No interaction at the chosen formats can be told from the noise" in squeezed(read(run).text)
    assert not run.file("report/interactions.png").exists()


@pytest.mark.usefixtures("no_png")
@pytest.mark.parametrize("objective", ["ce", "mse"])
def test_other_objectives(tmp_path: Path, objective: str):
    measured = {"original": 0.0, "quantized": 0.02, "uniform": 0.05}
    run = write_other_run(
        tmp_path / "run",
        NAMES,
        INTEGERS,
        objective=objective,
        measured=measured,
        budgets={"weight_bits": 5.0},
    )
    text = squeezed(read(run).text)
    named = {"ce": "cross-entropy", "mse": "mean squared output distance"}[objective]
    assert f"the measured {named} is" in text
    assert ("its increase over the original is" in text) == (objective == "ce")


@pytest.mark.usefixtures("no_png")
def test_no_budget(tmp_path: Path):
    text = squeezed(read(write_other_run(tmp_path / "run", NAMES, INTEGERS)).text)
    assert "No budget was set" in text


@pytest.mark.usefixtures("no_png")
def test_one_uniform_format_alone(tmp_path: Path):
    measured = {"original": 0.0, "quantized": 0.02, "uniform": 0.02}
    run = write_other_run(tmp_path / "run", NAMES, ("int4",), budgets={"weight_bits": 5.0}, measured=measured)
    assert "no mix of formats was found to be better than uniform int4" in squeezed(read(run).text)


def test_measured_change_is_shown_only_beside_a_uniform_model_of_the_same_size(tmp_path: Path):
    from hpcmpq.report.curves import measured_against_uniform

    measured = {"original": 0.0, "quantized": 0.02, "uniform": 0.05}
    mixed = write_other_run(tmp_path / "mixed", NAMES, INTEGERS, measured=measured)
    assert measured_against_uniform(read_findings(mixed)) is None
    same = write_other_run(tmp_path / "same", NAMES, ("int4",), measured=measured)
    change, low, high = measured_against_uniform(read_findings(same))
    assert low < change < high < 0
    assert change == pytest.approx(0.02 / 0.05 - 1)


def test_nothing_is_said_between_uniform_formats_that_lie_far_apart(tmp_path: Path):
    from hpcmpq.report.curves import below_uniform, uniform_curve

    findings = read_findings(write_other_run(tmp_path / "run", NAMES, ("int3", "int4", "int8")))
    increase = {name: loss for name, _, loss in uniform_curve(findings)}
    middle = (increase["int3"] * increase["int4"]) ** 0.5
    assert below_uniform(findings, 3.5, middle) == pytest.approx(0.0)
    assert below_uniform(findings, 3.5, 0.8 * middle) == pytest.approx(0.2)
    assert below_uniform(findings, 8.0, 0.5 * increase["int8"]) == pytest.approx(0.5)
    assert below_uniform(findings, 6.0, middle) is None
    assert below_uniform(findings, 2.9, middle) is None
    assert below_uniform(findings, 8.1, middle) is None


@pytest.mark.usefixtures("no_png")
def test_solution_that_maximises_a_gain(tmp_path: Path):
    run = write_other_run(tmp_path / "run", NAMES, INTEGERS, budgets={"size_bytes": 30_000, "weight_bits": 5})
    solution = read_json(run.solution_path, "")
    solution |= {"gap": None, "bound": None}
    solution["maximized"] = {
        "gain": "memory_gain", "cost": "size_bytes", "unit": "bytes", "original": 60_000.0, "reached": 30_000.0,
        "saved": 30_000.0, "saved_share": 0.5, "bound": 31_000.0, "limit_on": "loss_increase", "limit": 0.25,
        "loss_limit": 0.25,
    }  # fmt: skip
    write_json(run.solution_path, solution)
    text = squeezed(read(run).text)
    assert "the largest memory gain within a limit on the loss" in text and "50 % less" in text
    findings = read_findings(run)
    assert "hpcmpq solve run --maximize memory_gain --max-loss 0.25 --budget weight_bits=5" in commands(
        findings
    )
    assert "size_bytes" not in config_text(findings)


def test_commands_name_every_stage_that_made_the_solution(tmp_path: Path):
    run = write_other_run(tmp_path / "run", NAMES, INTEGERS, budgets={"weight_bits": 5.0})
    solution = read_json(run.solution_path, "")
    attempt = {"method": "qep", "strength": 0.5, "kept": True}

    def told(**changes: object) -> list[str]:
        write_json(run.solution_path, {**solution, **changes})
        return commands(read_findings(run))[:-1]

    planned, solved = "hpcmpq plan config.yaml --run-dir run", ["hpcmpq calibrate run", "hpcmpq reduce run"]
    last = ["hpcmpq export run", "hpcmpq evaluate run"]
    assert told(refine={}) == ["hpcmpq run config.yaml --run-dir run"]
    assert told() == [planned, *solved, "hpcmpq solve run", *last]  # though samples are held out
    rerounded = told(
        refine={}, reround={"history": [attempt, {**attempt, "method": "gptq", "strength": 0.0}]}
    )
    assert rerounded == [
        planned, *solved, "hpcmpq solve run", "hpcmpq refine run", "hpcmpq reround run --method qep --strength 0.5",
        "hpcmpq reround run --method gptq --strength 0", *last,
    ]  # fmt: skip
    values = read_json(run.plan_path, "")
    values["config"]["reround"] = {"method": "qep", "strength": None}
    write_json(run.plan_path, values)
    assert told(refine={}, reround={"history": [attempt]}) == ["hpcmpq run config.yaml --run-dir run"]


@pytest.mark.usefixtures("no_png")
def test_images_have_no_tokens_rounding_is_a_stage_and_a_new_cost_has_no_uniform_value(tmp_path: Path):
    run = write_other_run(
        tmp_path / "run", NAMES, INTEGERS, budgets={"weight_bits": 5.0}, measured={
            "original": 0.0, "quantized": 0.1, "uniform": 0.2,
        },
    )  # fmt: skip
    evaluation = read_json(run.evaluation_path, "")
    del evaluation["uniform_costs"]["weight_bits"]
    write_json(run.evaluation_path, evaluation)
    write_json(run.file("timings.json"), {"round": {"seconds": 7.0, "finished": "2026-01-01T00:00:00+00:00"}})
    text = squeezed(read(run).text)
    assert "64 samples" in text and "samples of 512 tokens" not in text
    assert "that of uniform" in text
    with run.file("report/stages.csv").open() as file:
        assert "round" in {row["stage"] for row in csv.DictReader(file)}
    values = read_json(run.plan_path, "")
    write_json(run.plan_path, {**values, "tokens_per_sample": 48})
    assert "64 samples of 48 tokens" in squeezed(read(run).text)


@pytest.mark.usefixtures("no_png")
def test_damaged_attempts_and_failures_are_counted(tmp_path: Path):
    run = write_other_run(tmp_path / "run", NAMES, INTEGERS, budgets={"weight_bits": 5.0})
    unit = read_findings(run).plan.units[0].id
    run.attempts_path.mkdir()
    lines = (
        '{"host": "node7", "job_id": "", "started": 1.0}\n'
        f'{{"unit_id": "{unit}", "seconds": 0.0, "finished": 2.0, "error": "disk full", "final": false}}\n'
        f'{{"unit_id": "{unit}", "seconds": 12.5, "finished": 3.0, "error": null, "final": true}}\n'
        '{"unit_id": "torn'
    )
    (run.attempts_path / "1.0-node7-1.jsonl").write_text(lines)
    text = squeezed(read(run).text)
    assert "on 1 host, 12.5 s of measurement in all; 1 failed attempt, none of them not made up for" in text
    assert "node7" in text
    with run.file("report/stages.csv").open() as file:
        rows = {row["stage"]: row for row in csv.DictReader(file)}
    assert rows["calibrate"]["seconds"] == "" and "12.5" in rows["calibrate"]["work"]


@pytest.mark.usefixtures("no_png")
@pytest.mark.filterwarnings("error:No artists with labels")
def test_losses_that_did_not_rise_are_told_and_not_drawn(tmp_path: Path):
    measured = {"original": 0.0, "quantized": -0.02, "uniform": -0.01}
    run = write_other_run(
        tmp_path / "run", NAMES, INTEGERS, objective="ce", budgets={"weight_bits": 5.0}, measured=measured
    )
    page = read(run)
    assert "The loss did not rise, so predicted and measured rise cannot be compared." in squeezed(page.text)
    assert not list(run.file("report").glob("predicted_against_measured.*"))
