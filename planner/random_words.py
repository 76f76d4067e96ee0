"""Random words of a counter-based generator: a pure function of seed, epoch and purpose.

The words are Philox's, read raw: the same in every process and with every version of numpy and torch.
"""

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

Words: TypeAlias = NDArray[np.uint64]
HalfWords: TypeAlias = NDArray[np.uint32]
Channels: TypeAlias = NDArray[np.int64]

_HALF: Final = np.uint64(32)
_LOW_64_BITS: Final = 2**64 - 1


def random_bits(seed: int, epoch: int, stream: int, count: int) -> Words:
    """``count`` raw 64-bit words of a stream that belongs to one seed, epoch and purpose."""
    return np.random.Philox(key=seed, counter=[0, 0, stream, epoch]).random_raw(count)


def permutation(seed: int, epoch: int, stream: int, count: int) -> Channels:
    """A uniform permutation of ``range(count)``."""
    return np.argsort(random_bits(seed, epoch, stream, count), kind="stable").astype(np.int64)


def words_of_runs(seeds: Sequence[int], epoch: int, stream: int, count: int, first: int = 0) -> Words:
    """The same words for many seeds: one generator is set to each, which costs a tenth of making it anew.

    Args:
        seeds: One for each run.
        epoch: The epoch.
        stream: The purpose.
        count: Words for each run.
        first: Words of the stream to leave out, a multiple of 4.

    Returns:
        ``[runs, count]``.
    """
    generator = np.random.Philox(key=0)
    words = np.empty((len(seeds), count), dtype=np.uint64)
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
    whole = words_of_runs(seeds, epoch, stream, -(-count // 2), first // 2)
    return np.ascontiguousarray(whole.astype("<u8", copy=False).view("<u4").T[:count])


def integers_below(words: HalfWords, bounds: NDArray[np.uint64]) -> Channels:
    """Uniform integers from 0 to ``bounds - 1``.

    A bound of 2**12 makes no value likelier than another by more than one part in 2**20.
    """
    return (words * bounds >> _HALF).astype(np.int64)


def unit_interval(words: Words) -> NDArray[np.float64]:
    """Uniform numbers above 0 and below 1, of 53 bits."""
    return ((words >> np.uint64(11)).astype(np.float64) + 0.5) / 2**53


def distinct_channels(words: HalfWords, in_channels: int) -> Channels:
    """The first channels of a uniform permutation in many runs: a draw without repetition, one word for each channel.

    Args:
        words: ``[channels, runs]``.
        in_channels: Channels to draw from.

    Returns:
        ``[channels, runs]``, each column without repetition.

    Source:
        Fisher and Yates' shuffle, stopped after the channels wanted (Durstenfeld 1964).
    """
    count, runs = words.shape
    kind = np.uint16 if in_channels <= 2**16 else np.uint32
    order = np.empty((in_channels, runs), dtype=kind)
    order[:] = np.arange(in_channels, dtype=kind)[:, None]
    flat, columns = order.reshape(-1), np.arange(runs)
    steps = np.arange(count)[:, None]
    places = integers_below(words, (in_channels - steps).astype(np.uint64)) + steps
    places = places * runs + columns
    drawn = np.empty((count, runs), dtype=kind)
    for step in range(count):
        place = places[step]
        drawn[step] = flat[place]
        flat[place] = order[step]
    return drawn.astype(np.int64)
