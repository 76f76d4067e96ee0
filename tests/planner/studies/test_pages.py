"""What a study's page carries."""

import json
import re
from typing import Any

import pytest
import torch
from torch import nn

from trady.planner.studies import pages
from trady.planner.studies.answers import Measure
from trady.planner.studies.pages import study_page
from trady.planner.studies.runs import Study, study

pytest.importorskip("plotly")


@pytest.fixture(scope="module")
def found() -> Study:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )
    inputs = torch.zeros(2, 3, 12, 12)
    return study({"my net": (net, inputs)}, budgets=(100, 1000, 3000, 9000), batch_sizes=(1, 8), workers=1)


def carried(found: Study) -> dict[str, Any]:
    """The data of a study's page."""
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', study_page(found))
    assert block is not None
    data: dict[str, Any] = json.loads(block.group(1))
    return data


def test_every_row_is_carried_with_its_figures_and_layers(found: Study) -> None:
    data = carried(found)
    assert len(data["rows"]) == len(found.rows)
    for kept, row in zip(data["rows"], found.rows, strict=True):
        assert (kept["budget"], kept["options"]) == (row.setting.budget_bytes, row.options)
        if row.bought is None:
            assert (kept["why"], kept["needed"]) == (row.why, row.needed_bytes)
            continue
        assert dict(zip(data["figures"], kept["figures"], strict=True))["rgn_reached"] == row.bought.rgn_reached
        network = data["networks"][data["curves"][kept["curve"]]["network"]]
        assert [(network[layer[0]][0], layer[1]) for layer in kept["layers"]] == [
            (layer.name, layer.channels) for layer in row.bought.layers
        ]


def test_layers_are_named_once_in_the_models_order(found: Study) -> None:
    assert [[name for name, _, _ in network] for network in carried(found)["networks"]] == [["0", "2"]]


def test_fronts_and_knees_are_those_of_the_answers(found: Study) -> None:
    data = carried(found)
    for measure in Measure:
        front = [found.rows.index(row) for row in found.answers.front(measure)]
        assert data["fronts"][measure.value] == front
    for curve, kept in zip(found.answers.curves, data["curves"], strict=True):
        knee = found.answers.knee(curve)
        assert kept["knees"]["rgn_reached"] == (None if knee is None else found.rows.index(knee))


def test_a_command_line_quotes_the_model(found: Study) -> None:
    assert {curve["ending"] for curve in carried(found)["curves"]} == {"'my net'"}


def test_of_too_many_rows_some_lose_their_layers(found: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "MOST_DETAILED_ROWS", 3)
    data = carried(found)
    detailed = [place for place, row in enumerate(data["rows"]) if row.get("layers")]
    assert data["detail_step"] == 3 and 0 < len(detailed) <= 3
    assert all(row["trained"] for row in data["rows"] if "figures" in row)


def test_a_study_without_rows_is_a_page() -> None:
    assert carried(Study((), ("nothing",)))["failures"] == ["nothing"]
