"""Filling a budget channel by channel, in many runs at once.

A layer whose next channel does not fit is closed: for the epoch where prices are fixed, else until another layer's
opening may have made it cheaper.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trady.planner.sampling.budget_state import Flags, Purses
from trady.planner.sampling.philox import Channels, HalfWords, integers_below

#: Channels asked for between two looks at what still fits.
_ROUND: Final = 32
_MOST_ASKED: Final = 256


@dataclass(frozen=True)
class Pool:
    """The channels of the layers that may be drawn from, one after the other.

    Args:
        layers: Layer of each channel, ascending.
        channels: Its number in the layer.
    """

    layers: Channels
    channels: Channels

    @classmethod
    def of(cls, layers: Channels, sizes: Channels) -> "Pool":
        """All channels of some layers with so many each."""
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return cls(np.repeat(layers, sizes), within)


class _Doors:
    """Which layers are open in each run: a layer is closed when its next channel does not fit.

    Args:
        purses: What is spent.
    """

    def __init__(self, purses: Purses) -> None:
        self._purses = purses
        self.is_open = np.ones(purses.counts.shape, dtype=bool)
        self._opened = np.zeros(len(purses.counts), dtype=np.int64)

    def look(self, runs: Channels) -> Flags:
        """Close what can no longer fit; open again where another layer's first channel may have made it cheaper.

        Returns:
            Layers that may still fit, now or after such an opening, ``[runs asked for, layers]``.
        """
        fit: Flags = self._purses.least_prices(runs) <= self._purses.left[runs, None]
        fixed = self._purses.prices_are_fixed
        if not fixed:
            before, self._opened = self._opened, np.count_nonzero(self._purses.counts, axis=1)
            self.is_open[self._opened > before] = True
        self.is_open[runs] &= fit
        return self.is_open[runs] if fixed else fit


def fill_uniformly(
    purses: Purses, layers: Channels, sizes: Channels, words: Callable[[Channels, int, int], HalfWords]
) -> None:
    """Take channels uniformly at random from those that are left in layers that are open, until none fits.

    A channel is asked for with the weights of the last look, once a round; one that was taken or closed since is
    asked for again, which leaves the others equally likely.

    Args:
        purses: Nested purses, full; filled in place.
        layers: Layers to draw from.
        sizes: Channels of each.
        words: Random words ``[words, runs]`` for some runs, from the first and as many as asked for.
    """
    runs, step, doors = np.arange(len(purses.counts)), 0, _Doors(purses)
    while True:
        doors.look(runs)
        weights = (sizes - purses.counts[runs][:, layers]) * doors.is_open[runs][:, layers]
        keep = weights.any(axis=1)
        runs, weights = runs[keep], weights[keep]
        if not len(runs):
            return
        _fill_round(purses, layers, runs, doors, weights, words(runs, step, _ROUND))
        step += _ROUND


def _fill_round(
    purses: Purses, layers: Channels, runs: Channels, doors: _Doors, weights: Channels, words: HalfWords
) -> None:
    ends = np.cumsum(weights, axis=1)
    starts, totals = ends - weights, ends[:, -1].astype(np.uint64)
    taken = np.zeros_like(weights)
    rows = np.arange(len(runs))
    for word in words:
        places = integers_below(word, totals)
        at = (ends <= places[:, None]).sum(axis=1)
        asked = np.flatnonzero((places - starts[rows, at] >= taken[rows, at]) & doors.is_open[runs, layers[at]])
        if not len(asked):
            continue
        layer = at[asked]
        fits = purses.take(runs[asked], layers[layer])
        taken[asked[fits], layer[fits]] += 1
        doors.is_open[runs[asked[~fits]], layers[layer[~fits]]] = False


def fill_in_order(purses: Purses, pool: Pool, order: Channels) -> Flags:
    """Take channels in a given order while they fit.

    Args:
        purses: Purses that are not nested, full; filled in place.
        pool: The channels.
        order: Places in the pool in the order to take them, ``[runs, channels]``.

    Returns:
        Whether each channel of the pool was taken, ``[runs, channels]``.
    """
    taken = np.zeros(order.shape, dtype=bool)
    runs, asked, doors = np.arange(len(order)), _ROUND, _Doors(purses)
    while order.size:
        for places in order[:, :asked].T:
            layers = pool.layers[places]
            wanted = np.flatnonzero((places >= 0) & doors.is_open[runs, layers])
            if not len(wanted):
                continue
            place, layer, run = places[wanted], layers[wanted], runs[wanted]
            fits = purses.take(run, layer, pool.channels[place])
            taken[run[fits], place[fits]] = True
            doors.is_open[run[~fits], layer[~fits]] = False
        order, runs = _left_of(order[:, asked:], runs, doors.look(runs), pool)
        asked = min(2 * asked, _MOST_ASKED)
    return taken


def _left_of(order: Channels, runs: Channels, may_fit: Flags, pool: Pool) -> tuple[Channels, Channels]:
    """The rest of the order, moved together; ``-1`` behind the end; runs that have none go.

    Args:
        order: Places in the pool, ``[runs, places]``.
        runs: Which runs.
        may_fit: Layers whose channels may still fit, ``[runs, layers]``.
        pool: The channels.
    """
    keep = (order >= 0) & np.take_along_axis(may_fit, pool.layers[order], axis=1)
    rest, is_left = moved_together(order, keep)
    going_on = is_left.any(axis=1)
    return np.where(is_left, rest, -1)[going_on], runs[going_on]


def moved_together(values: Channels, keep: NDArray[np.bool_]) -> tuple[Channels, Flags]:
    """What is kept of each row, in its order, from the left; and which places of the result hold something."""
    lengths = keep.sum(axis=1)
    is_held = np.arange(lengths.max(initial=0)) < lengths[:, None]
    packed = np.zeros(is_held.shape, dtype=values.dtype)
    packed[is_held] = values[keep]
    return packed, is_held
