"""Priorities: the gradient norm of every input channel, and the ranks that follow from it."""

import hashlib
import math
from collections.abc import Sequence
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, ValidationError

from trady.planner.errors import CalibrationError
from trady.planner.files import write_atomically
from trady.planner.ledger import gradient_norm_per_cost
from trady.planner.records import Record

SCHEMA_VERSION: Final = 1

Norm = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class PrioritySource(StrEnum):
    """Where gradient norms came from, the most trustworthy first."""

    DATA = "data"
    SYNTHETIC = "synthetic"
    UNIFORM = "uniform"


#: What a report says of each source; the figures are made by ``benchmarks/priorities.py``.
TRUST: Final = {
    PrioritySource.DATA: "measured on your data",
    PrioritySource.SYNTHETIC: "measured on synthetic inputs, whose ranks come close to real ones (docs/priorities.md)",
    PrioritySource.UNIFORM: "not measured, every weight element counts the same; give --data",
}


class LayerPriority(Record):
    """Gradient norms of one layer.

    Args:
        name: Module path of the layer.
        weight_name: Dotted name of its weight.
        channel_norms: Mean over batches of ``||dL/dW[:, c]||_2`` for each input channel.
        weight_elements: ``C_W`` of a channel.
        sample_elements: ``C_A`` of a channel, one sample.
    """

    name: str
    weight_name: str
    channel_norms: tuple[Norm, ...]
    weight_elements: Annotated[int, Field(ge=1)]
    sample_elements: Annotated[int, Field(ge=0)]

    @property
    def norm_sum(self) -> float:
        """Sum of its channels' gradient norms: what the solver counts as the layer's value."""
        return math.fsum(self.channel_norms)

    @property
    def norm(self) -> float:
        """Gradient norm of the whole weight."""
        return math.hypot(*self.channel_norms)

    @property
    def channel_rgn(self) -> tuple[float, ...]:
        """Reweighted gradient norm of each channel: norm per element stored.

        Source:
            TraDy, arXiv 2510.19675, eq. (5).
        """
        return tuple(
            gradient_norm_per_cost(norm, self.weight_elements, self.sample_elements) for norm in self.channel_norms
        )

    @property
    def rgn(self) -> float:
        """Reweighted gradient norm of the layer: the sum over its channels."""
        return math.fsum(self.channel_rgn)

    @property
    def lara(self) -> float:
        """Layer rank of MeDyate: gradient norm of the weight per element of all its channels.

        Source:
            MeDyate, arXiv 2510.20979.
        """
        return self.norm / (len(self.channel_norms) * (self.weight_elements + self.sample_elements))


class Priorities(Record):
    """Gradient norms of every drawable layer of one model.

    Args:
        schema_version: Version of the file's format.
        source: Where the norms came from.
        origin: The data by name, or how the inputs were made.
        num_batches: Batches averaged over.
        batch_size: Samples per batch.
        tail_index: Tail index alpha of the stochastic gradients (2 for Gaussian); ``None`` where not measured.
        layers: One entry per layer.
    """

    schema_version: Literal[1] = 1
    source: PrioritySource
    origin: str
    num_batches: Annotated[int, Field(ge=0)]
    batch_size: Annotated[int, Field(ge=0)]
    tail_index: float | None
    layers: tuple[LayerPriority, ...]

    @cached_property
    def by_weight(self) -> dict[str, LayerPriority]:
        """Layers by weight name."""
        return {layer.weight_name: layer for layer in self.layers}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the content: which priorities a plan was made from."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    @cached_property
    def concentration(self) -> float:
        """Share of the squared gradient norm that the largest hundredth of the channels of wide layers hold.

        Wide are those with a hundred channels and more; 0 where there is none.
        """
        wide = [layer for layer in self.layers if len(layer.channel_norms) >= 100]
        whole = math.fsum(layer.norm**2 for layer in wide)
        return math.fsum(map(_largest_squares, wide)) / whole if whole else 0.0

    def ranked(self, key: str = "rgn") -> list[LayerPriority]:
        """Layers by ``"rgn"`` or ``"lara"``, the largest first."""
        return sorted(self.layers, key=lambda layer: getattr(layer, key), reverse=True)

    def top(self, share: float) -> list[LayerPriority]:
        """The fewest layers, by RGN, that hold ``share`` of the total."""
        return [self.layers[index] for index in top_layers(self.layers, share)]

    def save(self, path: str | Path) -> None:
        """Write the file, whole or not at all."""
        write_atomically(Path(path), self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Priorities":
        """Read a file that :meth:`save` wrote.

        Returns:
            The priorities.

        Raises:
            CalibrationError: The file is missing or holds no priorities.
        """
        try:
            return cls.model_validate_json(Path(path).read_bytes())
        except OSError as error:
            raise CalibrationError(f"Priorities {path}: {error.strerror}. Make them with trady-profile.") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise CalibrationError(
                f"Priorities {path} cannot be read: {where}: {first['msg']}. Make them with trady-profile."
            ) from error


def _largest_squares(layer: LayerPriority) -> float:
    number = len(layer.channel_norms) // 100
    return math.fsum(norm**2 for norm in sorted(layer.channel_norms, reverse=True)[:number])


def top_layers(layers: Sequence[LayerPriority], share: float) -> list[int]:
    """Indices of the fewest layers, the largest RGN first, that hold ``share`` of the total; one at least."""
    total = math.fsum(layer.rgn for layer in layers)
    chosen: list[int] = []
    held = 0.0
    for index in sorted(range(len(layers)), key=lambda index: layers[index].rgn, reverse=True):
        if chosen and held >= share * total:
            break
        chosen.append(index)
        held += layers[index].rgn
    return chosen


def rounded_norms(norms: Sequence[float]) -> tuple[float, ...]:
    """Norms to seven significant digits, so that a file is short and the same on every machine."""
    return tuple(float(f"{norm:.7g}") for norm in norms)
