"""What a choice left of the budget, spent on the layers that train anyway. No torch, no ortools."""

from collections.abc import Sequence

import numpy as np

from trady.planner.ledger import BatchedLedger, Bytes, CostTable
from trady.planner.options import Scope
from trady.planner.solver.problem import Limits


def spend_leftovers(
    ledger: BatchedLedger, counts: Sequence[int], values: Sequence[float], limits: Limits
) -> tuple[int, ...]:
    """More channels of the layers that are drawn from, as many as fit, the next channel worth most a byte first.

    A value that saturates leaves bytes over once its last tenth of a percent is reached; trained they cost nothing
    that the budget does not hold, and the backward pass stays as deep as it was.

    Args:
        ledger: Costs of the eligible layers.
        counts: Channels of each.
        values: Gradient norm of each layer, summed over its channels.
        limits: Budget and other bounds; a budget of the peak is left alone, whose kernels were measured for the counts.
    """
    found, table = np.array(counts, dtype=np.int64), ledger.table
    if limits.scope is Scope.PEAK:
        return tuple(found.tolist())
    for index in _by_next_value(table, found, values, limits.horizon):
        found[index] = _most_that_fit(ledger, found, index, limits)
    return tuple(found.tolist())


def _most_that_fit(ledger: BatchedLedger, counts: Bytes, index: int, limits: Limits) -> int:
    """Channels of one layer, in doubling steps from what it has: most often not even the first fits."""
    fitting, most = int(counts[index]), ledger.table.layers[index].in_channels
    while fitting < most:
        tried = fitting + 2 ** np.arange((most - fitting).bit_length())
        more = np.repeat(counts[None, :], len(tried), axis=0)
        more[:, index] = tried
        number = int(_fits(ledger, more, limits).sum())
        most = int(tried[number]) - 1 if number < len(tried) else most
        fitting = int(tried[number - 1]) if number else fitting
    return fitting


def _by_next_value(table: CostTable, counts: Bytes, values: Sequence[float], horizon: float) -> list[int]:
    """Drawn layers that have channels left, the next of which is worth most a byte first."""
    sizes = np.array([layer.in_channels for layer in table.layers])
    prices = np.array([layer.gradient_bytes + layer.optimizer_bytes for layer in table.layers], dtype=np.float64)
    prices += [sum(tensor.channel_bytes for tensor in table.groups[layer.group].inputs) for layer in table.layers]
    worth = np.array(values) / sizes * (1 - counts / sizes) ** (horizon - 1) / np.maximum(prices, 1)
    return [int(index) for index in np.argsort(-worth, kind="stable") if 0 < counts[index] < sizes[index]]


def _fits(ledger: BatchedLedger, counts: Bytes, limits: Limits) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Whether each of some counts, more from row to row, is within the limits."""
    fits = ledger.scope_bytes(counts, limits.scope) <= limits.budget_bytes
    if limits.max_backward_macs is not None:
        fits &= ledger.backward_macs(counts) <= limits.max_backward_macs
    return np.asarray(fits)
