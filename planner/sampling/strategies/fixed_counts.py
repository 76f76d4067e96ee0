"""The plan's own counts in every epoch: the solver's.

Held by ``tests/planner/sampling/test_draw_contract.py``.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np

from trady.planner.ledger import Bytes
from trady.planner.options import Inclusion
from trady.planner.sampling.draws import ChannelDraws
from trady.planner.sampling.inclusion_probabilities import WeightedGroup, inclusion_probabilities
from trady.planner.sampling.philox import Channels, HalfWords, Scratch, distinct_channels, fixed_words
from trady.planner.sampling.strategies.contract import DrawRule, Norms, blocks

#: The stream of random words of one seed that permutations take.
_CHANNEL_STREAM: Final = 0
#: Runs times epochs that are drawn at a time, and the words they may take together.
_ROWS_AT_ONCE: Final = 500
_WORDS_AT_ONCE: Final = 2**23


class FixedCounts(DrawRule):
    """The first channels of a permutation of each input group: a layer's are equally likely unless weighted.

    Every epoch takes the next words of the run's stream, the same number of each.
    """

    fills_budget = False
    is_uniform = True

    def draws(
        self, epochs: Sequence[int], seeds: Sequence[int], observed: Mapping[int, Norms] | None = None
    ) -> Iterator[ChannelDraws]:
        """Several epochs at a time."""
        counts = np.broadcast_to(np.array(self.plan.counts, dtype=np.int64), (len(seeds), len(self.sizes)))
        every = self.ledger.most_of_groups(counts)
        if self.plan.solver.inclusion is Inclusion.WEIGHTED:
            yield from self._weighted(epochs, seeds, counts, every)
            return
        space = Scratch()
        stored = every[0]
        number = int(stored.sum())
        for block in blocks(epochs, min(_ROWS_AT_ONCE, _WORDS_AT_ONCE // max(1, number)) // len(seeds)):
            words = space.array("halves", (number, len(block), len(seeds)), np.uint32)
            words[:] = fixed_words(seeds, _CHANNEL_STREAM, number, block[0], len(block), space).transpose(2, 1, 0)
            words_by_group = np.split(words.reshape(number, len(block) * len(seeds)), np.cumsum(stored)[:-1])
            channels = self._nested(counts[0], words_by_group, space)
            for place, epoch in enumerate(block):
                own = slice(place * len(seeds), (place + 1) * len(seeds))
                of_epoch = {index: drawn[own] for index, drawn in channels.items()}
                yield ChannelDraws(epoch, counts, of_epoch, every, every)

    def _weighted(
        self, epochs: Sequence[int], seeds: Sequence[int], counts: Bytes, stored: Bytes
    ) -> Iterator[ChannelDraws]:
        """Larger norms more often."""
        groups = self._weighted_groups(counts[0], stored[0])
        for epoch in epochs:
            channels: dict[int, Channels] = {}
            for group in groups:
                drawn = group.draw(epoch, seeds)
                channels |= {index: drawn[:, : counts[0, index]] for index in group.members}
            yield ChannelDraws(epoch, counts, channels, stored, stored)

    def _nested(self, counts: Bytes, words_by_group: Sequence[HalfWords], space: Scratch) -> dict[int, Channels]:
        """First channels of the input groups' permutations, ``[runs, channels drawn]`` by index of the layer.

        Args:
            counts: Channels drawn, ``[layers]``.
            words_by_group: Words of each input group, ``[channels stored, runs]``.
            space: Memory to use again.
        """
        orders: dict[int, Channels] = {}
        channels = {}
        for index in np.flatnonzero(counts).tolist():
            layer = self.table.layers[index]
            if layer.group not in orders:
                orders[layer.group] = distinct_channels(words_by_group[layer.group], layer.in_channels, space)
            channels[index] = orders[layer.group][:, : counts[index]]
        return channels

    def _weighted_groups(self, counts: Bytes, stored: Bytes) -> list[WeightedGroup]:
        """How likely each channel is under fixed counts: by the norms of all members of its group that draw.

        Args:
            counts: Channels drawn, ``[layers]``.
            stored: Channels stored, ``[groups]``.
        """
        found = []
        for group in np.flatnonzero(stored).tolist():
            members = np.flatnonzero((self.ledger.group_of == group) & (counts > 0)).tolist()
            norms = np.sum([self.plan.channel_norms(index) for index in members], axis=0)
            likely = inclusion_probabilities(norms.tolist(), int(stored[group]), self.plan.solver.horizon)
            found.append(WeightedGroup(group, members, likely))
        return found
