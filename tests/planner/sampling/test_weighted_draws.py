"""Plans whose larger norms are drawn more often keep to what every draw keeps to."""

import numpy as np
import pytest

from tables import cost_table, full_counts, layer_costs, plan_of, scope_bytes
from trady.planner.errors import PlanError
from trady.planner.ledger import BatchedLedger
from trady.planner.ledger.cost_records import GroupInput, InputGroup
from trady.planner.ledger.cost_table import CostTable
from trady.planner.options import Inclusion, Scope, Strategy
from trady.planner.plan.plan import Plan
from trady.planner.planning import ChoiceOptions
from trady.planner.reports.summary import value_shares
from trady.planner.sampling.inclusion_probabilities import expected_norms, inclusion_probabilities
from trady.planner.sampling.schedule import draw, draw_epochs, draw_runs
from trady.planner.solver.cp_sat import solve
from trady.planner.solver.problem import Limits

SIZES = (10, 24, 24)
RUNS = 4000


def table() -> CostTable:
    """Three layers on two inputs: the last two read one tensor."""
    groups = [InputGroup(inputs=(GroupInput(channel_bytes=18, kept_by=None),)) for _ in range(2)]
    return cost_table([layer_costs(i, size, min(i, 1)) for i, size in enumerate(SIZES)], groups)


def plan(inclusion: Inclusion = Inclusion.WEIGHTED) -> Plan:
    rng = np.random.default_rng(3)
    norms = [tuple(rng.lognormal(0, 1.5, size).tolist()) for size in SIZES]
    found = plan_of(table(), budget_bytes=10_000, counts=(3, 5, 2), norms=norms)
    solver = found.solver.model_copy(update={"inclusion": inclusion})
    return found.model_copy(update={"solver": solver})


def test_counts_are_the_plans_and_no_channel_comes_twice() -> None:
    of = plan()
    drawn = draw_runs(of, 1, range(200))
    assert (drawn.counts == of.counts).all()
    for channels in drawn.channels.values():
        assert all(len(set(row)) == len(row) for row in channels.tolist())
    assert drawn.of_run(7, of.table).ledger(BatchedLedger(of.table)) == BatchedLedger(of.table).of(of.counts)


def test_members_of_an_input_group_are_nested() -> None:
    of = plan()
    for run in range(50):
        members = draw(of, 2, seed=run).by_group(of.table)[1]
        assert len(members) == 2 and draw(of, 2, seed=run).is_nested(members)


def test_the_same_alone_and_among_others_and_from_epoch_to_epoch() -> None:
    of = plan()
    for epoch, drawn in zip((4, 5), draw_epochs(of, [4, 5], range(6)), strict=True):
        for seed in range(6):
            alone, together = draw(of, epoch, seed=seed).channels, drawn.of_run(seed, of.table).channels
            assert {name: row.tolist() for name, row in alone.items()} == {
                name: row.tolist() for name, row in together.items()
            }
    assert draw(of, 4).channels["layer1"].tolist() != draw(of, 5).channels["layer1"].tolist()


def test_channels_are_drawn_as_often_as_their_norms_say() -> None:
    of = plan()
    counted = np.bincount(draw_runs(of, 0, range(RUNS)).channels[0].reshape(-1), minlength=10) / RUNS
    likely = inclusion_probabilities(of.channel_norms(0), 3, of.solver.horizon)
    assert (np.abs(counted - likely) <= 5 * np.sqrt(likely * (1 - likely) / RUNS) + 1e-9).all()
    uniform = np.bincount(draw_runs(plan(Inclusion.UNIFORM), 0, range(RUNS)).channels[0].reshape(-1)) / RUNS
    assert np.abs(uniform - 0.3).max() < 5 * np.sqrt(0.21 / RUNS)


def test_a_plans_value_is_what_its_draws_reach() -> None:
    """Norm reached in as many draws as the horizon, averaged over runs, against the closed form."""
    of = plan()
    horizon, runs = int(of.solver.horizon), 1500
    seen = np.zeros((runs, SIZES[0]), dtype=bool)
    for drawn in draw_epochs(of, range(horizon), range(runs)):
        np.put_along_axis(seen, drawn.channels[0].astype(np.int64), True, axis=1)
    norms = np.array(of.channel_norms(0))
    reached = seen @ norms
    expected = expected_norms(norms.tolist(), [3], horizon)[0]
    assert abs(reached.mean() - expected) < 5 * reached.std() / np.sqrt(runs)
    assert value_shares(of)[0] == pytest.approx(expected / sum(of.layer_values))
    assert sum(value_shares(of)) > sum(value_shares(plan(Inclusion.UNIFORM)))


def test_the_solver_prefers_the_layer_whose_few_channels_hold_the_norm() -> None:
    """Both layers hold the same norm; in one of them it lies in two channels."""
    groups = [InputGroup(inputs=(GroupInput(channel_bytes=18, kept_by=None),)) for _ in range(2)]
    small = cost_table([layer_costs(i, 12, i) for i in range(2)], groups)
    norms = [(1.0,) * 12, (5.5, 5.5, *(0.1,) * 10)]
    budget = scope_bytes(small, (2, 0), Scope.UPDATE)
    found = solve(BatchedLedger(small), [12.0, 12.0], Limits(budget, Scope.UPDATE, horizon=2.0), norms)
    assert found.counts == (0, 2)
    everything = scope_bytes(small, full_counts(small), Scope.UPDATE)
    assert solve(BatchedLedger(small), [12.0, 12.0], Limits(everything, Scope.UPDATE), norms).counts == full_counts(
        small
    )


def test_a_plan_says_how_it_draws_and_loads_again(tmp_path) -> None:  # type: ignore[no-untyped-def]
    of = plan()
    first = draw(of, 0)
    of = of.model_copy(update={"counts": first.counts(of.table), "ledger": first.ledger(BatchedLedger(of.table))})
    of.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again.solver.inclusion is Inclusion.WEIGHTED
    assert draw(again, 3).channels["layer0"].tolist() == draw(of, 3).channels["layer0"].tolist()


def test_other_strategies_refuse_it() -> None:
    asked = ChoiceOptions(budget_bytes=1000, strategy=Strategy.TRADY, inclusion=Inclusion.WEIGHTED)
    with pytest.raises(PlanError, match="--inclusion are the solver's"):
        asked.check(None)
