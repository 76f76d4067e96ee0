"""The channels of the largest RGN: deterministic.

Held by ``tests/planner/sampling/test_draw_contract.py``.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from trady.planner.sampling.draws import ChannelDraws
from trady.planner.sampling.strategies.contract import Norms, Observes
from trady.planner.sampling.strategies.in_order import InOrder


class LargestRgn(InOrder):
    """By the norms of a dense pass; by the calibrated ones where there was none."""

    observes = Observes.DENSE_PASS

    def draws(
        self, epochs: Sequence[int], seeds: Sequence[int], observed: Mapping[int, Norms] | None = None
    ) -> Iterator[ChannelDraws]:
        """The same in all epochs."""
        return self.taken(epochs, len(seeds), self._rgn(observed))

    def _rgn(self, observed: Mapping[int, Norms] | None) -> Norms:
        """RGN of the eligible channels; the calibrated norm stands in where none was observed."""
        norms = np.concatenate([self.plan.channel_norms(index) for index in self.plan.strategy.eligible])[None, :]
        if observed is not None:
            found = self.last_norms(observed)
            norms = np.where(np.isnan(found), norms, found)
        costs = np.array([layer.sample_cost for layer in self.table.layers], dtype=np.float64)
        keys: Norms = norms / costs[self.pool.layers[:-1]]
        return keys
