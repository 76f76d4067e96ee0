"""How far back a choice of layers makes the backward pass go, and how far it must. No torch, no ortools.

Held by ``tests/planner/solver/test_cp_sat.py``.
"""

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trady.planner.ledger import BatchedLedger, CostTable
from trady.planner.solver.value_curves import Segment

#: Multiply-adds and residual bytes are weighed to this part of their sums: CP-SAT counts in 64 bits.
_UNITS: Final = 2**24
#: Prices of a byte among which the one that bounds the value best is looked for.
_PRICES: Final = 256


class Depths:
    """The depth of channel counts: multiply-adds of gradients towards earlier layers; residual bytes among equals.

    Gradients of the drawn weights do not count: they are what the budget is for, they are the same however deep they
    lie, and to shave them would spend the whole tolerance on next to nothing. Element-wise operations on the way have
    no multiply-adds, but the residuals they keep.

    Args:
        ledger: Costs of the eligible layers.
        counts_work: Whether multiply-adds count at all; else residual bytes alone.
    """

    def __init__(self, ledger: BatchedLedger, *, counts_work: bool) -> None:
        self._table = ledger.table
        work = Counter(ledger.gradient_terms) if counts_work else Counter[int]()
        kept = Counter({upstream: size for (line, upstream), size in ledger.kept_terms.items() if line == "residuals"})
        work_unit, kept_unit = (max(1, terms.total() // _UNITS) for terms in (work, kept))
        first = kept.total() // kept_unit + 1
        self.terms = {
            upstream: work[upstream] // work_unit * first + kept[upstream] // kept_unit
            for upstream in sorted(work.keys() | kept.keys())
        }

    def of(self, active: int) -> int:
        """Depth where these layers, a bit set, are drawn from."""
        return sum(
            price for upstream, price in self.terms.items() if self._table.upstreams[upstream].is_trained(active)
        )

    def closed(self, active: int) -> int:
        """Bit set of the layers that would make it deeper."""
        untrained = (upstream for upstream in self.terms if not self._table.upstreams[upstream].is_trained(active))
        deeper = 0
        for upstream in untrained:
            deeper |= self._table.upstreams[upstream].bits
        return deeper

    @cached_property
    def of_layers(self) -> tuple[int, ...]:
        """Depth where one layer alone is drawn from: no choice with it is shallower."""
        return tuple(self.of(1 << index) for index in range(len(self._table.layers)))

    @cached_property
    def levels(self) -> tuple[int, ...]:
        """The different ones, the shallowest first."""
        return tuple(sorted(set(self.of_layers)))

    def beyond(self, level: int) -> int:
        """Bit set of the layers that are deeper by themselves."""
        return sum(1 << index for index, depth in enumerate(self.of_layers) if depth > level)

    def value_bounds(self, curves: Sequence[Sequence[Segment]]) -> "ValueBounds":
        """What layers up to each level can be worth at the most."""
        return ValueBounds(self, self._table, curves)


class ValueBounds:
    """Upper bounds of the value in scope ``update`` and ``training`` by Lagrange: bytes have a price, and no limit.

    Args:
        depths: Levels.
        table: Costs of the eligible layers.
        curves: Value of each layer's channels.
    """

    def __init__(self, depths: Depths, table: CostTable, curves: Sequence[Sequence[Segment]]) -> None:
        shared = Counter(layer.group for layer in table.layers)
        bytes_of = [
            layer.gradient_bytes
            + layer.optimizer_bytes
            # A group stores the most that any member draws, at least the mean; what may be kept anyway is free.
            + sum(tensor.channel_bytes for tensor in table.groups[layer.group].inputs if tensor.kept_by is None)
            / shared[layer.group]
            for layer in table.layers
        ]
        densities = [curve[0].units / price for curve, price in zip(curves, bytes_of, strict=True) if curve[0].units]
        self._prices = np.geomspace(min(densities, default=1.0) * 1e-4, max(densities, default=1.0), _PRICES)
        gained = np.zeros((len(depths.levels), _PRICES))
        for depth, curve, price in zip(depths.of_layers, curves, bytes_of, strict=True):
            ends = np.array(list(accumulate(segment.channels for segment in curve)), dtype=np.float64)
            units = np.array(list(accumulate(segment.units * segment.channels for segment in curve)), dtype=np.float64)
            net = units[:, None] - price * ends[:, None] * self._prices
            gained[depths.levels.index(depth) :] += net.max(axis=0).clip(min=0.0)
        self._gained: NDArray[np.float64] = gained

    def first_level(self, units: float, budget_bytes: int) -> int:
        """Position of the first level whose layers may be worth so much within a budget."""
        bounds = (self._gained + budget_bytes * self._prices).min(axis=1)
        return int((bounds < units).sum())
