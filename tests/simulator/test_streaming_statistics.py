"""Chunk after chunk against numpy on everything at once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trady.simulator.streaming_statistics import Gathered, band


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(1, 40), st.integers(0, 2**32))
def test_chunks_amount_to_the_whole(sizes: list[int], most_kept: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    whole = rng.normal(5, 2, (sum(sizes), 4))
    gathered, first = Gathered(most_kept), 0
    for size in sizes:
        gathered.add({"x": whole[first : first + size]})
        first += size
    assert gathered.trials == sum(sizes)
    assert gathered.mean("x") == pytest.approx(whole.mean(axis=0))
    spread = whole.std(axis=0, ddof=1) if len(whole) > 1 else np.zeros(4)
    assert gathered.standard_error("x") == pytest.approx(spread / np.sqrt(len(whole)), abs=1e-9)
    assert gathered.highest("x") == whole.max()
    assert gathered.samples("x") == pytest.approx(whole[:most_kept].astype(np.float32))


def test_bands_leave_out_what_has_no_value() -> None:
    low, high = band(np.array([[1.0, np.nan], [2.0, np.nan], [np.nan, np.nan]]))
    assert (low[0], high[0]) == pytest.approx(np.quantile([1.0, 2.0], [0.05, 0.95]))
    assert np.isnan([low[1], high[1]]).all()
