"""Means, errors and quantiles over trials that come in chunks: memory does not grow with their number."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
_QUANTILES = (0.05, 0.95)


@dataclass
class Gathered:
    """What all trials so far amount to.

    Args:
        most_kept: Trials whose values are kept for the quantiles.
    """

    most_kept: int
    trials: int = 0
    kept: int = 0
    _means: dict[str, Values] = field(default_factory=dict)
    _squares: dict[str, Values] = field(default_factory=dict)
    _samples: dict[str, list[NDArray[np.float32]]] = field(default_factory=dict)
    _highest: dict[str, float] = field(default_factory=dict)

    def add(self, chunk: Mapping[str, Values]) -> None:
        """Take in a chunk: values ``[trials, epochs]`` by name.

        Source:
            Chan, Golub and LeVeque 1979, for combining variances.
        """
        number = len(next(iter(chunk.values())))
        kept = min(number, self.most_kept - self.kept)
        total = self.trials + number
        for name, values in chunk.items():
            mean = values.mean(axis=0)
            squares = ((values - mean) ** 2).sum(axis=0)
            if self.trials:
                shift = mean - self._means[name]
                mean = self._means[name] + shift * number / total
                squares = self._squares[name] + squares + shift**2 * self.trials * number / total
            self._means[name], self._squares[name] = mean, squares
            self._highest[name] = max(self._highest.get(name, -np.inf), float(values.max()))
            if kept:
                self._samples.setdefault(name, []).append(values[:kept].astype(np.float32))
        self.trials, self.kept = total, self.kept + kept

    def mean(self, name: str) -> Values:
        """``[epochs]``."""
        return self._means[name]

    def standard_error(self, name: str) -> Values:
        """Of the mean, ``[epochs]``; 0 for a single trial."""
        error: Values = np.sqrt(self._squares[name] / max(1, self.trials - 1) / self.trials)
        return error

    def highest(self, name: str) -> float:
        """The largest value of any trial and epoch."""
        return self._highest[name]

    def samples(self, name: str) -> Values:
        """Values of the trials kept, ``[trials, epochs]``."""
        return np.concatenate(self._samples[name]).astype(np.float64)


def band(samples: Values) -> tuple[Values, Values]:
    """5 and 95 % quantiles over trials, ``[epochs]`` each; ``NaN`` where a trial has no value is left out."""
    if not np.isnan(samples).any():  # all epochs in one call: one for each takes a tenth of a replay
        low, high = np.quantile(samples, _QUANTILES, axis=0)
        return low, high
    columns = [column[~np.isnan(column)] for column in samples.T]
    bounds = [np.quantile(column, _QUANTILES) if len(column) else (np.nan, np.nan) for column in columns]
    low, high = np.array(bounds).T
    return low, high
