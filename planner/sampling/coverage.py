"""Closed forms of what the draws reach. No torch, no ortools."""

from collections.abc import Sequence
from math import fsum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from trady.planner.ledger import CostTable

#: Draws the solver's value looks ahead: the further, the more layers share the budget. On real networks and data 4 and
#: 16 are near each other, 64 is behind (docs/accuracy.md).
DEFAULT_HORIZON: Final = 4.0


def coverage_value(share: float, horizon: float) -> float:
    """Expected share of a layer's channels reached after ``horizon`` draws of ``share`` of them."""
    return float(1.0 - (1.0 - share) ** horizon)


def waiting_mass(share: float, epoch: int) -> float:
    """Expected epochs since a channel's last update, counted where an earlier epoch drew it at all.

    A channel drawn with probability ``p`` each epoch was last drawn ``d`` epochs ago with ``p (1 - p)^(d-1)``: this is
    the sum of ``d`` times that for d up to the epoch. Over :func:`coverage_value` of the earlier epochs it is the mean
    of those that waited.

    Args:
        share: Probability that an epoch draws the channel.
        epoch: The epoch, from 0.

    Returns:
        The sum, in epochs.
    """
    if share == 0.0:
        return 0.0
    return float((1.0 - (1.0 - share) ** epoch * (1.0 + epoch * share)) / share)


def covered_shares(
    amounts: Sequence[float], table: "CostTable", counts: Sequence[int], horizon: float
) -> tuple[float, ...]:
    """What so many draws can be expected to reach of each layer's amount, as shares of all layers' amounts.

    Args:
        amounts: Norms, RGN or anything else that a layer's channels hold, one for each layer of the table.
        table: Costs of the layers.
        counts: Channels that each draw takes.
        horizon: Draws.

    Returns:
        A share for each layer, 0 to 1.
    """
    total = fsum(amounts)
    return tuple(
        amount * coverage_value(count / layer.in_channels, horizon) / total if total else 0.0
        for amount, count, layer in zip(amounts, counts, table.layers, strict=True)
    )
