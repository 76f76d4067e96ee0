"""The peak: a step played through block by block, plans against every choice, gradients that wait, a net by hand."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from plays import Play
from tables import all_counts, lasting_bytes, peak_tables, scope_bytes
from trady.planner.costs.refining import NOT_MEASURED
from trady.planner.costs.step_memory import StepMemory
from trady.planner.costs.table_builder import build_cost_table
from trady.planner.errors import BudgetError, PlanError
from trady.planner.ledger import BatchedLedger
from trady.planner.ledger.cost_table import CostTable
from trady.planner.ledger.peak import with_margin
from trady.planner.options import OptimizerKind, Scope
from trady.planner.plan.plan import Plan
from trady.planner.planning.planning import make_plan
from trady.planner.sampling.budget_state import BudgetState
from trady.planner.sampling.coverage import DEFAULT_HORIZON, coverage_value
from trady.planner.solver.cp_sat import solve
from trady.planner.solver.problem import PROOF_GAP, Limits, SolverStatus
from trady.planner.tracing.gradient_lifetimes import NodeRun, Passed, follow_gradients
from trady.planner.tracing.tracing import trace


@settings(max_examples=200, deadline=None)
@given(peak_tables(), st.data())
def test_the_peak_is_that_of_the_step_played_through(table: CostTable, data: Any) -> None:
    counts = [data.draw(st.integers(0, layer.in_channels)) for layer in table.layers]
    ledger = BatchedLedger(table).of(counts)
    assert ledger.scopes.peak == lasting_bytes(table, counts) + with_margin(Play(table, counts).run())
    assert ledger.lines.workspace is not None


@settings(max_examples=60, deadline=None)
@given(peak_tables(), st.integers(50, 900), st.lists(st.integers(1, 9), min_size=3, max_size=3))
def test_the_solver_finds_the_best_within_the_peak(table: CostTable, budget: int, values: list[int]) -> None:
    """Against every choice; measured kernels that take more than their line may cost it a channel."""
    norms = [float(value) for value in values[: len(table.layers)]]
    found = solve(BatchedLedger(table), norms, Limits(budget, Scope.PEAK))

    def worth(counts: Sequence[int]) -> float:
        shares = (
            coverage_value(count / layer.in_channels, DEFAULT_HORIZON)
            for count, layer in zip(counts, table.layers, strict=True)
        )
        return sum(norm * share for norm, share in zip(norms, shares, strict=True))

    fits = [counts for counts in all_counts(table) if scope_bytes(table, counts, Scope.PEAK) <= budget and any(counts)]
    if found.status is SolverStatus.INFEASIBLE:
        assert all(_is_bounded_higher(table, counts, budget) for counts in fits)
        return
    assert found.counts in fits
    bounded = [counts for counts in fits if not _is_bounded_higher(table, counts, budget)]
    best = max(map(worth, bounded), default=0.0)
    assert worth(found.counts) >= best * (1 - PROOF_GAP) - 1e-6


def _is_bounded_higher(table: CostTable, counts: Sequence[int], budget: int) -> bool:
    """Whether the solver's bounds on slices, and its rounding of the margin, take more than the ledger."""
    slack = 2 + max(
        (
            work.highest_base + work.channel * count + work.block - work.num_bytes(count)
            for operation in table.operations
            for work in operation.slices
            if (count := counts[work.layer])
        ),
        default=0,
    )
    return scope_bytes(table, counts, Scope.PEAK) + with_margin(max(0, slack)) > budget


@settings(max_examples=60, deadline=None)
@given(peak_tables(), st.data())
def test_the_budget_takes_what_the_ledger_says_fits(table: CostTable, data: Any) -> None:
    """One more channel is taken exactly where the peak of the ledger stays within the budget."""
    nothing = [0] * len(table.layers)
    full = [layer.in_channels for layer in table.layers]
    least, most = (scope_bytes(table, counts, Scope.PEAK) for counts in (nothing, full))
    budget = data.draw(st.integers(least, max(least, most)))
    state = BudgetState(BatchedLedger(table), Scope.PEAK, budget, 1, nested=True)
    for _ in range(data.draw(st.integers(1, 8))):
        index = data.draw(st.integers(0, len(table.layers) - 1))
        counts = state.counts[0].tolist()
        if counts[index] < full[index]:
            counts[index] += 1
            taken = state.take(np.array([0]), np.array([[index]]))
            assert bool(taken[0]) == (scope_bytes(table, counts, Scope.PEAK) <= budget)


def node(place: int, operation: int, upstream: int, taken: dict[int, int], *passed: tuple[int, int, int]) -> NodeRun:
    """``passed``: node, storage, own bytes of a storage of 8 bytes."""
    return NodeRun(
        place, operation, upstream, taken, tuple(Passed(to, 0, storage, 8, own) for to, storage, own in passed)
    )


