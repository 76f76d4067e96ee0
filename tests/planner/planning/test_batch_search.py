"""The largest batch size is the last one that can be planned."""

import pytest
import torch
from torch import nn

from cases import Residual
from tables import backward_macs
from trady.planner import Priorities, make_plan, trace
from trady.planner.errors import BudgetError, PlanError
from trady.planner.planning.batch_search import plan_largest_batch
from trady.planner.planning.planning import ChoiceKeywords
from trady.planner.priorities.without_data import priorities_without_data


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return Residual(in_place=False)


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    return torch.zeros(2, 3, 12, 12)


@pytest.fixture(scope="module")
def priorities(net: nn.Module, pictures: torch.Tensor) -> Priorities:
    return priorities_without_data(net, pictures, trace(net, pictures), None, has_weights=True)


@pytest.mark.parametrize(("scope", "budget"), [("training", 60_000), ("training", 9_000), ("peak", 500_000)])
def test_one_more_sample_does_not_fit(
    net: nn.Module, pictures: torch.Tensor, priorities: Priorities, scope: str, budget: int
) -> None:
    options: ChoiceKeywords = {"budget": budget, "scope": scope, "optimizer": "adamw"}
    plan = plan_largest_batch(net, pictures, traced=trace(net, pictures), priorities=priorities, **options)
    size = plan.settings.batch_size
    assert plan == make_plan(
        net, pictures, batch_size=size, traced=trace(net, pictures), priorities=priorities, **options
    )
    with pytest.raises(BudgetError):
        make_plan(net, pictures, batch_size=size + 1, priorities=priorities, **options)


def test_a_least_value_bounds_the_batch(net: nn.Module, pictures: torch.Tensor, priorities: Priorities) -> None:
    traced = trace(net, pictures)
    plan = plan_largest_batch(net, pictures, traced=traced, priorities=priorities, budget="6KB", min_value=0.5)
    size = plan.settings.batch_size
    assert plan.solver.value >= 0.5
    next_plan = make_plan(net, pictures, batch_size=size + 1, traced=traced, priorities=priorities, budget="6KB")
    assert next_plan.solver.value < 0.5


def test_a_bounded_backward_pass_bounds_the_batch(
    net: nn.Module, pictures: torch.Tensor, priorities: Priorities
) -> None:
    traced = trace(net, pictures)
    options: ChoiceKeywords = {"budget": "60KB", "max_backward_macs": 2_000_000}
    plan = plan_largest_batch(net, pictures, traced=traced, priorities=priorities, **options)
    assert backward_macs(plan.table, plan.counts) <= 2_000_000
    with pytest.raises(PlanError, match="--max-backward-macs 2000000"):
        make_plan(
            net,
            pictures,
            batch_size=plan.settings.batch_size + 1,
            traced=traced,
            priorities=priorities,
            **options,
        )


def test_a_budget_that_holds_nothing_that_grows(net: nn.Module, pictures: torch.Tensor, priorities: Priorities) -> None:
    with pytest.raises(PlanError, match=r"Any batch size fits: with 1,048,576 samples stem still trains"):
        plan_largest_batch(net, pictures, traced=trace(net, pictures), priorities=priorities, budget="6KB")


def test_not_even_one_sample(net: nn.Module, pictures: torch.Tensor, priorities: Priorities) -> None:
    with pytest.raises(BudgetError, match="trains no layer"):
        plan_largest_batch(
            net, pictures, traced=trace(net, pictures), priorities=priorities, budget="100B", scope="training"
        )


def test_a_value_out_of_reach(net: nn.Module, pictures: torch.Tensor, priorities: Priorities) -> None:
    with pytest.raises(PlanError, match=r"below the 99.90 % asked for. Raise --budget"):
        plan_largest_batch(
            net, pictures, traced=trace(net, pictures), priorities=priorities, budget="2KB", min_value=0.999
        )


def test_priorities_are_measured_once(net: nn.Module, pictures: torch.Tensor, priorities: Priorities) -> None:
    calls = []

    def measure() -> Priorities:
        calls.append(1)
        return priorities

    plan_largest_batch(net, pictures, traced=trace(net, pictures), priorities=measure, budget="9KB", scope="training")
    assert calls == [1]
