"""Inclusion probabilities against an optimiser, and draws against the probabilities."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from trady.planner.sampling.coverage import coverage_value
from trady.planner.sampling.inclusion_probabilities import (
    curve_counts,
    expected_norms,
    inclusion_probabilities,
    systematic_draws,
)
from trady.planner.solver.value_curves import weighted_segments

NORMS = st.lists(st.floats(0.01, 100), min_size=1, max_size=12)
HORIZONS = st.sampled_from([1.0, 2.0, 4.0, 16.0])


@settings(max_examples=200, deadline=None)
@given(NORMS, HORIZONS, st.data())
def test_probabilities_sum_to_the_count_and_follow_the_norms(
    norms: list[float], horizon: float, data: st.DataObject
) -> None:
    count = data.draw(st.integers(0, len(norms)))
    found = inclusion_probabilities(norms, count, horizon)
    assert found.sum() == pytest.approx(count)
    assert found.min(initial=0) >= 0 and found.max(initial=0) <= 1
    order = np.argsort(norms, kind="stable")
    assert (np.diff(found[order]) >= -1e-9).all() or horizon <= 1


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.05, 20), min_size=2, max_size=6), st.sampled_from([2.0, 4.0, 16.0]), st.data())
def test_no_other_probabilities_reach_more(norms: list[float], horizon: float, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(norms) - 1))
    weights = np.array(norms)

    def reached(likely: np.ndarray) -> float:
        return float(weights @ (1 - (1 - likely) ** horizon))

    best = optimize.minimize(
        lambda likely: -reached(likely) / weights.sum(),
        np.full(len(norms), count / len(norms)),
        bounds=[(0, 1)] * len(norms),
        constraints={"type": "eq", "fun": lambda likely: likely.sum() - count},
        options={"maxiter": 500, "ftol": 1e-12},
    )
    found = reached(inclusion_probabilities(norms, count, horizon))
    assert found >= -best.fun * weights.sum() - 1e-6 * weights.sum()
    assert expected_norms(norms, [count], horizon)[0] == pytest.approx(found, rel=1e-6)


@pytest.mark.parametrize("horizon", [2.0, 16.0])
def test_equal_norms_are_drawn_alike(horizon: float) -> None:
    np.testing.assert_allclose(inclusion_probabilities([3.0] * 10, 4, horizon), 0.4)
    assert expected_norms([3.0] * 10, [4], horizon)[0] == pytest.approx(30 * coverage_value(0.4, horizon))
    np.testing.assert_allclose(inclusion_probabilities([0.0] * 10, 4, horizon), 0.4)


def test_looking_no_further_than_one_draw_takes_the_largest_for_certain() -> None:
    assert inclusion_probabilities([1.0, 5.0, 3.0, 4.0], 2, 1.0).tolist() == [0, 1, 0, 1]


def test_an_outlier_is_nearly_always_drawn_and_the_rest_now_and_then() -> None:
    found = inclusion_probabilities([2.0, *[0.04] * 383], 6, 4.0)
    assert found[0] > 0.6 and 0 < found[1] < 0.02


@settings(max_examples=60, deadline=None)
@given(NORMS, HORIZONS, st.integers(0, 2**32), st.data())
def test_draws_have_their_size_and_no_channel_twice(
    norms: list[float], horizon: float, seed: int, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, len(norms)))
    rng = np.random.default_rng(seed)
    orders = np.stack([rng.permutation(len(norms)) for _ in range(20)])
    starts = rng.integers(0, 2**64, 20, dtype=np.uint64)
    drawn = systematic_draws(inclusion_probabilities(norms, count, horizon), orders, starts)
    assert drawn.shape == (20, count)
    assert all(len(set(row)) == count for row in drawn.tolist())


def test_channels_are_drawn_as_often_as_they_are_likely() -> None:
    rng = np.random.default_rng(0)
    norms, runs = rng.lognormal(0, 2, 30).tolist(), 40_000
    likely = inclusion_probabilities(norms, 7, 4.0)
    orders = np.argsort(rng.random((runs, 30)), axis=1)
    drawn = systematic_draws(likely, orders, rng.integers(0, 2**64, runs, dtype=np.uint64))
    counted = np.bincount(drawn.reshape(-1), minlength=30) / runs
    errors = np.sqrt(likely * (1 - likely) / runs)
    assert (np.abs(counted - likely) <= 5 * errors + 1e-9).all()
    first = np.bincount(drawn[:, 0], minlength=30) / runs
    assert (np.abs(first - likely / 7) <= 6 * np.sqrt(likely / 7 / runs) + 2e-3).all(), "a member that takes fewer"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.001, 100), min_size=1, max_size=300), HORIZONS)
def test_value_curves_never_bend_upwards_and_end_at_the_whole(norms: list[float], horizon: float) -> None:
    segments = weighted_segments(norms, 1e9, horizon)
    assert sum(segment.channels for segment in segments) == len(norms)
    units = [segment.units for segment in segments]
    assert units == sorted(units, reverse=True)
    assert sum(s.units * s.channels for s in segments) == pytest.approx(1e9, rel=1e-3, abs=len(norms))


def test_curves_in_pieces_err_little() -> None:
    norms = np.random.default_rng(1).lognormal(0, 1.5, 1536).tolist()
    for horizon in (1.0, 4.0, 16.0):
        edges = curve_counts(norms, horizon, 8)
        every = np.arange(1537)
        exact = expected_norms(norms, every.tolist(), horizon)
        chords = np.interp(every, edges, exact[edges])
        assert np.abs(chords - exact).max() <= 0.03 * exact[-1]
