"""What a replay found: per epoch, means with bands and closed forms beside them.

Held by ``tests/simulator/test_cli.py``.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final

#: What is followed from epoch to epoch -> what it means, as reports say it.
MEASURES: Final = {
    "channels_reached": "share of all channels drawn at least once",
    "rgn_reached": "share of the total RGN drawn at least once",
    "waiting_time": "epochs since the last update of a drawn channel",
    "captured_share": "share of the squared gradient norm that the drawn channels hold",
    "cosine": "cosine of the drawn gradient with the full one",
    "running_cosine": "cosine of the sum of drawn gradients with the sum of full ones",
    "activation_sparsity": "stored inputs saved, against all channels",
    "weight_derivative_sparsity": "weight gradients saved, against all channels",
    "weight_grad_macs": "multiply-adds of the weight gradients, whole batch",
    "backward_macs": "multiply-adds of the backward pass, whole batch",
    "used_bytes": "bytes of the budget's scope",
}


@dataclass(frozen=True)
class Series:
    """One figure, epoch by epoch.

    Args:
        mean: Over all trials; ``None`` where it has no value (nothing to wait for in the first epoch).
        low: 5 % quantile over the trials.
        high: 95 % quantile.
        standard_error: Of the mean.
        theory: Closed form of the mean; ``None`` where the draw has none.
    """

    mean: tuple[float | None, ...]
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]
    standard_error: tuple[float | None, ...]
    theory: tuple[float | None, ...] | None = None

    @property
    def last(self) -> float | None:
        """The mean of the last epoch."""
        return self.mean[-1]

    @property
    def over_epochs(self) -> float | None:
        """The mean over the epochs that have a value."""
        found = [value for value in self.mean if value is not None]
        return sum(found) / len(found) if found else None


@dataclass(frozen=True)
class SimulationReport:
    """A plan's resampling, replayed.

    Args:
        policy: The strategy by name.
        source: The model, as typed.
        budget_bytes: Bytes of the scope.
        scope: What the budget holds.
        epochs: Epochs replayed.
        trials: Runs replayed; run ``t`` is the run with seed ``seed + t``.
        seed: Seed of the first run.
        gradients: ``calibrated``, ``heavy-tailed`` or ``recorded``.
        num_layers: Layers of the table.
        num_eligible: Layers the strategy may draw from.
        num_channels: Channels of all layers of the table.
        band_trials: Trials that the quantiles were taken over.
        highest_used_bytes: The most that any epoch of any trial needed.
        measures: Name -> series, named as in :data:`MEASURES`.
        lines: Line of the ledger -> its bytes.
        notes: What the reader should know.
    """

    policy: str
    source: str
    budget_bytes: int
    scope: str
    epochs: int
    trials: int
    seed: int
    gradients: str
    num_layers: int
    num_eligible: int
    num_channels: int
    band_trials: int
    highest_used_bytes: int
    measures: Mapping[str, Series]
    lines: Mapping[str, Series]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        """All of it, for machines: bytes, counts, and shares from 0 to 1."""
        return asdict(self)
