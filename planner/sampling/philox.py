"""Random words of a counter-based generator: a pure function of seed, epoch and purpose.

The words are Philox's, read raw: the same in every process and with every version of numpy and torch.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

Words: TypeAlias = NDArray[np.uint64]
HalfWords: TypeAlias = NDArray[np.uint32]
Channels: TypeAlias = NDArray[np.int64]

#: Numbers worked on at a time: their intermediate results stay in the caches and in memory that is used again.
SMALL_BLOCK: Final = 32768

#: Words of 32 bits that one step of the generator's counter gives.
_WORDS_OF_A_COUNTER: Final = 8
#: Channels asked for in a round after the first; every third round asks for twice as many, up to so many.
_FEW_ASKED, _MOST_ASKED = 16, 4096
#: Rounds whose words are read for many epochs at once.
_STRETCHED: Final = 3
_HALF: Final = np.uint64(32)
_LOW_64_BITS: Final = 2**64 - 1


def random_bits(seed: int, epoch: int, stream: int, count: int) -> Words:
    """``count`` raw 64-bit words of a stream that belongs to one seed, epoch and purpose."""
    return np.random.Philox(key=seed, counter=[0, 0, stream, epoch]).random_raw(count)


def permutation(seed: int, epoch: int, stream: int, count: int) -> Channels:
    """A uniform permutation of ``range(count)``."""
    return np.argsort(random_bits(seed, epoch, stream, count), kind="stable").astype(np.int64)


class Scratch:
    """Memory that draws of the same size use again and again: fresh pages cost more than what is computed in them."""

    def __init__(self) -> None:
        self._arrays: dict[tuple[str, tuple[int, ...], np.dtype[Any]], NDArray[Any]] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """An array of that purpose and size, with anything in it."""
        key = name, shape, np.dtype(dtype)
        if key not in self._arrays:
            self._arrays[key] = np.empty(shape, dtype=dtype)
        return self._arrays[key]


def words_of_runs(
    seeds: Sequence[int], epoch: int, stream: int, count: int, first: int = 0, space: Scratch | None = None
) -> Words:
    """The same words for many seeds: one generator is set to each, which costs a tenth of making it anew.

    Args:
        seeds: One for each run.
        epoch: The epoch.
        stream: The purpose.
        count: Words for each run.
        first: Words of the stream to leave out, a multiple of 4.
        space: Memory to use again, the result's included.

    Returns:
        ``[runs, count]``.
    """
    generator = np.random.Philox(key=0)
    words = (space or Scratch()).array("words", (len(seeds), count), np.uint64)
    counter = np.array([first // 4, 0, stream, epoch], dtype=np.uint64)
    key = np.zeros(2, dtype=np.uint64)
    state: Any = {**generator.state, "state": {"counter": counter, "key": key}}
    for run, seed in enumerate(seeds):
        key[:] = seed & _LOW_64_BITS, seed >> 64
        generator.state = state
        words[run] = generator.random_raw(count)
    return words


def half_words_of_runs(seeds: Sequence[int], epoch: int, stream: int, count: int, first: int = 0) -> HalfWords:
    """Words of 32 bits, the lower half of each longer one first.

    Args:
        seeds: One for each run.
        epoch: The epoch.
        stream: The purpose.
        count: Words for each run.
        first: Words of the stream to leave out, a multiple of 8.

    Returns:
        ``[count, runs]``.
    """
    return np.ascontiguousarray(_halves(words_of_runs(seeds, epoch, stream, -(-count // 2), first // 2)).T[:count])


def fixed_words(
    seeds: Sequence[int], stream: int, count: int, first_epoch: int, epochs: int, space: Scratch
) -> HalfWords:
    """Words of consecutive epochs that each take the same number: one stretch of a stream without epochs.

    Args:
        seeds: One for each run.
        stream: The purpose.
        count: Words of an epoch; a multiple of 8 is set aside for it.
        first_epoch: The first epoch.
        epochs: How many.
        space: Memory to use again, the result's included.

    Returns:
        ``[runs, epochs, count]``.
    """
    stride = -(-count // _WORDS_OF_A_COUNTER) * _WORDS_OF_A_COUNTER
    whole = words_of_runs(seeds, 0, stream, epochs * stride // 2, first_epoch * stride // 2, space)
    return _halves(whole).reshape(len(seeds), epochs, stride)[:, :, :count]


class FillWords:
    """Words to fill budgets with, for many runs in consecutive epochs: rows are runs, epoch after epoch.

    The first rounds of an epoch take one stretch of a run's stream; what few runs need beyond comes from others.

    Args:
        seeds: One for each run.
        epochs: The epochs.
        first_asked: Words of the first round, whatever the number of rounds.
        streams: The purposes: the stretches, later rounds, shuffles.
    """

    def __init__(self, seeds: Sequence[int], epochs: Sequence[int], first_asked: int, streams: Sequence[int]) -> None:
        self._seeds, self._epochs, self._streams = seeds, epochs, streams
        self._ends = list(accumulate(first_asked if not turn else _asked_at(turn) for turn in range(_STRETCHED)))
        words = fixed_words(seeds, streams[0], self._ends[-1], epochs[0], len(epochs), Scratch())
        self._stretch = words.transpose(1, 0, 2).reshape(len(epochs) * len(seeds), -1)

    def asked(self, rows: Channels, turn: int) -> HalfWords:
        """Words of some rows for a round, ``[rows, words]``."""
        if turn < _STRETCHED:
            return self._stretch[rows, self._ends[turn - 1] if turn else 0 : self._ends[turn]]
        first, number = sum(map(_asked_at, range(_STRETCHED, turn))), _asked_at(turn)
        return _halves(self._own_words(rows, self._streams[1], number // 2, first // 2))

    def keys(self, rows: Channels, turn: int, number: int) -> Words:
        """Words of some rows to sort by, ``[rows, words]``."""
        return self._own_words(rows, self._streams[2], number, turn * (-(-number // 4) * 4))

    def _own_words(self, rows: Channels, stream: int, number: int, first: int) -> Words:
        words = np.empty((len(rows), number), dtype=np.uint64)
        for place, epoch in enumerate(self._epochs):
            own = np.flatnonzero(rows // len(self._seeds) == place)
            seeds = [self._seeds[row] for row in (rows[own] % len(self._seeds)).tolist()]
            words[own] = words_of_runs(seeds, epoch, stream, number, first)
        return words


def _asked_at(turn: int) -> int:
    """Words of a round after the first."""
    return min(_FEW_ASKED << turn // 3, _MOST_ASKED)


def _halves(words: Words) -> HalfWords:
    return words.astype("<u8", copy=False).view("<u4")


def integers_below(words: HalfWords, bounds: NDArray[np.uint64]) -> Channels:
    """Uniform integers from 0 to ``bounds - 1``.

    A bound of 2**12 makes no value likelier than another by more than one part in 2**20.
    """
    return (words * bounds >> _HALF).astype(np.int64)


def unit_interval(words: Words) -> NDArray[np.float64]:
    """Uniform numbers above 0 and below 1, of 52 bits: with one more the largest would round to 1."""
    return ((words >> np.uint64(12)).astype(np.float64) + 0.5) / 2**52


def distinct_channels(words: HalfWords, in_channels: int, space: Scratch | None = None) -> Channels:
    """The first channels of a uniform permutation in many runs: a draw without repetition, one word for each channel.

    Args:
        words: ``[channels, runs]``.
        in_channels: Channels to draw from.
        space: Memory to use again, the result's not included.

    Returns:
        ``[runs, channels]`` of a small unsigned type that also holds ``in_channels``; each row without repetition.

    Source:
        Fisher and Yates' shuffle, stopped after the channels wanted (Durstenfeld 1964).
    """
    count, runs = words.shape
    kind = np.uint16 if in_channels < 2**16 else np.uint32
    order = (space or Scratch()).array("order", (in_channels, runs), kind)
    order[:] = np.arange(in_channels, dtype=kind)[:, None]
    flat, columns = order.reshape(-1), np.arange(runs)
    drawn = np.empty((count, runs), dtype=kind)
    at_once = max(1, SMALL_BLOCK // runs)
    for first in range(0, count, at_once):
        steps = np.arange(first, min(first + at_once, count))[:, None]
        places = integers_below(words[first : first + at_once], (in_channels - steps).astype(np.uint64))
        places = (places + steps) * runs + columns
        for step, place in zip(range(first, count), places, strict=False):
            flat.take(place, out=drawn[step], mode="clip")
            flat[place] = order[step]
    return np.ascontiguousarray(drawn.T)
