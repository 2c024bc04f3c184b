"""The report of a synthetic run: complete, self-contained, well formed and readable by everybody."""

import base64
import csv
import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from hpcmpq.config import parse_config
from hpcmpq.errors import DamagedFile, UserError
from hpcmpq.report import every_table, write_report
from hpcmpq.report.findings import read_findings
from hpcmpq.report.plots import all_figures
from hpcmpq.report.provenance import config_text, model_name
from hpcmpq.solve.shrinkage import shrunk
from hpcmpq.store.json_files import read_json, write_json
from hpcmpq.store.run_dir import RunDir
from tests.report.parsed_page import Page, squeezed
from tests.synthetic_run import round_again, write_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = write_run(tmp_path_factory.mktemp("full") / "run", frontier=True, evaluated=True)
    write_json(run.file("timings.json"), {"plan": {"seconds": 2.5}, "calibrate": {"seconds": 63.25}})
    write_report(run)
    return run


@pytest.fixture(scope="module")
def page(full: RunDir) -> Page:
    return Page(full.report_path.read_text())


def test_page_needs_nothing_but_itself(full: RunDir, page: Page):
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "embed"), tag
        for name in ("src", "href", "data", "action", "srcset"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:image/png;base64,")), value[:80]
    style = re.search(r"<style>(.*?)</style>", full.report_path.read_text(), re.DOTALL)
    assert style is not None
    assert "@import" not in style[1]
    assert "url(" not in style[1]


def test_the_only_script_that_may_run_is_the_page_s_own(full: RunDir, page: Page):
    """The policy that browsers hold the page to: its hash is that of the script, and nothing is fetched."""
    assert page.all("script") == [{"type": "application/json", "id": "data"}, {}]
    [policy] = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    [script] = re.findall(r"<script>(.*?)</script>", full.report_path.read_text(), re.DOTALL)
    digest = hashlib.sha256(script.encode()).digest()
    assert f"script-src 'sha256-{base64.b64encode(digest).decode()}'" in policy
    assert policy.startswith("default-src 'none';") and "http" not in policy
    assert not re.search(r"fetch\(|XMLHttpRequest|WebSocket|import\(|https?:", script)
    assert not [a for _, a in page.elements if any(name.startswith("on") for name in a)]


def test_every_solved_budget_is_in_the_page(full: RunDir, page: Page):
    """Formats, losses, bounds and what differs from the shown assignment, as data and, without the script, as text."""
    [text] = re.findall(r'id="data">(.*?)</script>', full.report_path.read_text(), re.DOTALL)
    asked = json.loads(text)["budgets"]
    frontier, ours = read_json(full.frontier_path, ""), read_json(full.solution_path, "")
    points = sorted(frontier["points"], key=lambda point: point["costs"]["weight_bits"])
    assert len(asked["stops"]) == len(points) == 6
    start = [point["assignment"] == ours["assignment"] for point in points].index(True)
    assert asked["start"] == start
    for stop, point in zip(asked["stops"], points, strict=True):
        formats = [asked["formats"][k][0] for k in stop["formats"]]
        assert dict(zip(asked["groups"], formats, strict=True)) == point["assignment"]
        facts = dict(stop["facts"])
        assert facts["Predicted KL"] == f"{point['predicted_loss']:#.4g}"
        assert facts["Proven lower bound"].split()[0] == f"{point['bound']:#.4g}"
        assert facts["Bits per weight"].split()[0] == f"{point['costs']['weight_bits']:.3f}".rstrip(
            "0"
        ).rstrip(".")
        assert 0 < stop["mark"][0] < 1 and 0 < stop["mark"][1] < 1
    across, down = zip(*(stop["mark"] for stop in asked["stops"]), strict=True)
    assert list(across) == sorted(across) and list(down) == sorted(down), "the curve falls from left to right"
    with (full.file("report") / "frontier.csv").open() as file:
        changed = [int(row["changed"]) for row in csv.DictReader(file)]
    assert changed == [
        sum(point["assignment"][g] != f for g, f in ours["assignment"].items()) for point in points
    ]
    with (full.file("report") / "assignments.csv").open() as file:
        rows = {(row["group"], float(row["limit"])): row["format"] for row in csv.DictReader(file)}
    assert rows == {(g, point["limit"]): f for point in points for g, f in point["assignment"].items()}
    spoken = squeezed(page.text)
    first = next(iter(ours["assignment"]))
    assert (
        f"{points[0]['assignment'][first]} at {points[0]['costs']['weight_bits']:.3f}".rstrip("0") in spoken
    )


def test_ids_are_unique_and_links_lead_somewhere(page: Page):
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [attributes["href"][1:] for attributes in page.all("a")]
    targets += [attributes["aria-labelledby"] for attributes in page.all("section")]
    targets += [attributes["href"][1:] for attributes in page.all("use")]
    assert targets
    assert set(targets) <= set(ids)


def test_every_figure_has_a_text_alternative_and_a_caption(page: Page):
    images = [attributes for _, attributes in page.elements if attributes.get("role") == "img"]
    assert len(images) == len(page.all("figure")) == len(page.all("figcaption")) == 3
    assert all(60 < len(attributes["aria-label"]) < 400 for attributes in images)
    assert all(attributes["aria-hidden"] == "true" for attributes in page.all("svg"))


def test_structure_can_be_heard(page: Page):
    assert page.all("html") == [{"lang": "en"}]
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    assert all(attributes.get("scope") in ("row", "col") for attributes in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    first_link = page.all("a")[0]
    assert first_link["class"] == "skip"
    scrolling = [a for a in page.all("div") if a.get("class") == "scroll"]
    assert scrolling
    assert all(a["tabindex"] == "0" and a["role"] == "group" and a["aria-label"] for a in scrolling)


def test_headline_and_tables_say_what_the_artefacts_say(full: RunDir, page: Page):
    evaluation, solution = read_json(full.evaluation_path, ""), read_json(full.solution_path, "")
    text = squeezed(page.text)
    quantized, uniform = evaluation["kl"]["quantized"], evaluation["kl"]["uniform"]
    below = f"{100 * (1 - quantized / uniform):.3g} % below that of uniform int3 ({uniform:#.4g} at 3 bits per weight)"
    assert (
        f"the measured KL divergence to the original is {quantized:#.4g} on 8,128 held-out tokens: {below}"
        in text
    )
    assert f"{solution['predicted_loss']:.4g}" in text
    assert f"{quantized + 1.96 * evaluation['kl_stderr']['quantized']:#.4g} (95 %)" in text
    assert re.search(r"Proven gap ?4 %", text)
    assert "calibrate 63.2 s" in text


def test_the_map_shows_the_bits_of_every_group(full: RunDir, page: Page):
    assignment = read_json(full.solution_path, "")["assignment"]
    titles = [a["title"] for a in page.all("span") if a.get("class", "").startswith("bits ")]
    assert [title.split(",")[0] for title in titles] == [f"{name}: {fmt}" for name, fmt in assignment.items()]
    classes = [a["class"] for a in page.all("span") if a.get("class", "").startswith("bits ")]
    assert classes == [f"bits b{fmt[3:]}" for fmt in assignment.values()]


def test_strongest_pair_is_named_in_words(full: RunDir, page: Page):
    with (full.file("report") / "pairs.csv").open() as file:
        first = next(csv.DictReader(file))
    block, last = re.search(r"layers\.(\d+)\..*\.(\w+)$", first["group"]).groups()
    effect = "add" if float(first["interaction"]) > 0 else "take off"
    assert f"{last} of block {block} in " in squeezed(page.text)
    assert f"together {effect} {abs(float(first['interaction'])):.4g} beyond" in squeezed(page.text)


def test_strongest_pair_is_the_largest_interaction_of_the_chosen_options(full: RunDir):
    from tests.synthetic_run import synthetic_model, synthetic_plan

    choice_G = synthetic_plan().space.choice(read_json(full.solution_path, "")["assignment"])
    largest = np.abs(shrunk(synthetic_model(), "auto").quad_PP[np.ix_(choice_G, choice_G)]).max()
    with (full.file("report") / "pairs.csv").open() as file:
        values = [abs(float(row["interaction"])) for row in csv.DictReader(file)]
    assert values[0] == pytest.approx(largest)
    assert values == sorted(values, reverse=True)


def test_reproduce_box_holds_a_config_that_reads_back(full: RunDir):
    text = full.report_path.read_text()
    [config] = re.findall(r'aria-label="Config"><code>(.*?)</code>', text, re.DOTALL)
    values = yaml.safe_load(config.replace("&#39;", "'").replace("&#34;", '"').replace("&amp;", "&"))
    read = parse_config(values)
    assert dict(read.budgets) == {"weight_bits": 3.0}
    assert read.calibration.num_samples == 64


def test_files_hold_the_figures_and_tables(full: RunDir):
    folder = full.file("report")
    names = {path.name for path in folder.iterdir()}
    figures = {"bits", "loss_against_size", "interactions", "predicted_against_measured"}
    tables = {"comparison", "budgets", "groups", "pairs", "stages", "frontier", "assignments"}
    wanted = {f"{name}.{suffix}" for name in figures for suffix in ("svg", "png")}
    assert names == wanted | {f"{name}.csv" for name in tables}
    for name in figures:
        with Image.open(folder / f"{name}.png") as image:
            assert image.convert("L").getextrema()[0] < 128
    with (folder / "comparison.csv").open() as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    evaluation = read_json(full.evaluation_path, "")
    assert float(rows["this assignment"]["measured_loss"]) == evaluation["kl"]["quantized"]
    assert float(rows["uniform int3"]["measured_loss"]) == evaluation["kl"]["uniform"]
    assert rows["uniform int4"]["measured_loss"] == ""


def test_frontier_is_compared_with_the_straight_line_between_uniform_formats_on_a_logarithmic_scale(
    full: RunDir,
):
    uniform = read_json(full.solution_path, "")["uniform"]
    with (full.file("report") / "frontier.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    for row in rows:
        low = int(float(row["weight_bits"]))
        weight = float(row["weight_bits"]) - low
        between = (
            uniform[f"int{low}"]["predicted_loss"] ** (1 - weight)
            * uniform[f"int{low + 1}"]["predicted_loss"] ** weight
        )
        assert float(row["below_uniform"]) == pytest.approx(1 - float(row["predicted_loss"]) / between)
        assert float(row["bound"]) <= float(row["predicted_loss"])


def test_page_is_the_same_each_time(full: RunDir):
    before = full.report_path.read_bytes()
    write_report(full)
    assert full.report_path.read_bytes() == before


@pytest.mark.usefixtures("no_png")
def test_missing_artefacts_say_which_command_makes_them(tmp_path: Path):
    run = write_run(tmp_path / "run")
    text = squeezed(Page(write_report(run).read_text()).text)
    assert f"There is no evaluation.json yet; run hpcmpq evaluate {run.path} to get it." in text
    assert f"There is no frontier.json yet; run hpcmpq frontier {run.path} to get it." in text
    assert "It has not been measured yet." in text


@pytest.mark.usefixtures("no_png")
def test_files_of_artefacts_that_are_gone_are_removed(tmp_path: Path):
    run = write_run(tmp_path / "run", frontier=True)
    write_report(run)
    assert (run.file("report") / "frontier.csv").exists()
    run.frontier_path.unlink()
    (run.file("report") / "notes.txt").write_text("somebody's own")
    write_report(run)
    assert not (run.file("report") / "frontier.csv").exists()
    assert (run.file("report") / "notes.txt").exists()


def test_page_on_the_report_names_every_file_and_column(full: RunDir, tmp_path: Path):
    """docs/report.md against the CSV files of a run that has all of them."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "report.md").read_text()
    rows = re.findall(r"^\| `(\w+)\.csv` \|[^|]*\| (.*) \|$", text, re.MULTILINE)
    listed = {name: re.findall(r"`([a-z_]+)`", columns) for name, columns in rows}
    run = RunDir(Path(shutil.copytree(full.path, tmp_path / "run")))
    run.checkpoint_path.mkdir()
    found = {
        table.name: [column.name for column in table.columns] for table in every_table(read_findings(run))
    }
    assert set(found) == set(listed) - {"measured", "subgraphs", "usage"}
    for name, columns in found.items():
        assert set(columns) - {"weight_bits", "accuracy"} <= set(listed[name]), name
        assert len(columns) >= len(listed[name]) - 2, name
    for name in all_figures(read_findings(run)):
        assert f"`{name}`" in text


@pytest.mark.usefixtures("no_png")
def test_evaluation_of_another_assignment_is_not_shown(tmp_path: Path):
    run = write_run(tmp_path / "run", evaluated=True)
    evaluation = read_json(run.evaluation_path, "")
    first = next(iter(evaluation["assignment"]))
    evaluation["assignment"][first] = "int8"
    write_json(run.evaluation_path, evaluation)
    text = squeezed(Page(write_report(run).read_text()).text)
    assert "evaluation.json measured another assignment" in text
    assert f"{evaluation['kl']['quantized']:.4g}" not in text


@pytest.mark.usefixtures("no_png")
def test_evaluation_of_the_codes_before_is_not_shown(tmp_path: Path):
    run = write_run(tmp_path / "run", evaluated=True)
    round_again(run)
    text = squeezed(Page(write_report(run).read_text()).text)
    assert "evaluation.json measured other codes of the assignment" in text


@pytest.mark.usefixtures("no_png")
def test_refined_solution_shows_its_interval_and_link(tmp_path: Path):
    run = write_run(tmp_path / "run", evaluated=True)
    solution = read_json(run.solution_path, "")
    points = {"predicted": [0.01, 0.1, 0.4], "measured": [0.012, 0.11, 0.38]}
    solution.update(expected_loss=0.2, expected_interval=[0.15, 0.27], refine={"link": points})
    write_json(run.solution_path, solution)
    text = squeezed(Page(write_report(run).read_text()).text)
    assert "expects 0.2000, between 0.1500 and 0.2700 with 90 % coverage" in text


@pytest.mark.usefixtures("no_png")
def test_names_from_the_model_are_escaped(tmp_path: Path):
    run = write_run(tmp_path / "run")
    text = run.plan_path.read_text().replace("models/tiny-llama", "models/<script>alert(1)&")
    run.plan_path.write_text(text)
    written = write_report(run).read_text()
    assert "<script>alert" not in written and written.count("<script") == 2
    assert "&lt;script&gt;alert(1)&amp;" in written


@pytest.mark.usefixtures("no_png")
def test_title_is_what_was_given_and_not_where_its_weights_were_unpacked(tmp_path: Path):
    run = write_run(tmp_path / "tiny")
    text = run.plan_path.read_text().replace("models/tiny-llama", "elsewhere/tiny/original")
    run.plan_path.write_text(text)
    run.original_path.mkdir()
    for source, title, path in (
        ({"path": "/models/tiny-fp8", "form": "fp8"}, "tiny-fp8", "/models/tiny-fp8"),
        ({"path": None, "form": "memory", "name": "tiny-llama-1"}, "tiny-llama-1", "elsewhere/tiny/original"),
        ({"path": "/models/tiny-Q8_0.gguf", "form": "gguf"}, "tiny-Q8_0.gguf", "/models/tiny-Q8_0.gguf"),
    ):
        (run.original_path / "source.json").write_text(json.dumps({**source, "digest": "0123"}))
        findings = read_findings(run)
        assert model_name(findings) == title
        assert yaml.safe_load(config_text(findings))["model"]["path"] == path
    page = write_report(run).read_text()
    assert "<h1>tiny-Q8_0.gguf</h1>" in page and "<title>tiny-Q8_0.gguf: bits" in page
    assert "/models/tiny-Q8_0.gguf (gguf), dequantized to float32" in squeezed(Page(page).text)
    (run.original_path / "source.json").write_text("torn")
    with pytest.raises(DamagedFile, match=r"source\.json is damaged"):
        model_name(read_findings(run))


def test_unsolved_run_is_refused_with_the_command_to_run(tmp_path: Path):
    run = write_run(tmp_path / "run", solved=False)
    with pytest.raises(UserError, match="hpcmpq solve"):
        write_report(run)


def test_missing_matplotlib_is_a_sentence(tmp_path: Path):
    run = write_run(tmp_path / "run")
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from pathlib import Path; from hpcmpq.report import write_report; from hpcmpq.store.run_dir import RunDir\n"
        "from hpcmpq.errors import DamagedFile, UserError\n"
        "try:\n    write_report(RunDir(Path(sys.argv[1])))\nexcept UserError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, run.path], capture_output=True, text=True, check=True)
    assert "the report needs matplotlib" in done.stdout
    assert "hpcmpq[report]" in done.stdout


def test_solution_json_is_left_alone(full: RunDir):
    before = json.loads(full.solution_path.read_text())
    write_report(full)
    assert json.loads(full.solution_path.read_text()) == before