def test_a_gradient_waits_for_the_branch_and_the_second_is_added_to_it() -> None:
    """``y = x + f(x)``: both take one gradient, which waits at ``x`` until f's is added in place."""
    runs = [
        node(0, 3, 0b11, {}, (1, 100, 8), (2, 100, 8)),
        node(1, 2, 0b11, {0: 100}, (2, 101, 8)),
        node(2, 1, 0b01, {0: 102}, (3, 103, 8)),
        node(3, 0, 0b01, {0: 103}),
    ]
    first, second, third = follow_gradients(runs)
    assert (first.born, sorted(first.uses)) == (3, [(1, 0b01), (2, 0b11)])
    assert (second.born, second.uses) == (2, ((2, 0b01),))
    assert (third.born, third.uses) == (1, ((0, 0b01),))


def test_gradients_that_are_parts_or_expanded_are_added_elsewhere() -> None:
    runs = [
        node(0, 2, 1, {}, (1, 100, 4), (2, 101, 8)),
        node(1, 1, 1, {0: 100}, (2, 102, 8)),
    ]
    runs[0] = NodeRun(0, 2, 1, {}, (Passed(2, 0, 100, 8, 4), Passed(1, 0, 101, 8, 8)))
    runs[1] = NodeRun(1, 1, 1, {0: 101}, (Passed(2, 0, 102, 8, 8),))
    found = follow_gradients([*runs, NodeRun(2, 0, 1, {0: 103}, ())])
    assert [storage.num_bytes for storage in found] == [8, 8, 8, 8]
    assert found[3].uses == ((0, 1),)


def test_a_chain_of_products_by_hand() -> None:
    """Batch 4, 6 -> 5 -> 3 features, float32: the worst moment is the softmax's backward, or the head's."""
    net = nn.Sequential(nn.Linear(6, 5, bias=False), nn.Linear(5, 3, bias=False))
    traced = trace(net, torch.zeros(4, 6), batch_sizes=(2, 3, 4))
    table = build_cost_table(
        traced, traced.layers, optimizer=OptimizerKind.SGD, memory=StepMemory.of(traced, measure=False)
    )
    weights, batch = 4 * (30 + 15), 4 * (24 + 2 * 4)
    hidden, logits, loss, head_gradient = 4 * 20, 4 * 12, 4, 4 * 15
    assert lasting_bytes(table, [0]) == weights + batch
    assert lasting_bytes(table, [2]) == weights + batch + 2 * 4 + 2 * 4 * 5
    # The softmax's result, the gradient it takes and the one it gives; the head's stored input.
    at_the_softmax = loss + logits + hidden + 3 * logits
    assert scope_bytes(table, [0], Scope.PEAK) == lasting_bytes(table, [0]) + with_margin(at_the_softmax)
    # The head's gradient and that of its input; the drawn channels' input is the batch.
    at_the_head = loss + logits + hidden + logits + head_gradient + hidden
    assert scope_bytes(table, [2], Scope.PEAK) == lasting_bytes(table, [2]) + with_margin(at_the_head)


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 5),
    )  # fmt: skip


def test_a_budget_of_the_peak_is_kept_by_every_strategy(tmp_path: Any) -> None:
    net, inputs = small_net(), torch.zeros(2, 3, 16, 16)
    whole = make_plan(net, inputs, budget="1MB", scope="peak").ledger.scopes.peak
    with pytest.raises(BudgetError, match=r"even without training\. Inference alone peaks at") as told:
        make_plan(net, inputs, budget=1000, scope="peak")
    least = int(str(told.value).rsplit("(", 1)[1].split(" B")[0])
    assert whole is not None and least < whole
    for strategy in ("solver", "trady", "s-full-random"):
        plan = make_plan(net, inputs, budget=(least + whole) // 2, scope="peak", strategy=strategy)
        assert plan.ledger.scopes.peak is not None
        assert plan.ledger.scopes.peak <= plan.settings.budget_bytes
        plan.save(tmp_path / "plan.json")
        assert Plan.load(tmp_path / "plan.json") == plan


def test_the_smallest_budget_told_is_enough() -> None:
    net, inputs = small_net(), torch.zeros(2, 3, 16, 16)
    with pytest.raises(BudgetError) as told:
        make_plan(net, inputs, budget=1000, scope="peak")
    least = int(str(told.value).rsplit("(", 1)[1].split(" B")[0])
    assert make_plan(net, inputs, budget=least + 8, scope="peak").chosen


def test_models_without_memory_say_what_is_missing() -> None:
    plan = make_plan(small_net().to("meta"), torch.zeros(2, 3, 16, 16), budget="2KB")
    assert NOT_MEASURED in plan.notes and plan.ledger.scopes.peak is not None


def test_a_backward_pass_that_cannot_be_followed_leaves_the_peak_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr("trady.planner.tracing.lifetimes.LifetimeRecorder.backward", fail)
    net, inputs = small_net(), torch.zeros(2, 3, 16, 16)
    plan = make_plan(net, inputs, budget="2KB")
    assert plan.ledger.scopes.peak is None
    assert any("The peak is not predicted" in note and "no such kernel" in note for note in plan.notes)
    with pytest.raises(PlanError, match=r"no such kernel.* Use --scope training"):
        make_plan(net, inputs, budget="1MB", scope="peak")
