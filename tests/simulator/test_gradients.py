"""Heavy-tailed noise against scipy's alpha-stable law, and the estimator that calibration measures it with."""

import numpy as np
import pytest
import torch
from scipy import stats

from trady.planner.priorities.tail_index import tail_index
from trady.planner.sampling.philox import random_bits, unit_interval
from trady.simulator.gradients import stable_noise


def noise(alpha: float, count: int = 200_000) -> np.ndarray:
    words = random_bits(7, 0, 0, 2 * count).reshape(2, -1)
    return stable_noise(unit_interval(words[0]), unit_interval(words[1]), alpha)


@pytest.mark.parametrize("alpha", [1.2, 1.5, 1.8])
def test_noise_follows_the_stable_law(alpha: float) -> None:
    """Quantiles of scale 1 over those of a mean size of 1: one factor for all of them."""
    places = [0.55, 0.7, 0.8, 0.9, 0.95, 0.99]
    ratios = np.quantile(noise(alpha), places) / stats.levy_stable.ppf(places, alpha, 0.0)
    assert ratios == pytest.approx(np.full(len(places), ratios.mean()), rel=0.04)


@pytest.mark.parametrize(("alpha", "error"), [(1.5, 0.06), (1.8, 0.02), (2.0, 0.01)])
def test_noise_has_a_mean_size_of_one(alpha: float, error: float) -> None:
    assert np.abs(noise(alpha, 1_000_000)).mean() == pytest.approx(1.0, rel=error)
    assert np.median(noise(alpha)) == pytest.approx(0.0, abs=0.01)


def test_alpha_two_is_normal() -> None:
    found = noise(2.0, 20_000)
    assert stats.kstest(found / np.sqrt(np.pi / 2), "norm").pvalue > 1e-3


@pytest.mark.parametrize("alpha", [1.2, 1.6, 2.0])
def test_the_calibrations_estimator_finds_alpha_again(alpha: float) -> None:
    samples = torch.from_numpy(noise(alpha).reshape(2000, 100))
    assert tail_index(samples) == pytest.approx(alpha, abs=0.08)
