"""Means and paired tests against hand-computed figures and their own promise."""

import math

import numpy as np
import pytest

from benchmarks.accuracy.statistics import mean_of, paired


def test_a_paired_test_by_hand() -> None:
    """Differences 1, 2, 3: t = 2 / (1 / sqrt 3) with two degrees of freedom; p has a closed form there."""
    found = paired([11, 22, 33], [10, 20, 30])
    t = 2 * math.sqrt(3)
    assert found.difference == pytest.approx(2)
    assert found.p_value == pytest.approx(1 - t / math.sqrt(2 + t**2))
    assert found.half_width == pytest.approx(4.302652729911275 / math.sqrt(3))
    assert (found.pairs, found.wins) == (3, 3)


def test_ties_count_half_and_equal_scores_prove_nothing() -> None:
    found = paired([1.0, 2.0], [1.0, 2.0])
    assert (found.difference, found.p_value, found.wins) == (0, 1, 1)


def test_a_constant_lead_has_no_spread() -> None:
    assert paired([2.0, 3.0], [1.0, 2.0]).p_value == 0


@pytest.mark.parametrize(("first", "second"), [([1.0], [2.0]), ([1.0, 2.0], [1.0]), ([], [])])
def test_too_few_or_unequal_pairs_are_refused(first: list[float], second: list[float]) -> None:
    with pytest.raises(ValueError, match="two pairs at least"):
        paired(first, second)


def test_intervals_hold_the_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    trials = 2000
    held = 0
    for sample in rng.normal(3.0, 2.0, (trials, 5)):
        found = mean_of(sample.tolist())
        held += abs(found.value - 3.0) <= found.half_width
    assert abs(held / trials - 0.95) < 4 * math.sqrt(0.95 * 0.05 / trials)


def test_one_number_has_no_interval() -> None:
    found = mean_of([4.0])
    assert found.value == 4.0 and math.isnan(found.half_width)
