"""The report in a real browser: light and dark, wide and narrow, printed, by keyboard and for screen readers."""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from hpcmpq.report import write_report
from hpcmpq.report.display import _significant, show
from hpcmpq.solve.shrinkage import shrunk
from hpcmpq.store.json_files import read_json, write_json
from hpcmpq.store.quadratic_file import read_quadratic
from hpcmpq.store.run_dir import RunDir
from tests.report.other_runs import transformer, write_other_run
from tests.synthetic_run import write_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

WIDE, PHONE = {"width": 1200, "height": 900}, {"width": 360, "height": 740}
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FOCUSABLE = "a[href], summary, [tabindex='0'], button:enabled, input"
OUTSIDE = """() => [...document.querySelectorAll('figure svg')].flatMap(svg => {
  const frame = svg.getBoundingClientRect();
  return [...svg.querySelectorAll('text')].filter(text => {
    const box = text.getBoundingClientRect();
    return box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1
      || box.bottom > frame.bottom + 1;
  }).map(text => svg.closest('figure').id + ': ' + text.textContent);
})"""
OVERLAPPING = """() => [...document.querySelectorAll('figure svg')].flatMap(svg => {
  const texts = [...svg.querySelectorAll('text')].map(text => [text.textContent, text.getBoundingClientRect()]);
  return texts.flatMap(([a, p], k) => texts.slice(k + 1).filter(([b, q]) =>
    Math.min(p.right, q.right) - Math.max(p.left, q.left) > 2
    && Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 2).map(([b, q]) => a + ' and ' + b));
})"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    pytest.importorskip("playwright", reason="Playwright, of the extra test, drives the browser")
    from playwright.sync_api import Error, sync_playwright

    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        found = own if os.path.exists(own) else next(filter(None, map(shutil.which, NAMES)), None)
        if found is None:
            pytest.skip("no Chromium here; install one, or run `playwright install chromium`")
        try:
            browser = playwright.chromium.launch(
                executable_path=found, args=["--no-sandbox", "--disable-gpu"]
            )
        except Error as error:  # some distributions put a script there that says how to install it
            pytest.skip(f"{found} does not start: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunDir]:
    """A run with everything that a report shows, one with hundreds of groups, and one of a model without blocks."""
    folder = tmp_path_factory.mktemp("runs")
    full = write_run(folder / "full", frontier=True, evaluated=True)
    solution = read_json(full.solution_path, "")
    increase = solution["predicted_loss"]
    link = {
        "predicted": [0.05, 0.1, 0.4],
        "measured": [0.06, 0.11, 0.38],
        "intercept": 0.0,
        "slope": 1.0,
        "loss0": 0,
    }
    solution |= {
        "expected_loss": increase, "expected_interval": [0.8 * increase, 1.2 * increase],
        "refine": {"evaluations": 40, "link": link, "solved_assignment": solution["assignment"]},
    }  # fmt: skip
    write_json(full.solution_path, solution)
    write_json(full.file("timings.json"), {"plan": {"seconds": 2.5}, "calibrate": {"seconds": 63.25}})
    kinds = (
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.up",
        "mlp.down",
    )
    many = write_other_run(
        folder / "many", transformer(40, kinds, head=True), ("int2", "int3", "int4", "int8"),
        budgets={"weight_bits": 5.0},
    )  # fmt: skip
    measured = {"original": 0.0, "quantized": 0.02, "uniform": 0.05}
    plain = write_other_run(
        folder / "plain", dict.fromkeys(f"stage{k // 3}.conv{k % 3}" for k in range(50)),
        ("w4a8", "int6", "int7", "fp8_e4m3", "bf16"), budgets={"size_bytes": 9e5}, measured=measured, objective="ce",
    )  # fmt: skip
    found = {"full": full, "many": many, "plain": plain}
    for run in found.values():
        write_report(run)
    return found


def opened(browser: Browser, run: RunDir, **settings: object) -> Page:
    """The report in a new window; every request, error and message of the page is kept."""
    page = browser.new_context(**{"viewport": WIDE, **settings}).new_page()
    page.requests, page.messages = [], []
    page.on("request", lambda request: page.requests.append(request.url))
    page.on("console", lambda message: page.messages.append(message.text))
    page.on("pageerror", lambda error: page.messages.append(str(error)))
    page.goto(run.report_path.as_uri())
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_screenshot_is_readable(
    browser: Browser, runs: dict[str, RunDir], tmp_path: Path, size: dict, scheme: str
):
    """The scheme's background everywhere, text and curves that stand out against it, nothing cut off."""
    page = opened(browser, runs["full"], viewport=size, color_scheme=scheme)
    with Image.open(io.BytesIO(page.screenshot(full_page=True, path=tmp_path / "report.png"))) as image:
        grey = np.asarray(image.convert("L"), dtype=int)
    background = grey[5, 5]
    assert (background > 240) if scheme == "light" else (background < 40)
    assert (np.abs(grey - background) < 12).mean() > 0.5
    assert all((band > 100).mean() > 0.004 for band in np.array_split(np.abs(grey - background), 8))
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    assert page.requests == [runs["full"].report_path.as_uri()]
    assert page.messages == []


