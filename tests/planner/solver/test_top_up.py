"""What is left of a budget buys channels, and nothing else changes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tables import backward_macs, cost_table, cost_tables, full_counts, layer_costs, scope_bytes
from trady.planner.ledger import BatchedLedger
from trady.planner.ledger.cost_records import GroupInput, InputGroup
from trady.planner.ledger.cost_table import CostTable
from trady.planner.options import Scope
from trady.planner.solver.cp_sat import solve
from trady.planner.solver.problem import Limits
from trady.planner.solver.top_up import spend_leftovers

SCOPES = st.sampled_from([Scope.UPDATE, Scope.TRAINING])


@settings(max_examples=150, deadline=None)
@given(cost_tables(), SCOPES, st.data())
def test_no_channel_of_a_drawn_layer_fits_afterwards(table: CostTable, scope: Scope, data: st.DataObject) -> None:
    counts = tuple(data.draw(st.integers(0, layer.in_channels)) for layer in table.layers)
    spent, most = scope_bytes(table, counts, scope), scope_bytes(table, full_counts(table), scope)
    budget = data.draw(st.integers(spent, max(spent, most)))
    macs = data.draw(st.none() | st.just(backward_macs(table, counts) + 40))
    limits = Limits(budget, scope, max_backward_macs=macs)
    values = [float(layer.in_channels) for layer in table.layers]
    found = spend_leftovers(BatchedLedger(table), counts, values, limits)

    def fits(some: tuple[int, ...]) -> bool:
        within = macs is None or backward_macs(table, some) <= macs
        return within and scope_bytes(table, some, scope) <= budget

    assert fits(found)
    assert all(after >= before for after, before in zip(found, counts, strict=True))
    assert [bool(after) for after in found] == [bool(before) for before in counts]
    assert BatchedLedger(table).of(found).lines.residuals == BatchedLedger(table).of(counts).lines.residuals
    for index, layer in enumerate(table.layers):
        if 0 < found[index] < layer.in_channels:
            assert not fits(tuple(count + (place == index) for place, count in enumerate(found)))


def test_a_budget_for_everything_trains_everything() -> None:
    """A value that looks far ahead saturates long before the last channel: the rest is free all the same."""
    groups = [InputGroup(inputs=(GroupInput(channel_bytes=9, kept_by=None),)) for _ in range(2)]
    table = cost_table([layer_costs(index, 400, index) for index in range(2)], groups)
    budget = scope_bytes(table, full_counts(table), Scope.UPDATE)
    assert solve(BatchedLedger(table), [1.0, 1.0], Limits(budget, Scope.UPDATE, horizon=64.0)).counts == full_counts(
        table
    )


def test_the_layer_whose_next_channel_is_worth_most_comes_first() -> None:
    groups = [InputGroup(inputs=(GroupInput(channel_bytes=8, kept_by=None),)) for _ in range(2)]
    table = cost_table([layer_costs(index, 10, index) for index in range(2)], groups)
    spent = scope_bytes(table, (1, 1), Scope.UPDATE)
    one = scope_bytes(table, (2, 1), Scope.UPDATE) - spent
    limits = Limits(spent + one, Scope.UPDATE, horizon=1.0)
    assert spend_leftovers(BatchedLedger(table), (1, 1), [1.0, 3.0], limits) == (1, 2)
    assert spend_leftovers(BatchedLedger(table), (1, 1), [3.0, 1.0], limits) == (2, 1)


def test_a_budget_of_the_peak_is_left_alone() -> None:
    table = cost_table([layer_costs(0, 10, 0)], [InputGroup(inputs=(GroupInput(channel_bytes=8, kept_by=None),))])
    limits = Limits(10**6, Scope.PEAK)
    assert spend_leftovers(BatchedLedger(table), (np.int64(2),), [1.0], limits) == (2,)  # type: ignore[arg-type]


@pytest.mark.parametrize("horizon", [1.0, 16.0])
def test_nothing_drawn_stays_nothing(horizon: float) -> None:
    table = cost_table([layer_costs(0, 10, 0)], [InputGroup(inputs=(GroupInput(channel_bytes=8, kept_by=None),))])
    assert spend_leftovers(BatchedLedger(table), (0,), [1.0], Limits(10**6, Scope.UPDATE, horizon=horizon)) == (0,)
