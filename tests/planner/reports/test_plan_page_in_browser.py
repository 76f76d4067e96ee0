"""A plan's page in a real browser."""

from pathlib import Path
from typing import Any

import pytest
import torch

from browsing import HOSTILE, HostileNet, is_within, opened
from trady.planner.plan.plan import Plan
from trady.planner.planning.planning import make_plan
from trady.planner.reports.plan_page import write_plan_page
from trady.planner.units import format_bytes

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def plan() -> Plan:
    torch.manual_seed(0)
    return make_plan(HostileNet(), torch.zeros(2, 3, 12, 12), budget="2KB", optimizer="adamw")


@pytest.fixture(scope="module")
def path(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("plan") / "plan.html"
    write_plan_page(plan, place)
    return place


def test_a_plans_page_shows_ledger_and_layers(chromium: Any, path: Path, plan: Plan) -> None:
    with opened(chromium, path) as page:
        assert page.locator("#said").inner_text().startswith("2.0 kB trains 1 of 1 layers")
        assert HOSTILE[:-1] in page.locator("#layers").inner_text()
        ledger = page.locator("#ledger").inner_text()
        for num_bytes in (plan.ledger.lines.gradients, plan.ledger.scopes.update, plan.table.dense_optimizer_bytes):
            assert format_bytes(num_bytes) in ledger


def test_hovering_a_bar_names_its_layer(chromium: Any, path: Path) -> None:
    with opened(chromium, path) as page:
        page.locator("#depth .bars path").first.hover(force=True)
        text = page.locator("#depth .hoverlayer").text_content()
        assert "</script>" in text and "channels" in text and "gradients: " in text


@pytest.mark.parametrize("width", [400, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_plans_page_fits_its_window(chromium: Any, path: Path, width: int, scheme: str) -> None:
    with opened(chromium, path, width=width, scheme=scheme) as page:
        page.locator("#theme").click()
        assert is_within(page)
