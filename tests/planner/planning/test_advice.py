"""A plan suggests drawing by norm where a few channels hold the norm, and only there."""

import pytest
import torch
from torch import nn

from trady.planner import Plan, make_plan
from trady.planner.priorities.calibration import calibrate
from trady.planner.priorities.priorities import Priorities


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 3))


def planned(net: nn.Module, outlier: float, **options: str) -> Plan:
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    found = calibrate(net, [(x, torch.tensor([0, 1, 2, 0]))])
    layers = [
        layer.model_copy(update={"channel_norms": (outlier, *[1.0] * (len(layer.channel_norms) - 1))})
        for layer in found.layers
    ]
    known = Priorities.model_validate(found.model_dump(exclude={"layers"}) | {"layers": tuple(layers)})
    return make_plan(net, x, budget="20KB", priorities=known, **options)  # type: ignore[arg-type]


def suggestions(plan: Plan) -> list[str]:
    return [note for note in plan.notes if "--inclusion weighted" in note]


def test_suggested_where_few_channels_hold_the_norm(net: nn.Module) -> None:
    (note,) = suggestions(planned(net, 20.0))
    assert "76%" in note  # 400 of 400 + 127


def test_not_suggested_where_it_is_spread_or_done_or_of_no_use(net: nn.Module) -> None:
    assert not suggestions(planned(net, 2.0))
    assert not suggestions(planned(net, 20.0, inclusion="weighted"))
    assert not suggestions(planned(net, 20.0, strategy="trady"))
