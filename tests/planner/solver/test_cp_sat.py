"""The solver against exhaustive search."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tables import (
    all_counts,
    backward_macs,
    cost_table,
    cost_tables,
    full_counts,
    layer_costs,
    peak_tables,
    scope_bytes,
)
from trady.planner.ledger import BatchedLedger
from trady.planner.ledger.cost_records import GroupInput, InputGroup, KeptBytes, Upstream
from trady.planner.ledger.cost_table import CostTable
from trady.planner.options import Scope
from trady.planner.sampling.coverage import coverage_value
from trady.planner.solver.cp_sat import Program, solve
from trady.planner.solver.problem import PROOF_GAP, Limits, SolverStatus
from trady.planner.solver.value_curves import value_segments

SCOPES = st.sampled_from([Scope.UPDATE, Scope.TRAINING])
VALUES = st.lists(st.floats(0.01, 10), min_size=4, max_size=4)
EXACT = 1e-6


def value_of(table: CostTable, values: list[float], counts: tuple[int, ...], horizon: float) -> float:
    """The value by its definition, as a share of training everything."""
    total: float = sum(
        value * (1 - (1 - count / layer.in_channels) ** horizon)
        for value, count, layer in zip(values, counts, table.layers, strict=True)
    )
    return total / sum(values)


def allowed(table: CostTable, counts: tuple[int, ...], limits: Limits) -> bool:
    least = [min(limits.min_channels, layer.in_channels) for layer in table.layers]
    return (
        all(count == 0 or count >= fewest for count, fewest in zip(counts, least, strict=True))
        and scope_bytes(table, counts, limits.scope) <= limits.budget_bytes
        and (limits.max_backward_macs is None or backward_macs(table, counts) <= limits.max_backward_macs)
    )


@st.composite
def problems(draw: st.DrawFn) -> tuple[CostTable, list[float], Limits]:
    table = draw(cost_tables())
    scope = draw(SCOPES)
    most = max(scope_bytes(table, full_counts(table), scope), 1)
    macs = backward_macs(table, full_counts(table))
    limits = Limits(
        draw(st.integers(1, most)),
        scope,
        min_channels=draw(st.integers(1, 3)),
        max_backward_macs=draw(st.none() | st.integers(0, macs)),
        horizon=draw(st.sampled_from([1.0, 2.5, 4.0])),
    )
    return table, draw(VALUES)[: len(table.layers)], limits


@settings(max_examples=150, deadline=None)
@given(problems())
def test_exhaustive_search_agrees(problem: tuple[CostTable, list[float], Limits]) -> None:
    table, values, limits = problem
    limits = replace(limits, tolerance=0.0)
    found = solve(BatchedLedger(table), values, limits)
    worth = {
        counts: value_of(table, values, counts, limits.horizon)
        for counts in all_counts(table)
        if any(counts) and allowed(table, counts, limits)
    }
    if not worth:
        assert found.status is SolverStatus.INFEASIBLE and not any(found.counts)
        return
    best = max(worth.values())
    assert found.status is SolverStatus.OPTIMAL
    assert found.counts in worth, "the selection breaks a limit"
    assert found.value == pytest.approx(worth[found.counts], rel=EXACT)
    assert found.bound >= best * (1 - EXACT)
    assert worth[found.counts] >= best * (1 - PROOF_GAP - EXACT)
    residuals = {counts: BatchedLedger(table).of(counts).lines.residuals for counts in worth}
    near = min(residuals[counts] for counts in worth if worth[counts] >= best * (1 - PROOF_GAP / 2))
    assert residuals[found.counts] <= near * (1 + PROOF_GAP)


@settings(max_examples=15, deadline=None)
@given(problems())
def test_the_same_problem_gives_the_same_counts(problem: tuple[CostTable, list[float], Limits]) -> None:
    assert solve(BatchedLedger(problem[0]), *problem[1:]) == solve(BatchedLedger(problem[0]), *problem[1:])


@pytest.mark.parametrize("scope", list(Scope))
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_budget_gives_the_same_counts_whichever_were_solved_before(scope: Scope, data: st.DataObject) -> None:
    table = data.draw(peak_tables() if scope is Scope.PEAK else cost_tables())
    values = data.draw(VALUES)[: len(table.layers)]
    most = max(scope_bytes(table, full_counts(table), scope), 1)
    budgets = data.draw(st.lists(st.integers(1, most), min_size=2, max_size=4))
    limits = Limits(1, scope)
    program = Program(BatchedLedger(table), values, limits)
    for budget in budgets:
        assert program.solve(budget) == solve(BatchedLedger(table), values, replace(limits, budget_bytes=budget))


@given(st.integers(1, 3000), st.floats(1.0, 50.0), st.floats(0, 1e12))
def test_value_curves_are_concave_with_whole_marginals(channels: int, horizon: float, units: float) -> None:
    segments = value_segments(channels, units, horizon)
    assert sum(segment.channels for segment in segments) == channels
    assert all(isinstance(segment.units, int) and segment.units >= 0 for segment in segments)
    assert all(before.units >= after.units for before, after in pairwise(segments))


@given(st.integers(1, 16), st.floats(1.0, 8.0))
def test_value_curves_are_exact_up_to_16_channels(channels: int, horizon: float) -> None:
    total, counted = 1e12, 0
    for segment in value_segments(channels, total, horizon):
        assert segment.channels == 1 or horizon == 1.0
        counted += segment.channels * segment.units
    assert counted == pytest.approx(total, abs=channels)


@given(st.integers(17, 3000), st.floats(1.1, 8.0))
def test_longer_value_curves_stay_below_the_true_one_and_near_it(channels: int, horizon: float) -> None:
    place, counted = 0, 0.0
    for segment in value_segments(channels, 1e12, horizon):
        place, counted = place + segment.channels, counted + segment.channels * segment.units
        assert counted / 1e12 == pytest.approx(coverage_value(place / channels, horizon), abs=1e-8)


@given(st.floats(0, 1), st.integers(1, 6))
def test_coverage_is_that_of_independent_draws(share: float, draws: int) -> None:
    missed = 1.0
    for _ in range(draws):
        missed *= 1 - share
    assert math.isclose(coverage_value(share, draws), 1 - missed, abs_tol=1e-12)


def test_nothing_fits_is_a_status() -> None:
    table = cost_table([layer_costs(0, 4, 0)], [InputGroup(inputs=(GroupInput(channel_bytes=10, kept_by=None),))])
    found = solve(BatchedLedger(table), [1.0], Limits(11, Scope.UPDATE))
    assert (found.status, found.counts, found.gap) == (SolverStatus.INFEASIBLE, (0,), found.gap)


def test_a_budget_beyond_any_memory_takes_everything() -> None:
    table = cost_table([layer_costs(0, 4, 0)], [InputGroup(inputs=(GroupInput(channel_bytes=10, kept_by=None),))])
    assert solve(BatchedLedger(table), [1.0], Limits(10**24, Scope.UPDATE)).counts == (4,)


def test_equal_values_go_to_the_shallower_layer() -> None:
    """Two layers worth the same: the early one makes everything after it keep a residual."""
    groups = [InputGroup(inputs=(GroupInput(channel_bytes=8, kept_by=None),)) for _ in range(2)]
    kept = [KeptBytes(num_bytes=1000, upstream=0, line="residuals", storage=None)]
    table = cost_table(
        [layer_costs(0, 4, 0), layer_costs(1, 4, 1)], groups, [Upstream(always=False, layers=((0, 0),))], kept
    )
    one_layer = scope_bytes(table, (4, 0), Scope.UPDATE)
    assert solve(BatchedLedger(table), [1.0, 1.0], Limits(one_layer, Scope.UPDATE, horizon=1.0)).counts == (0, 4)


@settings(max_examples=150, deadline=None)
@given(problems(), st.sampled_from([0.01, 0.1, 0.5]))
def test_depth_is_the_least_within_the_tolerance(
    problem: tuple[CostTable, list[float], Limits], tolerance: float
) -> None:
    """Multiply-adds towards earlier layers first, then residual bytes: held against every choice there is."""
    table, values, limits = problem
    limits = replace(limits, tolerance=tolerance)
    ledger = BatchedLedger(table)
    selection = solve(ledger, values, limits)
    worth = {
        counts: value_of(table, values, counts, limits.horizon)
        for counts in all_counts(table)
        if any(counts) and allowed(table, counts, limits)
    }
    if not worth:
        return

    def depth(counts: tuple[int, ...]) -> tuple[int, int]:
        run = ledger.one_run(counts)
        towards = int((ledger.backward_macs(run) - ledger.weight_grad_macs(run))[0])
        return towards, ledger.of(counts).lines.residuals

    best = max(worth.values())
    assert selection.counts in worth, "the selection breaks a limit"
    assert worth[selection.counts] >= best * (1 - tolerance - PROOF_GAP - EXACT)
    enough = best * (1 - tolerance) * (1 + EXACT)
    assert depth(selection.counts) <= min(depth(counts) for counts in worth if worth[counts] >= enough)
    if selection.counts != selection.best_counts:
        assert depth(selection.counts) < depth(selection.best_counts)
    assert selection.given_up <= tolerance + PROOF_GAP
