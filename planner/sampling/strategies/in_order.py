"""Draws that take channels in an order: each layer draws for itself, so input groups store unions.

Held by ``tests/planner/sampling/test_draw_contract.py``.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from trady.planner.ledger import Bytes
from trady.planner.sampling.draws import ChannelDraws
from trady.planner.sampling.greedy_fill import Filling, Pool
from trady.planner.sampling.philox import Channels
from trady.planner.sampling.strategies.contract import DrawRule, Norms


class InOrder(DrawRule):
    """What such rules share."""

    @cached_property
    def pool(self) -> Pool:
        """All eligible channels."""
        return Pool.of(self.eligible, self.sizes[self.eligible])

    def taken(self, epochs: Sequence[int], runs: int, keys: Norms) -> Iterator[ChannelDraws]:
        """In each epoch the eligible channels by falling key while they fit; equal keys in the table's order.

        Args:
            epochs: The epochs.
            runs: How many runs.
            keys: ``[runs, eligible channels]``, or one row for all runs.
        """
        filling = Filling(self.full_budget(len(keys), nested=False), self.pool)
        filling.walk(np.arange(len(keys)), np.argsort(-keys, axis=1, kind="stable"))
        channels, counts = filling.by_layer(in_order=False), filling.budget.counts
        same = {index: np.broadcast_to(drawn, (runs, drawn.shape[1])) for index, drawn in channels.items()}
        return self.repeated(epochs, np.broadcast_to(counts, (runs, len(self.sizes))), same)

    def repeated(self, epochs: Sequence[int], counts: Bytes, channels: dict[int, Channels]) -> Iterator[ChannelDraws]:
        """The same draw in each epoch."""
        stored, indexed = self._unions(counts, channels)
        return (ChannelDraws(epoch, counts, channels, stored, indexed) for epoch in epochs)

    def last_norms(self, observed: Mapping[int, Norms]) -> Norms:
        """Last observed norms of the eligible channels, ``[runs, eligible channels]``; ``NaN`` where there was none."""
        runs = len(next(iter(observed.values())))
        return np.concatenate(
            [observed.get(index, np.full((runs, self.sizes[index]), np.nan)) for index in self.eligible.tolist()],
            axis=1,
        )

    def _unions(self, counts: Bytes, channels: Mapping[int, Channels]) -> tuple[Bytes, Bytes]:
        """Channels stored and indices kept per input group, where each layer draws for itself."""
        stored, indexed = self.ledger.most_of_groups(counts), self.ledger.sums_of_groups(counts)
        members: dict[int, list[int]] = {}
        for index in channels:
            members.setdefault(self.table.layers[index].group, []).append(index)
        for group, found in members.items():
            if len(found) > 1:
                stored[:, group] = self._union([channels[index] for index in found], int(self.sizes[found[0]]))
                nested = self._are_nested([channels[index] for index in found], counts[:, found])
                indexed[:, group] = np.where(nested, stored[:, group], indexed[:, group])
        return stored, indexed

    def _union(self, draws: Sequence[Channels], in_channels: int) -> Bytes:
        is_stored = np.zeros((len(draws[0]), in_channels + 1), dtype=bool)
        for channels in draws:
            np.put_along_axis(is_stored, channels, True, axis=1)
        found: Bytes = is_stored[:, :-1].sum(axis=1)
        return found

    @staticmethod
    def _are_nested(draws: Sequence[Channels], counts: Bytes) -> NDArray[np.bool_]:
        """Whether in each run all members draw the first channels of the longest draw."""
        most, runs = max(channels.shape[1] for channels in draws), np.arange(len(counts))
        padded = np.full((len(draws), len(counts), most), -1, dtype=np.int64)
        for place, channels in enumerate(draws):
            padded[place, :, : channels.shape[1]] = channels
        longest = padded[counts.argmax(axis=1), runs]
        beyond = np.arange(most) >= counts.T[:, :, None]
        return np.asarray(((padded == longest) | beyond).all(axis=(0, 2)))
