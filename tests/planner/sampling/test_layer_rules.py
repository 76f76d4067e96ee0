"""Layer rules by brute force over all subsets; schemes."""

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tables import cost_table, layer_costs
from trady.planner.errors import StrategyError
from trady.planner.ledger import BatchedLedger
from trady.planner.ledger.cost_records import GroupInput, InputGroup
from trady.planner.ledger.cost_table import CostTable
from trady.planner.priorities.priorities import LayerPriority
from trady.planner.sampling.layer_rules import LayerRule, eligible_layers, scheme_counts


def table_of(widths: Sequence[int]) -> CostTable:
    groups = [InputGroup(inputs=(GroupInput(channel_bytes=16, kept_by=None),)) for _ in widths]
    return cost_table([layer_costs(i, width, i, optimizer=0) for i, width in enumerate(widths)], groups)


def priorities_of(table: CostTable, norms: Sequence[float]) -> list[LayerPriority]:
    return [
        LayerPriority(
            name=layer.name,
            weight_name=layer.weight_name,
            channel_norms=(norm,) * layer.in_channels,
            weight_elements=layer.weight_elements,
            sample_elements=layer.sample_elements,
        )
        for layer, norm in zip(table.layers, norms, strict=True)
    ]


LAYERS = st.lists(st.tuples(st.integers(1, 9), st.floats(0.001, 10)), min_size=1, max_size=7)


@settings(max_examples=60, deadline=None)
@given(LAYERS)
def test_top_k_are_the_fewest_layers_that_hold_97_percent(layers: list[tuple[int, float]]) -> None:
    table = table_of([width for width, _ in layers])
    found = eligible_layers(
        LayerRule.TOP_RGN, BatchedLedger(table), priorities_of(table, [norm for _, norm in layers]), 10**6
    )
    rgn = [width * norm / 7 for width, norm in layers]  # C_W + C_A = 3 + 4
    least = 0.97 * sum(rgn)
    fewest = next(
        size
        for size in range(1, len(rgn) + 1)
        if any(sum(chosen) >= least * (1 - 1e-12) for chosen in itertools.combinations(rgn, size))
    )
    assert sum(rgn[index] for index in found) >= least * (1 - 1e-12)
    assert len(found) in (fewest, fewest + 1) and found == sorted(found)
    if len(found) == fewest + 1:  # only where rounding decides
        assert sum(sorted(rgn)[-fewest:]) == pytest.approx(least)


@settings(max_examples=60, deadline=None)
@given(LAYERS, st.integers(1, 400))
def test_lara_takes_layers_until_the_budget_is_a_fifth_of_them(layers: list[tuple[int, float]], budget: int) -> None:
    table = table_of([width for width, _ in layers])
    found = eligible_layers(
        LayerRule.LARA, BatchedLedger(table), priorities_of(table, [norm for _, norm in layers]), budget
    )
    lara = [norm * width**0.5 / (width * 7) for width, norm in layers]
    memory = [width * 32 for width, _ in layers]  # 12 gradient + 16 stored + 4 index bytes a channel
    assert min(lara[i] for i in found) >= max((x for i, x in enumerate(lara) if i not in found), default=0.0) * (
        1 - 1e-12
    )
    assert budget / sum(memory[i] for i in found) <= 0.2 or len(found) == len(layers)
    if len(found) > 1:
        last = min(found, key=lambda i: lara[i])
        assert budget / (sum(memory[i] for i in found) - memory[last]) > 0.2 or lara.count(lara[last]) > 1


def test_the_full_rule_admits_every_layer() -> None:
    table = table_of([3, 4])
    assert eligible_layers(LayerRule.FULL, BatchedLedger(table), priorities_of(table, [1.0, 0.0]), 1) == [0, 1]


def test_scheme_ratios_are_floored() -> None:
    table = table_of([100, 10, 7, 4])
    assert scheme_counts(table, {"layer0": 0.29, "layer1": 0.59, "layer2": 1}) == [29, 5, 7, 0]


@pytest.mark.parametrize("ratio", [1.5, -0.1, float("nan"), "half", None, True])
def test_a_ratio_outside_0_to_1_is_refused(ratio: float) -> None:
    with pytest.raises(StrategyError, match="Scheme ratio of layer 'layer0' must be a number from 0 to 1, got"):
        scheme_counts(table_of([4]), {"layer0": ratio})


def test_a_scheme_of_another_model_is_refused() -> None:
    with pytest.raises(StrategyError, match=r"layers the model has not: conv9. Its layers are for instance: layer0"):
        scheme_counts(table_of([4]), {"conv9": 0.5})


def test_a_scheme_that_trains_nothing_is_refused() -> None:
    with pytest.raises(StrategyError, match="Scheme trains no channel"):
        scheme_counts(table_of([4]), {"layer0": 0.1})