@pytest.mark.parametrize("name", ["full", "many", "plain"])
@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_labels_are_whole_apart_and_large_enough(
    browser: Browser, runs: dict[str, RunDir], name: str, size: dict
):
    page = opened(browser, runs[name], viewport=size)
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    assert page.evaluate(OUTSIDE) == []
    assert page.evaluate(OVERLAPPING) == []
    sizes = page.evaluate(
        "() => [...document.querySelectorAll('figure svg text')].map(text => text.getBoundingClientRect())"
        ".map(box => Math.max(box.width, box.height))"
    )
    assert min(sizes) > 7, "labels are too small to read"


@pytest.mark.parametrize(("name", "scheme"), [("full", "light"), ("full", "dark"), ("plain", "light")])
def test_no_barrier_that_axe_knows(browser: Browser, runs: dict[str, RunDir], name: str, scheme: str):
    """All rules of axe-core, contrast among them, with everything unfolded."""
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe, of the extra test, is missing"
    )
    page = opened(browser, runs[name], color_scheme=scheme)
    if name == "full":
        page.focus("#budget")
        page.keyboard.press("End")
    page.evaluate("() => document.querySelectorAll('details').forEach(part => { part.open = true; })")
    results = axe.Axe().run(page)
    assert results.violations_count == 0, results.generate_report()
    assert len(results.response["passes"]) > 20


def test_keyboard_reaches_everything_in_order(browser: Browser, runs: dict[str, RunDir]):
    page = opened(browser, runs["full"])
    wanted = page.evaluate(
        f'() => [...document.querySelectorAll("{FOCUSABLE}")].filter(part => part.checkVisibility())'
        ".map((part, place) => { part.dataset.place = place; return place; })"
    )
    reached = []
    for _ in wanted:
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("() => [Number(document.activeElement.dataset.place), "
                          "getComputedStyle(document.activeElement).outlineStyle, "
                          "document.activeElement.getBoundingClientRect().left >= 0]")
        )  # fmt: skip
    assert reached == [[place, "solid", True] for place in wanted]


def test_skip_link_and_folded_parts_work_by_keyboard(browser: Browser, runs: dict[str, RunDir]):
    page = opened(browser, runs["full"])
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url("**#checks")  # a step of the browser's own, later than the key
    page.focus("summary >> nth=0")
    assert page.evaluate("document.querySelector('details').open") is False
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('details').open")


def test_screen_reader_hears_landmarks_and_figures(browser: Browser, runs: dict[str, RunDir]):
    """The accessibility tree as the browser hands it to screen readers."""
    heard = opened(browser, runs["full"]).locator("body").aria_snapshot()
    for landmark in ("banner", 'navigation "Sections"', "main", "contentinfo", 'region "Reproduce this"'):
        assert landmark in heard, landmark
    assert heard.count('img "') == 3
    assert 'heading "Before you use it" [level=2]' in heard
    assert 'columnheader "self_attn.q_proj"' in heard and 'rowheader "block 3"' in heard


