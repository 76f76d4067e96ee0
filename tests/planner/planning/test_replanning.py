"""Another strategy from a plan's own table is the plan that would have been made with it."""

import pytest
import torch

from cases import build
from tables import cost_table, layer_costs, plan_of
from trady.planner.errors import BudgetError, StrategyError
from trady.planner.ledger.cost_records import GroupInput, InputGroup
from trady.planner.options import Strategy
from trady.planner.plan.plan import Plan
from trady.planner.planning.planning import make_plan
from trady.planner.planning.replanning import replan
from trady.planner.sampling.sparse_update_schemes import SPARSE_UPDATE_SCHEMES

STRATEGIES = [strategy for strategy in Strategy if strategy is not Strategy.SU]


@pytest.fixture(scope="module")
def made() -> dict[Strategy, Plan]:
    model, inputs = build("encoder-layer")
    torch.manual_seed(0)
    return {
        strategy: make_plan(model, inputs, budget="6KB", optimizer="adam", strategy=strategy, epochs=3)
        for strategy in STRATEGIES
    }


@pytest.mark.parametrize("other", [Strategy.SOLVER, Strategy.MEDYATE])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_replanning_gives_the_plan_made_with_it(
    made: dict[Strategy, Plan], strategy: Strategy, other: Strategy
) -> None:
    found = replan(made[other], strategy.value)
    expected = made[strategy]
    assert found.strategy == expected.strategy
    assert (found.counts, found.ledger.scopes.update) == (expected.counts, expected.ledger.scopes.update)
    assert found.solver == expected.solver


def test_a_plans_own_strategy_changes_nothing(made: dict[Strategy, Plan]) -> None:
    assert replan(made[Strategy.TRADY], Strategy.TRADY) is made[Strategy.TRADY]


def small_plan(budget: int = 4000) -> Plan:
    groups = [InputGroup(inputs=(GroupInput(channel_bytes=16, kept_by=None),)) for _ in range(2)]
    return plan_of(cost_table([layer_costs(i, 8, i) for i in range(2)], groups), budget_bytes=budget, counts=(1, 1))


def test_a_scheme_by_layer_names_has_its_counts_and_random_channels() -> None:
    found = replan(small_plan(), "su", {"layer0": 0.5, "layer1": 0.25})
    assert found.counts == (4, 2)
    assert found.strategy.eligible == (0, 1)
    drawn = found.strategy.fixed_channels
    assert {name: len(set(channels)) for name, channels in drawn.items()} == {"layer0": 4, "layer1": 2}
    assert replan(small_plan(), "su", {"layer0": 0.5, "layer1": 0.25}) == found


def test_a_published_scheme_numbers_convolutions() -> None:
    """Fifteen published schemes on a table that has all convolutions, as the model's tensors say."""
    sizes = [8] * 61
    groups = [InputGroup(inputs=(GroupInput(channel_bytes=1, kept_by=None),)) for _ in sizes]
    layers = [layer_costs(i, size, i, optimizer=0).model_copy(update={"kind": "conv"}) for i, size in enumerate(sizes)]
    of = plan_of(cost_table(layers, groups), budget_bytes=10**6, counts=[1] * 61)
    tensors = {layer.weight_name: "float32[3, 8, 1, 1]" for layer in layers}
    of = of.model_copy(update={"model": of.model.model_copy(update={"tensors": tensors})})
    for scheme in SPARSE_UPDATE_SCHEMES:
        counts = replan(of, "su", scheme.name).counts
        assert {place: count for place, count in enumerate(counts) if count} == scheme.channel_counts(sizes)
    fewer = of.model_copy(
        update={"model": of.model.model_copy(update={"tensors": tensors | {"stem.weight": "float32[3, 3, 3, 3]"}})}
    )
    with pytest.raises(StrategyError, match=r"table has 61 and leaves out 1, 'stem.weight' first"):
        replan(fewer, "su", "mbv2-49kb")


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(BudgetError, match=r"Scheme needs 712 B in scope 'update', above the budget of 300 B"):
        replan(small_plan(300), "su", {"layer0": 1.0, "layer1": 1.0})
    tight = plan_of(
        cost_table([layer_costs(0, 8, 0)], [InputGroup(inputs=(GroupInput(channel_bytes=16, kept_by=None),))]),
        budget_bytes=20,
    )
    with pytest.raises(BudgetError, match=r"Budget 20 B trains no layer: the cheapest, 'layer0', needs 48 B"):
        replan(tight, "trady")
    with pytest.raises(StrategyError, match=r"Sparse Update scheme 'mbv3' is not one of the published ones"):
        replan(small_plan(), "su", "mbv3")
