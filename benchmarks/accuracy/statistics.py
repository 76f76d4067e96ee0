"""What runs of the accuracy benchmark say: means with their confidence, and paired differences."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import stats

_CONFIDENCE: Final = 0.95


@dataclass(frozen=True)
class Mean:
    """A mean and half the width of its 95 % confidence interval; ``nan`` where one number has none."""

    value: float
    half_width: float
    count: int


@dataclass(frozen=True)
class Paired:
    """Differences of two policies on the same networks, data and seeds.

    Args:
        difference: Mean of first minus second.
        half_width: Half the width of its 95 % confidence interval, over the pairs.
        p_value: Two-sided, of the paired t-test.
        pairs: How many pairs.
        wins: Pairs in which the first is ahead; ties count one half.
    """

    difference: float
    half_width: float
    p_value: float
    pairs: int
    wins: float


def mean_of(values: Sequence[float]) -> Mean:
    """Mean and confidence interval of independent numbers, by Student's t."""
    count = len(values)
    if count < 2:
        return Mean(float(np.mean(values)), math.nan, count)
    scale = float(stats.t.ppf((1 + _CONFIDENCE) / 2, count - 1))
    return Mean(float(np.mean(values)), scale * float(stats.sem(values)), count)


def paired(first: Sequence[float], second: Sequence[float]) -> Paired:
    """Compare pair by pair.

    Args:
        first: Scores of one policy.
        second: Scores of the other, in the same order; two pairs at least.

    Raises:
        ValueError: There are fewer than two pairs, or not as many of one as of the other.
    """
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(f"A paired test needs two pairs at least, got {len(first)} and {len(second)} scores.")
    differences = np.asarray(first) - np.asarray(second)
    mean = mean_of(differences.tolist())
    constant = bool(np.ptp(differences) == 0)
    p_value = float(differences[0] == 0) if constant else float(stats.ttest_rel(first, second).pvalue)
    wins = float((differences > 0).sum() + (differences == 0).sum() / 2)
    return Paired(mean.value, mean.half_width, p_value, len(differences), wins)
