"""Filling a budget with channels in a given or a random order, in many runs at once.

As many of the next channels as fit together are taken at once. The layer of the first that does not fit is closed:
for the epoch where prices are fixed, else until another layer's opening may have made it cheaper.

Held by ``tests/planner/sampling/test_schedule.py``.
"""

import math
from dataclasses import dataclass
from itertools import count
from typing import Final

import numpy as np

from trady.planner.sampling.budget_state import BudgetState, Flags, is_first
from trady.planner.sampling.philox import Channels, FillWords, integers_below

#: Channels of an order that are looked at together: all that follow are looked through after each such block.
_BLOCK: Final = 512
#: Largest share of all channels that the first round asks for, and how many more than needed: cheap ones fit longer.
_MOST_OF_POOL, _SPARE = 0.6, 16
#: Layers that are weighed together.
_WEIGHED_AT_ONCE: Final = 1024
#: Of so many channels none is asked for: they are shuffled.
_FEW_CHANNELS: Final = 64


@dataclass(frozen=True)
class Pool:
    """The channels of the layers that may be drawn from, one after the other.

    Args:
        layers: Layer of each channel, ascending; -1 stands last, where a place of -1 points.
        channels: Its number in the layer.
    """

    layers: Channels
    channels: Channels

    @classmethod
    def of(cls, layers: Channels, sizes: Channels) -> "Pool":
        """All channels of some layers with so many each."""
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return cls(np.append(np.repeat(layers, sizes), -1), np.append(within, -1))

    def __len__(self) -> int:
        return len(self.layers) - 1


class Filling:
    """Channels taken from a pool in each of many runs.

    Args:
        budget: Full; filled in place.
        pool: The channels.

    Attributes:
        is_open: Layers whose next channel was not found not to fit, ``[runs, layers + 1]``; the last one, where -1
            points, never is.
    """

    def __init__(self, budget: BudgetState, pool: Pool) -> None:
        self.budget, self.pool = budget, pool
        runs, layers = budget.counts.shape
        self._may_open = np.append(np.isin(np.arange(layers), pool.layers), False)
        self.is_open = np.repeat(self._may_open[None, :], runs, axis=0)
        self._parts: list[tuple[Channels, Channels]] = []

    def walk(self, runs: Channels, order: Channels) -> None:
        """Take channels in an order while they fit.

        Args:
            runs: Which runs.
            order: Places in the pool, ``[runs, places]``, none twice; -1 stands for none.
        """
        while order.size:
            self._walk_block(runs, order[:, :_BLOCK])
            order, runs = self._left_of(order[:, _BLOCK:], runs)

    def _walk_block(self, runs: Channels, block: Channels) -> None:
        fixed = self.budget.prices_are_fixed
        while block.size:
            wanted = self.pool.layers.take(block)
            if not fixed:
                wanted = np.where(self.is_open[runs[:, None], wanted], wanted, -1)
                block = np.where(wanted < 0, -1, block)
                opened = np.count_nonzero(self.budget.counts[runs], axis=1)
            taken = self.budget.take(runs, wanted, None if self.budget.nested else self.pool.channels.take(block))
            self._note(runs, block, taken)
            if not fixed:
                has_opened = np.count_nonzero(self.budget.counts[runs], axis=1) > opened
                self.is_open[runs[has_opened]] = self._may_open
            refused = wanted[np.arange(len(runs)), np.minimum(taken, wanted.shape[1] - 1)]
            refused[taken == wanted.shape[1]] = -1
            self.is_open[runs, refused] = False
            if not fixed:
                self._close(runs[refused >= 0])
            first = int(taken.min())
            rest = np.where(np.arange(first, block.shape[1]) > taken[:, None], block[:, first:], -1)
            block, runs = self._left_of(rest, runs)

    def _close(self, runs: Channels) -> None:
        """Close all layers whose next channel does not fit: not one after the other as they are asked for."""
        rows, layers = np.nonzero(self.is_open[runs])
        for first in range(0, len(rows), _WEIGHED_AT_ONCE):
            run, layer = runs[rows[first : first + _WEIGHED_AT_ONCE]], layers[first : first + _WEIGHED_AT_ONCE]
            self.is_open[run, layer] = self.budget.may_take(run, layer)

    def _note(self, runs: Channels, places: Channels, taken: Channels) -> None:
        """Keep what was taken, in its order."""
        most = int(taken.max())
        held = np.where(np.arange(most) < taken[:, None], places[:, :most], -1)
        self._parts.append((runs, held))

    def _left_of(self, order: Channels, runs: Channels) -> tuple[Channels, Channels]:
        """The rest of an order without layers that are closed for good, moved together; runs that have none go."""
        fits: Flags = self.budget.least_prices(runs) <= self.budget.left[runs, None]
        self.is_open[runs, :-1] &= fits
        may_fit = self.is_open[runs] if self.budget.prices_are_fixed else np.pad(fits, ((0, 0), (0, 1)))
        rows = np.arange(len(runs))[:, None]
        rest = moved_together(order, may_fit[rows, self.pool.layers.take(order)])
        going_on = (rest >= 0).any(axis=1)
        return rest[going_on], runs[going_on]

    def in_order_taken(self) -> Channels:
        """Places of the channels taken, in their order, ``[runs, places]``; -1 between and behind them."""
        width = sum(held.shape[1] for _, held in self._parts)
        places = np.full((len(self.is_open), width), -1, dtype=np.int64)
        first = 0
        for runs, held in self._parts:
            places[runs, first : first + held.shape[1]] = held
            first += held.shape[1]
        return places

    def by_layer(self, *, in_order: bool) -> dict[int, Channels]:
        """Channels taken, ``[runs, most taken]`` by index of the layer, filled up with its number of channels.

        Args:
            in_order: Whether in the order they were taken in, else in ascending order.
        """
        places, counts = self.in_order_taken(), self.budget.counts
        # One number to sort by: layer, then when it was taken, then the channel; nothing comes last.
        keys = np.append((self.pool.layers << 48 | self.pool.channels)[:-1], 2**62).take(places)
        if in_order:
            keys |= np.arange(places.shape[1]) << 24
        keys.sort(axis=1)
        most, sizes = counts.max(axis=0), np.bincount(self.pool.layers[:-1], minlength=counts.shape[1])
        table = np.empty((len(counts), int(most.sum())), dtype=np.uint16 if sizes.max() < 2**16 else np.uint32)
        table[:] = np.repeat(sizes, most)
        starts = np.cumsum(most) - most
        within = np.arange(table.shape[1]) - np.repeat(starts, most)
        # A run's keys stand in the table's order already: by layer.
        table[within < np.repeat(counts, most, axis=1)] = keys[keys < 2**62] & 0xFFFFFF
        return {index: table[:, starts[index] : starts[index] + most[index]] for index in np.flatnonzero(most).tolist()}


