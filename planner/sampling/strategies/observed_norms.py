"""Channels at random in proportion to their last observed norms.

Held by ``tests/planner/sampling/test_draw_contract.py``.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np

from trady.planner.sampling.draws import ChannelDraws
from trady.planner.sampling.philox import unit_interval, words_of_runs
from trady.planner.sampling.strategies.contract import Norms, Observes
from trady.planner.sampling.strategies.in_order import InOrder
from trady.planner.sampling.strategies.uniform import Uniform

#: The stream of random words of one seed that the order takes.
_WEIGHT_STREAM: Final = 2
#: Stands for a norm of zero: drawn last, and in random order.
_LEAST_WEIGHT: Final = 1e-30


class ByObservedNorms(InOrder):
    """Uniform until there are norms.

    Source:
        MeDyate, arXiv 2510.20979.
    """

    observes = Observes.OWN_DRAWS

    def draws(
        self, epochs: Sequence[int], seeds: Sequence[int], observed: Mapping[int, Norms] | None = None
    ) -> Iterator[ChannelDraws]:
        """One epoch at a time, since each changes the norms."""
        if observed is None:
            yield from Uniform(self.plan, self.ledger).draws(epochs, seeds)
            return
        for epoch in epochs:
            yield from self.taken([epoch], len(seeds), self._keys(epoch, seeds, observed))

    def _keys(self, epoch: int, seeds: Sequence[int], observed: Mapping[int, Norms]) -> Norms:
        """Keys that order the eligible channels at random, in proportion to their last observed norms.

        Unseen channels get the largest observed one. Exponential keys give sampling without replacement.

        Source:
            Efraimidis and Spirakis 2006.
        """
        norms = self.last_norms(observed)
        unseen = np.isnan(norms)
        largest = np.where(unseen, -np.inf, norms).max(axis=1, keepdims=True)
        largest = np.where(unseen.all(axis=1, keepdims=True), 1.0, largest)
        weights = np.maximum(np.where(unseen, largest, norms), _LEAST_WEIGHT)
        words = words_of_runs(seeds, epoch, _WEIGHT_STREAM, norms.shape[1])
        keys: Norms = weights / -np.log(unit_interval(words))
        return keys
