"""The estimator against laws whose index is known."""

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from trady.planner.errors import CalibrationError
from trady.planner.priorities.tail_index import tail_index

PARAMETERS, BATCHES = 40_000, 25


def symmetric_stable(alpha: float, shape: tuple[int, int], seed: int = 0) -> Tensor:
    """Chambers, Mallows and Stuck's exact generator."""
    generator = torch.Generator().manual_seed(seed)
    angle = (torch.rand(shape, generator=generator, dtype=torch.float64) - 0.5) * math.pi
    waiting = -torch.log1p(-torch.rand(shape, generator=generator, dtype=torch.float64))
    bent = torch.sin(alpha * angle) / torch.cos(angle) ** (1 / alpha)
    return bent * (torch.cos((1 - alpha) * angle) / waiting) ** ((1 - alpha) / alpha)


def standard_error(alpha: float, num_samples: int) -> float:
    """Of the estimate, by the delta method: ``Var log|X| = pi^2/6 (1/alpha^2 + 1/2)``; the block sums dominate."""
    block_length = math.isqrt(num_samples)
    deviation = math.pi * math.sqrt((1 / alpha**2 + 0.5) / 6)
    return alpha**2 * deviation / math.sqrt(num_samples // block_length) / math.log(block_length)


def test_the_generator_draws_the_law_scipy_knows() -> None:
    draws = symmetric_stable(1.7, (1, 2_000)).flatten().numpy()
    assert stats.kstest(draws, stats.levy_stable(1.7, 0.0).cdf).pvalue > 0.01


@pytest.mark.parametrize("alpha", [1.0, 1.3, 1.7, 2.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_known_indices_come_back_within_the_standard_error(alpha: float, seed: int) -> None:
    estimate = tail_index(symmetric_stable(alpha, (PARAMETERS, BATCHES), seed))
    assert estimate == pytest.approx(alpha, abs=3.5 * standard_error(alpha, PARAMETERS * BATCHES))


def test_gaussian_gradients_have_index_two() -> None:
    noise = torch.randn(PARAMETERS, BATCHES, generator=torch.Generator().manual_seed(0))
    assert tail_index(noise) == pytest.approx(2.0, abs=3.5 * standard_error(2.0, noise.numel()))


def test_the_mean_gradient_and_the_scale_do_not_matter() -> None:
    noise = symmetric_stable(1.5, (2_000, 10))
    shifted = 1e-3 * noise + torch.arange(2_000, dtype=torch.float64).unsqueeze(1)
    assert tail_index(shifted) == pytest.approx(tail_index(noise), rel=1e-6)


def test_rows_that_sum_to_zero_do_not_fool_it() -> None:
    """With K1 = 1000 = 100 whole rows, blocks in row order would all sum to zero after the centring."""
    noise = torch.randn(100_000, 10, generator=torch.Generator().manual_seed(0))
    assert tail_index(noise) == pytest.approx(2.0, abs=0.1)


def test_dead_parameters_are_left_out() -> None:
    noise = symmetric_stable(1.5, (2_000, 10))
    dead = torch.full((500, 10), 0.25, dtype=torch.float64)
    assert tail_index(torch.cat([noise, dead])) == tail_index(noise)


@pytest.mark.parametrize(
    "samples", [torch.zeros(1000, 10), torch.randn(1000, 1), torch.randn(9, 11), torch.randn(0, 5)]
)
def test_too_few_samples_give_no_estimate(samples: Tensor) -> None:
    assert tail_index(samples) is None


def test_the_same_samples_give_the_same_estimate_and_leave_torch_alone() -> None:
    noise = symmetric_stable(1.5, (2_000, 10))
    before = torch.get_rng_state()
    assert tail_index(noise) == tail_index(noise.clone())
    assert torch.equal(torch.get_rng_state(), before)


def test_low_precision_gradients_keep_their_index() -> None:
    noise = torch.randn(PARAMETERS, BATCHES, generator=torch.Generator().manual_seed(0))
    assert tail_index(noise.bfloat16()) == pytest.approx(2.0, abs=3.5 * standard_error(2.0, noise.numel()))


def test_samples_that_are_not_finite_are_refused() -> None:
    samples = torch.randn(50, 10)
    samples[3, 4], samples[5, 6] = math.nan, math.inf
    with pytest.raises(CalibrationError, match="2 of 500 are not"):
        tail_index(samples)


def test_a_vector_is_refused() -> None:
    with pytest.raises(CalibrationError, match=r"must be a matrix .* got shape \[1000\]"):
        tail_index(torch.randn(1000))