class RandomFilling(Filling):
    """Channels taken uniformly at random from those that are left in layers that are open.

    Channels are asked for among all of the open layers': one that was taken before, or asked for twice, is passed
    over, which leaves the others equally likely. Where few are left, they are shuffled.

    Args:
        budget: Nested and full; filled in place.
        layers: Layers to draw from, ascending.
        sizes: Channels of each.
        words: Random words.
    """

    def __init__(self, budget: BudgetState, layers: Channels, sizes: Channels, words: FillWords) -> None:
        super().__init__(budget, Pool.of(layers, sizes))
        self._layers, self._sizes, self._words = layers, sizes, words
        self._starts = np.cumsum(sizes) - sizes

    def fill(self) -> None:
        """Take channels until none fits."""
        runs = np.arange(len(self.is_open))
        for turn in count():
            layers = runs[:, None], self._layers
            sizes = self._sizes * self.is_open[layers]
            totals, taken = sizes.sum(axis=1), np.where(sizes > 0, self.budget.counts[layers], 0).sum(axis=1)
            is_few = (totals <= _FEW_CHANNELS) | (totals <= 2 * taken)
            many, few = ~is_few, is_few & (totals > taken)
            if many.any():
                self.walk(runs[many], self._asked(runs[many], sizes[many], turn))
            if few.any():
                self.walk(runs[few], self._shuffled(runs[few], turn))
            runs = runs[totals > taken]
            if not len(runs):
                return

    def nested_by_layer(self, group_of: Channels) -> dict[int, Channels]:
        """The same as :meth:`by_layer`: members of an input group draw the first channels of the longest draw.

        Args:
            group_of: Input group of each layer.
        """
        channels, counts = self.by_layer(in_order=True), self.budget.counts
        members: dict[int, list[int]] = {}
        for index in channels:
            members.setdefault(int(group_of[index]), []).append(index)
        for shared in (indices for indices in members.values() if len(indices) > 1):
            most = max(channels[index].shape[1] for index in shared)
            padded = [np.pad(channels[index], ((0, 0), (0, most - channels[index].shape[1]))) for index in shared]
            longest = np.array(padded)[counts[:, shared].argmax(axis=1), np.arange(len(counts))]
            for index in shared:
                own = channels[index]
                is_drawn = np.arange(own.shape[1]) < counts[:, index, None]
                channels[index] = np.where(is_drawn, longest[:, : own.shape[1]], own)
        return channels

    def _asked(self, runs: Channels, sizes: Channels, turn: int) -> Channels:
        """Random channels of open layers, ``[runs, asked]``, none twice; -1 where one was.

        Args:
            runs: Which runs.
            sizes: Channels of the layers that are open, else 0, ``[runs, layers]``.
            turn: Which random words.
        """
        ends = np.cumsum(sizes, axis=1)
        places = integers_below(self._words.asked(runs, turn), ends[:, -1:].astype(np.uint64))
        if not sizes.all():  # places are of the open layers' channels; those of closed ones lie between
            at = np.count_nonzero(places[:, :, None] >= ends[:, None, :], axis=2)
            places += np.take_along_axis(self._starts - ends + sizes, at, axis=1)
        before = self.in_order_taken()[runs] if turn else places[:, :0]
        is_fresh = is_first(np.concatenate([before, places], axis=1), len(self.pool) + 1)[:, before.shape[1] :]
        return np.where(is_fresh, places, -1)

    def _shuffled(self, runs: Channels, turn: int) -> Channels:
        """All channels of open layers that are left, in random order, -1 behind the last."""
        is_left = self.is_open[runs[:, None], self.pool.layers]
        np.put_along_axis(is_left, self.in_order_taken()[runs], False, axis=1)
        order = np.argsort(self._words.keys(runs, turn, len(self.pool)), axis=1, kind="stable")
        return moved_together(order, np.take_along_axis(is_left, order, axis=1))


def enough_asked(number: int, share: float) -> int:
    """How many channels to ask for at random so that about a share of all were asked for once; a multiple of 8."""
    asked = -number * math.log1p(-min(max(share, 0.0), _MOST_OF_POOL))
    return -(-math.ceil(1.05 * asked + 2 * math.sqrt(asked)) // 8) * 8 + _SPARE


def moved_together(values: Channels, keep: Flags) -> Channels:
    """What is kept of each row, in its order, from the left; -1 behind."""
    lengths = np.count_nonzero(keep, axis=1)
    packed: Channels = np.full((len(values), lengths.max(initial=0)), -1, dtype=np.int64)
    packed[np.arange(packed.shape[1]) < lengths[:, None]] = values[keep]
    return packed