def test_page_without_scripts_is_complete_and_offers_nothing_that_would_not_work(
    browser: Browser, runs: dict[str, RunDir]
):
    run = runs["full"]
    page = opened(browser, run, java_script_enabled=False)
    for control in page.locator("button, input").all():
        assert not control.is_visible()
    for summary in page.locator("summary").all():
        summary.click()
    text = page.locator("main").inner_text()
    for point in read_json(run.frontier_path, "")["points"]:
        assert f"{point['predicted_loss']:#.4g}" in text and f"{point['bound']:#.4g}" in text
    words = page.locator("ul.stretches").text_content()
    for name, form in read_json(run.frontier_path, "")["points"][0]["assignment"].items():
        assert re.search(rf"{re.escape(name)}\s*\d{form} at", words), name


def asked(browser: Browser, run: RunDir, **settings: object) -> tuple[Page, list[dict], dict[str, str]]:
    """A page with its slider in focus, the frontier from small to large, and the shown assignment."""
    page = opened(browser, run, **settings)
    page.focus("#budget")
    points = sorted(
        read_json(run.frontier_path, "")["points"], key=lambda point: point["costs"]["weight_bits"]
    )
    return page, points, read_json(run.solution_path, "")["assignment"]


def test_slider_shows_the_assignment_of_another_budget_and_what_differs(
    browser: Browser, runs: dict[str, RunDir]
):
    page, points, ours = asked(browser, runs["full"])
    start = [point["assignment"] == ours for point in points].index(True)
    assert page.locator("#budget").input_value() == str(start)
    assert "no group differs" in page.text_content("#budget-answer")
    assert page.locator("#budget-map .changed").count() == 0
    for place in (start + 1, start + 2, start + 1):
        page.keyboard.press(
            "ArrowRight" if place > int(page.locator("#budget").input_value()) else "ArrowLeft"
        )
        theirs = points[place]["assignment"]
        changed = [name for name in ours if theirs[name] != ours[name]]
        assert changed
        answer = page.text_content("#budget-answer")
        assert f"{len(changed)} of {len(ours)} groups differ" in answer
        assert f"{points[place]['predicted_loss']:#.4g}" in answer
        titles = page.locator("#budget-map .bits").evaluate_all(
            "cells => cells.map(cell => cell.title.split(' ')[1])"
        )
        assert titles == list(theirs.values())
        assert page.locator("#budget-map .changed").count() == len(changed)
        rows = page.locator("#budget-changes tbody tr").evaluate_all(
            "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
        )
        assert [(row[0], row[2], row[3].split(" ")[0]) for row in rows] == [
            (name, ours[name], theirs[name]) for name in changed
        ]
        assert page.get_attribute("#budget", "aria-valuetext").startswith(
            f"{points[place]['costs']['weight_bits']:.3g}"
        )
    page.click("#budget-shown")
    assert "no group differs" in page.text_content("#budget-answer")
    assert page.locator("#budget-shown").is_disabled()
    assert page.messages == []


def test_ring_stands_on_the_drawn_curve(browser: Browser, runs: dict[str, RunDir]):
    """At every budget its centre is a point of the frontier's line in the figure, as the browser lays that out."""
    page, points, _ = asked(browser, runs["full"])
    page.keyboard.press("Home")
    for _ in points:
        nearest = page.evaluate(
            """() => {
              const ring = document.querySelector('.mark-budget').getBoundingClientRect();
              const x = ring.x + ring.width / 2, y = ring.y + ring.height / 2;
              const drawn = [...document.querySelectorAll('#plot-loss_against_size path')].filter(
                path => path.style.stroke.includes('--ours') && !path.closest('defs'));
              return Math.min(...drawn.map(path => {
                const matrix = path.getScreenCTM(), found = [];
                for (let at = 0; at <= path.getTotalLength(); at += 0.5) {
                  const point = path.getPointAtLength(at).matrixTransform(matrix);
                  found.push(Math.hypot(point.x - x, point.y - y));
                }
                return Math.min(...found);
              }));
            }"""
        )
        assert nearest < 1.5
        page.keyboard.press("ArrowRight")


