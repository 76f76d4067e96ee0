"""A study's page in a real browser: it draws, answers mouse and keyboard, and asks nothing of the network."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from browsing import HOSTILE, SETTLED_MS, HostileNet, is_within, opened
from trady.planner.studies import pages
from trady.planner.studies.pages import write_study_page
from trady.planner.studies.runs import Study, study

pytestmark = pytest.mark.browser
BUDGETS = (100, 800, 2000, 5000, 20000)


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip


@pytest.fixture(scope="module")
def found() -> Study:
    inputs = torch.zeros(2, 3, 12, 12)
    return study(
        {"tiny": (tiny(), inputs)}, budgets=BUDGETS, batch_sizes=(1, 16), optimizers=("sgd", "adamw"), workers=1
    )


@pytest.fixture(scope="module")
def path(found: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("study") / "study.html"
    write_study_page(found, place)
    return place


def said(page: Any) -> str:
    return str(page.locator("#said").inner_text())


def test_the_first_sentence_says_what_the_budget_buys(chromium: Any, path: Path, found: Study) -> None:
    with opened(chromium, path) as page:
        assert " trains " in said(page) and "of the RGN by epoch 50; " in said(page)
        assert page.locator("#chart .scatterlayer .trace").count() >= 4
        assert page.locator("#depth .bars .point").count() > 0
        assert page.locator("#rows tbody tr").count() == len(found.rows)


def test_hovering_a_point_shows_its_ledger(chromium: Any, path: Path) -> None:
    with opened(chromium, path) as page:
        page.locator("#chart").scroll_into_view_if_needed()
        page.locator("#chart .scatterlayer .points path").nth(2).hover(force=True)
        text = page.locator("#chart .hoverlayer").text_content()
        assert "gradients: " in text and "saved activations: " in text and "update: " in text


def test_the_keyboard_moves_the_budget(chromium: Any, path: Path) -> None:
    with opened(chromium, path) as page:
        slider = page.locator("#budget")
        slider.focus()
        page.keyboard.press("End")
        assert said(page).startswith("20 kB trains") and "--budget 20000B" in page.locator("#command").inner_text()
        bars = page.locator("#depth .barlayer").inner_html()
        page.keyboard.press("ArrowLeft")
        assert said(page).startswith("5 kB trains") and slider.get_attribute("aria-valuetext") == "5 kB"
        page.wait_for_timeout(SETTLED_MS)
        assert page.locator("#depth .barlayer").inner_html() != bars


def test_a_click_on_a_point_chooses_it(chromium: Any, path: Path) -> None:
    with opened(chromium, path) as page:
        page.locator("#budget").focus()
        page.keyboard.press("End")
        point = page.locator("#chart .scatterlayer .trace:nth-child(2) .points path").first
        point.scroll_into_view_if_needed()
        point.click(force=True)
        page.wait_for_timeout(SETTLED_MS)
        assert not said(page).startswith("20 kB")


def test_a_budget_that_trains_nothing_says_why_and_what_to_do(chromium: Any, path: Path) -> None:
    with opened(chromium, path) as page:
        page.locator("#axis-batch_size").select_option(label="16")
        page.locator("#budget").focus()
        page.keyboard.press("Home")
        assert said(page).startswith("100 B trains nothing with batch 16")
        detail = page.locator("#detail").inner_text()
        assert "trains no layer" in detail and "Raise --budget" in detail
        assert page.locator("#command-row").is_hidden() and page.locator("#bought").is_hidden()
        assert page.locator("#nothing tbody tr").count() > 0


def test_another_measure_redraws(chromium: Any, path: Path) -> None:
    with opened(chromium, path) as page:
        page.locator("#measure").select_option(label="captured share")
        assert "of the squared gradient norm" in said(page)
        assert "captured share" in page.locator("#chart .ytitle").text_content()
        page.locator("#colour").select_option(label="optimizer")
        assert page.locator("#legend li").first.inner_text() == "sgd"


def test_tables_sort_by_mouse_and_by_key(chromium: Any, path: Path) -> None:
    with opened(chromium, path) as page:
        head = page.locator("#rows th", has_text="budget")
        column = head.evaluate("head => head.cellIndex")
        shown = page.locator(f"#rows tbody td:nth-child({column + 1})")
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == "descending" and shown.first.inner_text() == "20 kB"
        page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == "ascending" and shown.first.inner_text() == "100 B"


def test_the_theme_follows_the_system_and_the_button(chromium: Any, path: Path) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    with opened(chromium, path, scheme="dark") as page:
        dark = page.evaluate(paper)
        page.locator("#theme").click()
        assert page.evaluate(paper) == "rgb(255, 255, 255)" != dark
        page.locator("#theme").press("Enter")
        assert page.evaluate(paper) == dark


@pytest.mark.parametrize("width", [400, 1600])
def test_a_page_fits_its_window(chromium: Any, path: Path, width: int) -> None:
    with opened(chromium, path, width=width) as page:
        assert is_within(page)
        assert page.locator("#chart .main-svg").first.bounding_box()["width"] <= width


def test_hostile_names_stay_text(chromium: Any, tmp_path: Path) -> None:
    with_names = study({HOSTILE: (HostileNet(), torch.zeros(2, 3, 12, 12))}, budgets=(600, 3000), workers=1)
    write_study_page(with_names, tmp_path / "study.html")
    with opened(chromium, tmp_path / "study.html", width=400) as page:
        assert HOSTILE[:-1].rsplit("/", 1)[-1] in page.locator("#title").inner_text()
        assert HOSTILE[:-1] in page.locator("#layers").inner_text()
        page.locator("#chart").scroll_into_view_if_needed()
        page.locator("#chart .scatterlayer .points path").nth(2).hover(force=True)
        page.locator("#depth .bars path").first.hover(force=True)
        assert is_within(page)


def test_a_row_without_its_layers_says_where_they_are(
    chromium: Any, found: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "MOST_DETAILED_ROWS", 1)
    write_study_page(found, tmp_path / "study.html")
    with opened(chromium, tmp_path / "study.html") as page:
        assert "rows.jsonl" in page.locator("#depth-note").inner_text()
        assert page.locator("#layers-section").is_hidden()


def test_a_study_of_failures_alone_says_so(chromium: Any, tmp_path: Path) -> None:
    write_study_page(Study((), (f"{HOSTILE}: no such file",)), tmp_path / "study.html")
    with opened(chromium, tmp_path / "study.html") as page:
        assert "no such file" in page.locator("#failures").inner_text()
        assert page.locator("#chart").is_hidden()
