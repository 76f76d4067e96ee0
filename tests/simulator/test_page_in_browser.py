"""A replay's page in a real browser."""

from pathlib import Path
from typing import Any

import pytest
import torch

from browsing import HOSTILE, HostileNet, is_within, opened
from trady.planner.plan.plan import Plan
from trady.planner.planning.planning import make_plan
from trady.simulator import simulate, timeline
from trady.simulator.pages import write_replay_page
from trady.simulator.results import SimulationReport

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def plan() -> Plan:
    torch.manual_seed(0)
    return make_plan(HostileNet(), torch.zeros(2, 3, 12, 12), budget="800B")


@pytest.fixture(scope="module")
def reports(plan: Plan) -> list[SimulationReport]:
    return [simulate(plan, policy=policy, trials=20, epochs=5, workers=1) for policy in ("solver", "trady")]


@pytest.fixture(scope="module")
def path(plan: Plan, reports: list[SimulationReport], tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("replay") / "replay.html"
    write_replay_page(reports, timeline(plan), place)
    return place


def test_a_replays_page_compares_policies(chromium: Any, path: Path) -> None:
    with opened(chromium, path) as page:
        said = page.locator("#said").inner_text()
        assert said.startswith("By epoch 5, 800 B reach ") and "with solver" in said and "with trady" in said
        assert page.locator("#summary tbody tr").count() == 2


def test_every_measure_can_be_chosen(chromium: Any, path: Path, reports: list[SimulationReport]) -> None:
    with opened(chromium, path) as page:
        select = page.locator("#measure")
        assert page.locator("#measure option").count() == len(reports[0].measures)
        for place in range(len(reports[0].measures)):
            select.select_option(index=place)
            assert page.locator("#course .scatterlayer .trace").count() >= 6


def test_hovering_a_moment_says_what_lives(chromium: Any, path: Path) -> None:
    with opened(chromium, path) as page:
        page.locator("#step").scroll_into_view_if_needed()
        page.locator("#step .bars").first.locator("path").nth(1).hover(force=True)
        text = page.locator("#step .hoverlayer").text_content()
        assert "weights: " in text and "all: " in text
        assert HOSTILE[:-1] in page.evaluate("JSON.stringify(data.timeline)")


@pytest.mark.parametrize("width", [400, 1600])
def test_a_replays_page_fits_its_window(chromium: Any, path: Path, width: int) -> None:
    with opened(chromium, path, width=width, scheme="dark") as page:
        page.locator("#theme").click()
        assert is_within(page)


def test_without_lifetimes_there_is_no_timeline(chromium: Any, reports: list[SimulationReport], tmp_path: Path) -> None:
    write_replay_page(reports, None, tmp_path / "replay.html")
    with opened(chromium, tmp_path / "replay.html") as page:
        assert page.locator("#step-section").is_hidden()
