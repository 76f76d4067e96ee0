"""How likely each channel of a layer is to be drawn, where larger gradient norms are drawn more often. Only numpy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trady.planner.sampling.philox import Channels, words_of_runs

Probabilities: TypeAlias = NDArray[np.float64]

#: Norms below this share of the largest count as this much, so that every channel has some weight.
_LEAST_SHARE: Final = 1e-9
#: Units that a probability of one is cut into: draws are exact in whole numbers.
_UNITS: Final = 1 << 40
#: The first of the random words' streams with one for each input group.
_INCLUSION_STREAMS: Final = 16


def inclusion_probabilities(norms: Sequence[float], count: int, horizon: float) -> Probabilities:
    """Probabilities under which draws of ``count`` channels are expected to reach the most gradient norm.

    They maximise ``sum_c g_c (1 - (1 - p_c)^E)`` over all ``p`` that sum to the count: near-certain for the few
    channels of a layer that hold most of its norm, the same for all where norms are equal. By the conditions of
    optimality ``1 - p_c`` is proportional to ``g_c^(-1 / (E - 1))`` wherever ``p_c`` is above zero.

    Args:
        norms: Gradient norm of each channel.
        count: Channels of a draw, 0 to all.
        horizon: Draws looked ahead, ``E``; 1 or less takes the largest norms for certain.

    Returns:
        One probability for each channel; they sum to ``count``.
    """
    sizes, order = _sorted(norms)
    found = np.zeros(len(sizes))
    found[order] = _sorted_probabilities(sizes, count, horizon)
    return found


def expected_norms(norms: Sequence[float], counts: Sequence[int], horizon: float) -> Probabilities:
    """Gradient norm that ``horizon`` draws of so many channels are expected to reach, for each of the counts."""
    sizes, _ = _sorted(norms)
    reach = [1.0 - (1.0 - _sorted_probabilities(sizes, count, horizon)) ** max(horizon, 1.0) for count in counts]
    return np.array([float(sizes @ reached) for reached in reach])


def _sorted(norms: Sequence[float]) -> tuple[Probabilities, NDArray[np.int64]]:
    """Norms from the largest on, none zero unless all are, and where each stands."""
    found = np.asarray(norms, dtype=np.float64)
    largest = found.max(initial=0.0)
    floored = np.maximum(found, _LEAST_SHARE * largest) if largest else np.ones_like(found)
    order = np.argsort(-floored, kind="stable")
    return floored[order], order


def _sorted_probabilities(sizes: Probabilities, count: int, horizon: float) -> Probabilities:
    """For falling norms: the largest ``k`` share the draw, ``k`` being the most that all get a probability."""
    found = np.zeros(len(sizes))
    if count == 0 or horizon <= 1.0 or count == len(sizes):
        found[:count] = 1.0
        return found
    shapes = (sizes / sizes[0]) ** (-1.0 / (horizon - 1.0))
    sharing = np.arange(1, len(sizes) + 1)
    levels = (sharing - count) / np.cumsum(shapes)
    number = int(np.flatnonzero((levels * shapes <= 1.0) & (sharing >= count))[-1]) + 1
    found[:number] = 1.0 - levels[number - 1] * shapes[:number]
    return found.clip(0.0, 1.0)


def systematic_draws(
    probabilities: Probabilities, orders: NDArray[np.int64], starts: NDArray[np.uint64]
) -> NDArray[np.int64]:
    """Draws in which each channel has just the probability asked for, and all are of one size.

    The channels are laid on a line in random order, each as long as it is likely; from a random start on, every unit
    takes the channel that lies there. None is longer than a unit, so none is taken twice.

    Args:
        probabilities: Of each channel; they sum to a whole number ``n``.
        orders: A random permutation of the channels for each draw, ``[draws, channels]``.
        starts: A random word for each draw, ``[draws]``.

    Returns:
        ``[draws, n]`` channels, in the order they lie in.

    Source:
        Systematic sampling with unequal probabilities: Madow, Annals of Mathematical Statistics 20 (1949).
    """
    lengths = _whole_lengths(probabilities)
    ends = np.cumsum(lengths[orders], axis=1)
    count = round(float(probabilities.sum()))
    first = (starts >> np.uint64(24)).astype(np.int64)  # 40 random bits: a place in the first unit
    places = first[:, None] + _UNITS * np.arange(count)
    at = np.stack([np.searchsorted(row, wanted, side="right") for row, wanted in zip(ends, places, strict=True)])
    found: NDArray[np.int64] = np.take_along_axis(orders, at, axis=1)
    return found


@dataclass(frozen=True)
class WeightedGroup:
    """An input group whose channels are drawn by their norms.

    Args:
        group: Its number.
        members: Indices of the layers that draw from it.
        likely: Probability of each channel.
    """

    group: int
    members: Sequence[int]
    likely: Probabilities

    def draw(self, epoch: int, seeds: Sequence[int]) -> Channels:
        """Channels of one epoch, ``[runs, channels stored]``.

        Each draw lies in random order, so that a member that takes fewer takes any of them alike.
        """
        words = words_of_runs(seeds, epoch, _INCLUSION_STREAMS + self.group, len(self.likely) + 1)
        return systematic_draws(self.likely, np.argsort(words[:, 1:], axis=1, kind="stable"), words[:, 0])


def _whole_lengths(probabilities: Probabilities) -> NDArray[np.int64]:
    """Probabilities in whole units that sum to whole numbers of ones, none above one."""
    lengths = np.rint(probabilities * _UNITS).astype(np.int64)
    wanted = round(float(probabilities.sum())) * _UNITS
    for index in np.argsort(-probabilities, kind="stable"):
        missing = wanted - int(lengths.sum())
        if not missing:
            break
        lengths[index] += max(-lengths[index], min(missing, _UNITS - lengths[index]))
    return lengths


def curve_counts(norms: Sequence[float], horizon: float, pieces: int) -> list[int]:
    """Counts between which a layer's curve of expected norm is nearly straight, from 0 to all channels.

    A chord errs by its length squared times the curvature, so equal shares of the curvature's root err alike.

    Returns:
        Counts to weigh, ascending.
    """
    in_channels = len(norms)
    if in_channels <= 2 * pieces:
        return list(range(in_channels + 1))
    tried = np.unique(np.rint(np.geomspace(1, in_channels, 8 * pieces)).astype(np.int64))
    tried = np.concatenate([[0], tried])
    slopes = np.diff(expected_norms(norms, tried.tolist(), horizon)) / np.diff(tried)
    turns = np.sqrt(np.maximum(-np.diff(slopes), 0.0) * (tried[2:] - tried[:-2]))
    turned = np.concatenate([[0.0, 0.0], np.cumsum(turns)])
    share = turned / turned[-1] if turned[-1] else np.linspace(0, 1, len(tried))
    wanted = np.linspace(0, 1, pieces + 1)
    chosen = {int(tried[np.searchsorted(share, level)]) for level in wanted}
    return sorted(chosen | {0, 1, in_channels})
