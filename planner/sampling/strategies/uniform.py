"""The budget filled anew with random channels: the papers' own rule.

Held by ``tests/planner/sampling/test_draw_contract.py``.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np

from trady.planner.ledger import Bytes
from trady.planner.sampling.draws import ChannelDraws
from trady.planner.sampling.greedy_fill import RandomFilling, enough_asked
from trady.planner.sampling.philox import Channels, FillWords
from trady.planner.sampling.strategies.contract import DrawRule, Norms, blocks

#: Streams of random words of one seed: the first rounds, later rounds, shuffles.
_FILL_STREAMS: Final = (1, 3, 4)
#: Runs times epochs that are filled at a time, and the channels they may ask for together.
_ROWS_AT_ONCE: Final = 500
_ASKED_AT_ONCE: Final = 2**20


class Uniform(DrawRule):
    """Channels of the eligible layers, taken uniformly at random while they fit.

    Source:
        TraDy, arXiv 2510.19675.
    """

    is_uniform = True

    def draws(
        self, epochs: Sequence[int], seeds: Sequence[int], observed: Mapping[int, Norms] | None = None
    ) -> Iterator[ChannelDraws]:
        """Several epochs at a time."""
        asked = self._channels_to_ask_for()
        for block in blocks(epochs, min(_ROWS_AT_ONCE, _ASKED_AT_ONCE // asked) // len(seeds)):
            words = FillWords(seeds, block, asked, _FILL_STREAMS)
            counts, channels = self._filled(words, len(block) * len(seeds))
            stored = self.ledger.most_of_groups(counts)
            for place, epoch in enumerate(block):
                own = slice(place * len(seeds), (place + 1) * len(seeds))
                most = counts[own].max(axis=0)
                of_epoch = {index: drawn[own, : most[index]] for index, drawn in channels.items() if most[index]}
                yield ChannelDraws(epoch, counts[own], of_epoch, stored[own], stored[own])

    def _channels_to_ask_for(self) -> int:
        """About as many random channels as fill a budget."""
        settings = self.plan.settings
        counts = np.zeros((2, len(self.sizes)), dtype=np.int64)
        counts[1, self.eligible] = self.sizes[self.eligible]
        least, most = self.ledger.scope_bytes(counts, settings.scope).tolist()
        return enough_asked(int(counts[1].sum()), (settings.budget_bytes - least) / max(1, most - least))

    def _filled(self, words: FillWords, rows: int) -> tuple[Bytes, dict[int, Channels]]:
        """Take channels of the eligible layers uniformly at random while they fit: draws are nested.

        Args:
            words: Random words.
            rows: Runs in some epochs.
        """
        filling = RandomFilling(self.full_budget(rows, nested=True), self.eligible, self.sizes[self.eligible], words)
        filling.fill()
        return filling.budget.counts, filling.nested_by_layer(self.ledger.group_of)
