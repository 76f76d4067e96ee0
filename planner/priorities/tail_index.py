"""How heavy the tails of stochastic gradients are: the index alpha of a symmetric alpha-stable law."""

import math
from typing import Final

import torch
from torch import Tensor

from trady.planner.errors import CalibrationError

FEWEST_SAMPLES: Final = 100
_ORDER_SEED: Final = 0
#: Gradient elements of each weight kept of each batch.
_KEPT_ELEMENTS: Final = 1024


class GradientSamples:
    """A few elements of every weight's gradient in each of several batches, for their tail index."""

    def __init__(self) -> None:
        self._samples: dict[str, list[Tensor]] = {}

    def add(self, name: str, gradient: Tensor) -> None:
        """Keep the same elements of a weight's gradient in every batch, evenly spread."""
        flat = gradient.detach().flatten()
        step = max(1, flat.numel() // _KEPT_ELEMENTS)
        self._samples.setdefault(name, []).append(flat[::step][:_KEPT_ELEMENTS].float().cpu())

    def tail_index(self, num_batches: int) -> float | None:
        """Over all weights, to four digits; ``None`` under two batches, or where no weight had a gradient in each."""
        full = [samples for samples in self._samples.values() if len(samples) == num_batches]
        if num_batches < 2 or not full:
            return None
        found = tail_index(torch.cat([torch.stack(samples, dim=1) for samples in full]))
        return None if found is None else float(f"{found:.4g}")


def tail_index(samples: Tensor) -> float | None:
    """Estimate the tail index alpha of gradient noise: 2 for Gaussian noise, less for heavier tails.

    With ``K = K1 * K2`` samples and ``Y_i`` the sum of the i-th block of ``K1`` samples,
    ``1/alpha = (mean log|Y| - mean log|X|) / log K1``. ``K1 = floor(sqrt(K))`` and
    ``K2 = floor(K / K1)``, so that both averages and the scale range grow with the data;
    the fewer than ``K1`` samples left over are dropped.

    The samples are put in a fixed random order first: a parameter's centred samples sum to
    zero, and a block made of whole rows would measure that and not the tail.

    Args:
        samples: Stochastic gradients ``[P, S]`` of P parameters in S batches, finite.

    Returns:
        The raw estimate (it may pass 2 by its own error, about ``alpha^2 / (K2^0.5 log K1)``),
        or ``None`` when fewer than 100 samples are left non-zero by the centring over S.

    Error:
        CalibrationError: The samples are not a matrix, or some are not finite.

    Source:
        Mohammadi, Mohammadpour, Ogata, "On estimating the tail index and the spectral measure
        of multivariate alpha-stable distributions", Metrika 2015, as used by Simsekli, Sagun,
        Gurbuzbalaban, "A Tail-Index Analysis of Stochastic Gradient Noise", ICML 2019.

    Known limitations:
        The estimator assumes independent samples of one law. Parameters of very different
        gradient scales are a mixture, which reads as a heavier tail.
    """
    noise = _centred_noise(samples)
    if noise.numel() < FEWEST_SAMPLES:
        return None
    block_length = math.isqrt(noise.numel())
    num_blocks = noise.numel() // block_length
    noise = _in_fixed_random_order(noise)[: block_length * num_blocks]
    block_sums = noise.view(num_blocks, block_length).sum(dim=1)
    inverse = (_mean_log(block_sums) - _mean_log(noise)) / math.log(block_length)
    return 1.0 / inverse if inverse > 0.0 else None


def _centred_noise(samples: Tensor) -> Tensor:
    """The non-zero deviations from each parameter's mean gradient, flat, in float64 on the CPU.

    Raises:
        CalibrationError: It is no finite matrix.
    """
    if samples.dim() != 2:
        raise CalibrationError(
            f"Gradient samples must be a matrix [parameters, batches], got shape {list(samples.shape)}. "
            "Stack the flattened gradients of the batches along dimension 1."
        )
    not_finite = int((~torch.isfinite(samples)).sum())
    if not_finite:
        raise CalibrationError(
            f"Gradient samples must be finite: {not_finite} of {samples.numel()} are not. "
            "Leave out the batches that overflow, or use a wider dtype."
        )
    exact = samples.detach().to("cpu", torch.float64)
    noise = (exact - exact.mean(dim=1, keepdim=True)).flatten()
    return noise[noise != 0]


def _in_fixed_random_order(noise: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(_ORDER_SEED)
    return noise[torch.randperm(noise.numel(), generator=generator)]


def _mean_log(values: Tensor) -> float:
    """Mean of ``log|value|`` over the values that have a logarithm."""
    magnitudes = values.abs()
    return float(magnitudes[magnitudes > 0].log().mean())
