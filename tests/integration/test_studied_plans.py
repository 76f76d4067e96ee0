"""What a study says of a plan is what its replay counts."""

import pytest
import torch

from cases import Residual
from trady.planner import make_plan, study
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
