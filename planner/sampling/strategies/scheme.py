"""The channels that a static scheme names: MIT's Sparse Update.

Held by ``tests/planner/sampling/test_draw_contract.py``.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from trady.planner.sampling.draws import ChannelDraws
from trady.planner.sampling.philox import Channels
from trady.planner.sampling.strategies.contract import Norms
from trady.planner.sampling.strategies.in_order import InOrder


class SchemeChannels(InOrder):
    """The same in every run and epoch."""

    fills_budget = False

    def draws(
        self, epochs: Sequence[int], seeds: Sequence[int], observed: Mapping[int, Norms] | None = None
    ) -> Iterator[ChannelDraws]:
        """The plan's fixed channels."""
        counts = np.zeros((len(seeds), len(self.sizes)), dtype=np.int64)
        channels: dict[int, Channels] = {}
        for name, fixed in self.plan.strategy.fixed_channels.items():
            index = self.table.index_of(name)
            counts[:, index] = len(fixed)
            if fixed:
                channels[index] = np.broadcast_to(np.array(fixed, dtype=np.int64), (len(seeds), len(fixed)))
        return self.repeated(epochs, counts, channels)