def test_pointing_at_a_pair_of_groups_shows_its_interaction_with_its_error(
    browser: Browser, runs: dict[str, RunDir]
):
    run = runs["full"]
    quadratic = shrunk(read_quadratic(run.quadratic_path), "auto")
    assignment = read_json(run.solution_path, "")["assignment"]
    names, options = list(assignment), list(zip(quadratic.option_group, quadratic.option_format, strict=True))
    chosen = [options.index(item) for item in assignment.items()]
    page = opened(browser, run)
    page.locator(".pointer").scroll_into_view_if_needed()
    box = page.locator(".pointer").bounding_box()

    def expected(i: int, j: int) -> tuple[str, str]:
        value, error = quadratic.quad_PP[chosen[i], chosen[j]], quadratic.stderr_quad_PP[chosen[i], chosen[j]]
        return show(float(value), "signed"), f"standard error {_significant(float(error), 2)}"

    strongest = np.unravel_index(np.abs(quadratic.quad_PP[np.ix_(chosen, chosen)]).argmax(), (28, 28))
    for i, j in (strongest, (2, 20), (27, 0), (13, 14)):
        page.mouse.move(box["x"] + (j + 0.5) / 28 * box["width"], box["y"] + (i + 0.5) / 28 * box["height"])
        said = page.text_content("#pair")
        assert said.startswith(
            f"{names[i]} in {assignment[names[i]]} and {names[j]} in {assignment[names[j]]}: "
        )
        value, error = expected(i, j)
        assert f": {value} beyond" in said and error in said
    page.focus(".pointer")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowLeft")
    assert page.text_content("#pair").startswith(f"{names[12]} in")
    assert f": {expected(12, 13)[0]} beyond" in page.text_content("#pair")
    page.keyboard.press("ArrowLeft")
    alone = show(float(quadratic.linear_P[chosen[12]]), "signed")
    assert f"alone: {alone}, standard error" in page.text_content("#pair")


def test_tables_sort_and_filter(browser: Browser, runs: dict[str, RunDir]):
    page = opened(browser, runs["full"])
    page.click("text=Every group with its predicted loss")
    table = page.locator("#bits details .scroll table")
    column = "rows => rows.filter(row => !row.hidden).map(row => row.cells[{}].textContent.trim())"
    rows = table.locator("tbody tr")
    before = rows.evaluate_all(column.format(0))
    header = table.get_by_role("button", name="Weights")
    for order, wanted in (("ascending", False), ("descending", True)):
        header.click()
        values = [int(text.replace(",", "")) for text in rows.evaluate_all(column.format(3))]
        assert values == sorted(values, reverse=wanted) and len(set(values)) > 1
        assert table.locator(f"th[aria-sort={order}]").text_content() == "Weights"
    header.click()
    assert rows.evaluate_all(column.format(0)) == before
    page.locator("#bits").get_by_label("Rows with the words").fill("layers.2 MLP")
    assert rows.evaluate_all(column.format(0)) == [name for name in before if "layers.2.mlp" in name]
    assert page.locator("#bits .filter span").text_content() == "3 of 28 rows"


def test_motion_stops_where_it_is_not_wanted(browser: Browser, runs: dict[str, RunDir]):
    behaviour = "getComputedStyle(document.documentElement).scrollBehavior"
    assert opened(browser, runs["full"]).evaluate(behaviour) == "smooth"
    assert opened(browser, runs["full"], reduced_motion="reduce").evaluate(behaviour) == "auto"


@pytest.mark.parametrize("name", ["full", "many", "plain"])
def test_print_is_black_on_white_unfolded_and_whole(browser: Browser, runs: dict[str, RunDir], name: str):
    paper = {"width": 680, "height": 1000}  # A4 less margins, at 96 dots per inch
    page = opened(browser, runs[name], color_scheme="dark", viewport=paper)
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.is_visible("nav")
    folded = page.evaluate("() => [...document.querySelectorAll('details')].map(part => part.offsetHeight)")
    assert folded and min(folded) > 50
    wider = page.evaluate(
        "() => [...document.querySelectorAll('main *')].filter(part => part.getBoundingClientRect().right > 681)"
        ".map(part => part.tagName + ' ' + part.textContent.slice(0, 40))"
    )
    assert wider == []
    pdf = page.pdf(format="A4", margin=dict.fromkeys(("top", "bottom", "left", "right"), "15mm"))
    num_pages = len(re.findall(rb"/Type\s*/Page\b(?!s)", pdf))
    assert 3 <= num_pages <= 30
