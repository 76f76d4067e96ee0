"""The generator's words are pinned, and what is made of them is uniform."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from trady.planner.sampling.philox import (
    Scratch,
    distinct_channels,
    fixed_words,
    half_words_of_runs,
    integers_below,
    random_bits,
    unit_interval,
    words_of_runs,
)

PINNED = [17613708302182729410, 13854197808205358126, 16688553035297794687, 9011930311403241647]


def test_words_are_the_same_on_every_machine() -> None:
    """Of Philox 4x64-10 with this key and counter; another generator or library must give them too."""
    assert random_bits(5, 2, 1, 4).tolist() == PINNED
    halves = half_words_of_runs([5], 2, 1, 3)
    assert halves.T.tolist() == [[PINNED[0] & 0xFFFFFFFF, PINNED[0] >> 32, PINNED[1] & 0xFFFFFFFF]]


@given(
    st.lists(st.integers(0, 2**100), min_size=1, max_size=5), st.integers(0, 99), st.integers(0, 9), st.integers(0, 5)
)
def test_many_seeds_have_the_words_of_each(seeds: list[int], epoch: int, stream: int, quarters: int) -> None:
    found = words_of_runs(seeds, epoch, stream, 7, first=4 * quarters)
    for seed, words in zip(seeds, found, strict=True):
        assert words.tolist() == random_bits(seed, epoch, stream, 4 * quarters + 7)[4 * quarters :].tolist()


@given(st.integers(1, 40), st.integers(0, 9), st.integers(1, 5))
def test_epochs_read_together_have_the_words_of_each(count: int, first: int, epochs: int) -> None:
    seeds, space = [3, 4], Scratch()
    together = fixed_words(seeds, 0, count, first, epochs, space).copy()
    for place in range(epochs):
        assert together[:, [place]].tolist() == fixed_words(seeds, 0, count, first + place, 1, space).tolist()


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 4))
def test_drawn_channels_are_distinct(in_channels: int, count: int, runs: int) -> None:
    wanted = min(count, in_channels)
    found = distinct_channels(half_words_of_runs(range(runs), 0, 0, wanted), in_channels)
    assert found.shape == (runs, wanted)
    assert all(len(set(row)) == wanted and max(row) < in_channels for row in found.tolist())


def test_every_order_is_equally_likely() -> None:
    runs = 24_000
    found = distinct_channels(half_words_of_runs(range(runs), 0, 0, 3), 4)
    counted = Counter(map(tuple, found.tolist()))
    orders = list(itertools.permutations(range(4), 3))
    assert set(counted) == set(orders)
    assert stats.chisquare([counted[order] for order in orders]).pvalue > 1e-4


@pytest.mark.parametrize("in_channels", [2**16 - 1, 2**16, 70_000])
def test_wide_layers_have_room_for_their_channels(in_channels: int) -> None:
    found = distinct_channels(np.full((2, 1), 2**32 - 1, dtype=np.uint32), in_channels)
    assert found[0, 0] == in_channels - 1
    assert np.iinfo(found.dtype).max >= in_channels


def test_integers_stay_below_their_bound() -> None:
    words = np.array([0, 2**31, 2**32 - 1], dtype=np.uint32)
    assert integers_below(words, np.full(3, 10, dtype=np.uint64)).tolist() == [0, 5, 9]
    ends = unit_interval(np.array([0, 2**64 - 1], dtype=np.uint64))
    assert 0 < ends[0] < ends[1] < 1
