"""Gradients to replay: what every channel's gradient is in each epoch, the same for all trials."""

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trady.planner.errors import PlanError
from trady.planner.plan import Plan
from trady.planner.sampling import random_bits, unit_interval

if TYPE_CHECKING:
    from trady.planner.priorities import GradientRecording

Vectors: TypeAlias = NDArray[np.float64]

_GAUSSIAN: Final = 2.0
_NOISE_STREAM: Final = 2**33


class Gradients(ABC):
    """One vector for each channel of a plan's table and epoch.

    Attributes:
        name: ``calibrated``, ``heavy-tailed`` or ``recorded``.
        constant: Whether every epoch has the same.
        epochs: Epochs there are; ``None`` for any number.
    """

    name: str
    constant: bool = False
    epochs: int | None = None

    @abstractmethod
    def vectors(self, epoch: int) -> list[Vectors]:
        """For each layer ``[numbers, channels]``: inner products of the columns are those of the gradients."""

    @abstractmethod
    def norms(self, epoch: int) -> list[Vectors]:
        """For each layer ``[channels]``: the norm a run would observe."""

    @abstractmethod
    def __str__(self) -> str:
        """What a report says of them."""


class CalibratedGradients(Gradients):
    """The plan's own norms, in a direction of each channel that never changes: all signal, no noise.

    Args:
        plan: The plan.
    """

    name = "calibrated"
    constant = True

    def __init__(self, plan: Plan) -> None:
        self._norms = [np.array(plan.channel_norms(index)) for index in range(len(plan.table.layers))]
        self._source = plan.priorities.source.value

    def __str__(self) -> str:
        return f"the plan's norms ({self._source}), the same in every epoch"

    def vectors(self, epoch: int) -> list[Vectors]:
        """The norms as one number for each channel."""
        return [norms[None, :] for norms in self._norms]

    def norms(self, epoch: int) -> list[Vectors]:
        """The plan's norms."""
        return self._norms


class HeavyTailedGradients(Gradients):
    """Symmetric alpha-stable noise whose mean size is the plan's norm: all noise, no signal.

    Each channel and epoch has one number of its own, ``norm * x`` with ``E|x| = 1``.

    Args:
        plan: The plan.
        tail_index: Alpha, above 1 and up to 2; by default the calibration's.
        seed: Seed of the noise.

    Raises:
        PlanError: No tail index was measured, or it is 1 or less: such noise has no mean size.

    Source:
        Chambers, Mallows and Stuck 1976 for the samples; Simsekli, Sagun and Gurbuzbalaban, ICML 2019 for the model.
    """

    name = "heavy-tailed"

    def __init__(self, plan: Plan, tail_index: float | None = None, seed: int = 0) -> None:
        found = plan.priorities.tail_index if tail_index is None else tail_index
        if found is None:
            raise PlanError(
                f"The plan has no tail index: its norms are {plan.priorities.source.value} "
                f"({plan.priorities.origin}). Plan with --data, or give --tail-index."
            )
        if not found > 1.0:
            raise PlanError(
                f"Tail index must be above 1 for noise to have a mean size, got {found:.3g}. Give --tail-index."
            )
        self.tail_index = min(found, _GAUSSIAN)
        self._seed = seed
        self._norms = [np.array(plan.channel_norms(index)) for index in range(len(plan.table.layers))]

    def __str__(self) -> str:
        return f"noise alone of the size of the plan's norms, tail index {self.tail_index:.3g}"

    def vectors(self, epoch: int) -> list[Vectors]:
        """One number for each channel."""
        sizes = [len(norms) for norms in self._norms]
        words = random_bits(self._seed, epoch, _NOISE_STREAM, 2 * sum(sizes)).reshape(2, -1)
        noise = stable_noise(unit_interval(words[0]), unit_interval(words[1]), self.tail_index)
        parts = np.split(noise, np.cumsum(sizes)[:-1])
        return [(norms * part)[None, :] for norms, part in zip(self._norms, parts, strict=True)]

    def norms(self, epoch: int) -> list[Vectors]:
        """Sizes of the same numbers."""
        return [np.abs(vectors[0]) for vectors in self.vectors(epoch)]


class RecordedGradients(Gradients):
    """What ``trady-profile --record`` kept of a real fine-tuning: norms, and sketches of the mean gradients.

    Args:
        recording: The recording.
        plan: The plan; its layers must be in the recording.

    Raises:
        PlanError: The recording is of another model.
    """

    name = "recorded"

    def __init__(self, recording: "GradientRecording", plan: Plan) -> None:
        recording.check_fits(*plan.recorded_model)
        self.epochs, self._origin = recording.num_epochs, recording.header.origin
        rows = recording.indices_of([layer.name for layer in plan.table.layers])
        self._norms = [recording.norms[row] for row in rows]
        self._sketches = [recording.sketches[row] for row in rows]

    def __str__(self) -> str:
        return f"{self.epochs} epochs recorded on {self._origin}"

    def vectors(self, epoch: int) -> list[Vectors]:
        """The sketches of the epoch's mean gradients."""
        return [sketch[epoch].T.astype(np.float64) for sketch in self._sketches]

    def norms(self, epoch: int) -> list[Vectors]:
        """The mean norm over the epoch's batches."""
        return [norms[epoch].astype(np.float64) for norms in self._norms]


def stable_noise(angle: Vectors, size: Vectors, tail_index: float) -> Vectors:
    """Symmetric alpha-stable numbers with a mean size of 1.

    Args:
        angle: Uniform numbers between 0 and 1.
        size: The same, independent of them.
        tail_index: Alpha, above 1 and up to 2.

    Source:
        Chambers, Mallows and Stuck 1976; ``E|X| = 2/pi * Gamma(1 - 1/alpha)`` for scale 1 (Nolan 2020, 1.5).
    """
    theta, weight = np.pi * (angle - 0.5), -np.log(size)
    inverse = 1.0 / tail_index
    spread = (np.cos((1.0 - tail_index) * theta) / weight) ** ((1.0 - tail_index) * inverse)
    noise: Vectors = np.sin(tail_index * theta) / np.cos(theta) ** inverse * spread
    return noise / (2.0 / math.pi * math.gamma(1.0 - inverse))
