"""Which layers a strategy may draw from."""

import math
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final

from trady.planner.errors import BudgetError, StrategyError
from trady.planner.ledger import BatchedLedger, CostTable
from trady.planner.options import Scope
from trady.planner.priorities import LayerPriority, top_layers

#: Share of the total RGN that the paper's top-K layers hold.
TOP_SHARE: Final = 0.97
#: Most of the pool's memory that MeDyate's budget may cover at each draw.
POOL_SHARE: Final = 0.2


class LayerRule(StrEnum):
    """Which layers channels may be drawn from."""

    FULL = "full"
    TOP_RGN = "top-rgn"
    LARA = "lara"
    SCHEME = "scheme"


def eligible_layers(
    rule: LayerRule, ledger: BatchedLedger, priorities: Sequence[LayerPriority], budget_bytes: int
) -> list[int]:
    """Indices of the layers a rule admits, in the table's order.

    Args:
        rule: The layer rule.
        ledger: Costs of all candidate layers.
        priorities: One entry per layer of the table, in its order.
        budget_bytes: Budget of the ``update`` scope; MeDyate's rule depends on it.

    Returns:
        Indices of layers, ascending.

    Source:
        Top-K at 97 %: TraDy, arXiv 2510.19675. LaRa and its stopping rule: MeDyate, arXiv 2510.20979.
    """
    if rule is LayerRule.TOP_RGN:
        return sorted(top_layers(priorities, TOP_SHARE))
    if rule is LayerRule.LARA:
        return sorted(_lara(ledger, priorities, budget_bytes))
    return list(range(len(ledger.table.layers)))


def scheme_counts(table: CostTable, scheme: Mapping[str, float]) -> list[int]:
    """Channels per layer of a static scheme of ratios, floored as MIT's are.

    Returns:
        Channels, one count for each layer of the table.

    Raises:
        StrategyError: The scheme names layers the model has not, a ratio outside 0 to 1, or trains nothing.
    """
    known = {layer.name for layer in table.layers}
    unknown = sorted(set(scheme) - known)
    if unknown:
        raise StrategyError(
            f"Scheme names layers the model has not: {', '.join(unknown[:5])}. "
            f"Its layers are for instance: {', '.join(list(known)[:5])}."
        )
    wrong = {name: ratio for name, ratio in scheme.items() if not _is_share(ratio)}
    if wrong:
        name, ratio = next(iter(wrong.items()))
        raise StrategyError(f"Scheme ratio of layer {name!r} must be a number from 0 to 1, got {ratio!r}.")
    counts = [_floored(scheme.get(layer.name, 0.0), layer.in_channels) for layer in table.layers]
    if not any(counts):
        raise StrategyError("Scheme trains no channel: every ratio gives less than one. Raise one of them.")
    return counts


def check_scheme_fits(ledger: BatchedLedger, counts: Sequence[int], scope: Scope, budget_bytes: int) -> None:
    """A static scheme cannot be cut to the budget: it fits or not.

    Raises:
        BudgetError: It needs more.
    """
    needed = ledger.of(counts).scopes.of(scope)
    if needed > budget_bytes:
        raise BudgetError(
            f"Scheme needs {needed} B in scope {scope.value!r}, above the budget of {budget_bytes} B. "
            f"Raise --budget to {needed}B."
        )


def _is_share(ratio: object) -> bool:
    return isinstance(ratio, int | float) and not isinstance(ratio, bool) and 0 <= ratio <= 1


def _floored(ratio: float, channels: int) -> int:
    """``ratio * channels`` floored, where 0.29 of 100 is 29 and not the 28 of binary fractions."""
    return math.floor(ratio * channels + 1e-9)


def _lara(ledger: BatchedLedger, priorities: Sequence[LayerPriority], budget_bytes: int) -> list[int]:
    layers = ledger.table.layers
    chosen: list[int] = []
    for index in sorted(range(len(priorities)), key=lambda index: -priorities[index].lara):
        chosen.append(index)
        counts = [0] * len(layers)
        for layer in chosen:
            counts[layer] = layers[layer].in_channels
        if budget_bytes <= POOL_SHARE * ledger.of(counts).scopes.update:
            break
    return chosen
