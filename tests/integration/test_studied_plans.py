"""What a study says of a plan is what its replay counts."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from cases import Residual
from trady.planner import calibrate, make_plan, study
from trady.planner.priorities.calibration import synthetic_batches
from trady.simulator import simulate


@pytest.mark.parametrize(("budget", "batch_size"), [("3KB", 1), ("6KB", 4), ("20KB", 4)])
def test_shares_are_the_closed_forms_and_the_means_of_the_replay(budget: str, batch_size: int) -> None:
    torch.manual_seed(0)
    net, pictures = Residual(in_place=False), torch.zeros(2, 3, 12, 12)
    (row,) = study((net, pictures), budgets=budget, batch_sizes=(batch_size,), epochs=8, workers=1).rows
    assert row.bought is not None
    plan = make_plan(net, pictures, budget=budget, batch_size=batch_size, epochs=8)
    report = simulate(plan, trials=400, workers=1)
    for name, found in (("rgn_reached", row.bought.rgn_reached), ("captured_share", row.bought.captured_share)):
        series = report.measures[name]
        assert series.theory is not None
        assert found == pytest.approx(series.theory[-1])
        mean, error = series.mean[-1], series.standard_error[-1]
        assert mean is not None
        assert error is not None
        assert abs(mean - found) <= 4 * error + 1e-6


@pytest.mark.slow
@pytest.mark.assets
@pytest.mark.parametrize("name", ["mbv2-w0.35", "mcunet-5fps", "proxyless-w0.3", "efficientnet-lite0"])
def test_a_study_of_a_real_network_is_its_plans(paper_network: Callable[[str], Any], name: str) -> None:
    """The paper's networks: more bytes buy more, and a row of each kind is what ``make_plan`` makes."""
    net, pictures = paper_network(name)
    known = calibrate(net, synthetic_batches(net, pictures, 2), source="synthetic", origin="noise")
    found = study(
        (net, pictures), budgets="32KB,256KB,2MB", batch_sizes=(1, 8), optimizers=("adamw",), priorities=known
    )
    assert len(found.rows) == 6
    for rows in found.answers.curves.values():
        values = [row.bought.value for row in rows if row.bought]
        assert values == sorted(values)
    row = found.rows[4]
    assert row.bought is not None
    plan = make_plan(net, pictures, budget="256KB", batch_size=8, optimizer="adamw", priorities=known)
    assert plan.chosen == {layer.name: layer.channels for layer in row.bought.layers}
    assert plan.ledger.lines.model_dump() == row.bought.lines
