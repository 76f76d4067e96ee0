"""Gradient norms that two of the papers' strategies draw by: seen while training, or taken in a dense pass.

Held by ``tests/engine/test_engine.py``.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trady.planner.models import Batch, LossFunction, batch_size_of
from trady.planner.plan import Plan
from trady.planner.priorities import calibrate, calibration_peak_bytes
from trady.planner.tracing import trace
from trady.planner.units import format_bytes


class ObservedNorms:
    """The last gradient norm seen of each channel.

    Args:
        plan: Its table says which channels there are.
    """

    def __init__(self, plan: Plan) -> None:
        self._sizes = {layer.name: layer.in_channels for layer in plan.table.layers}
        self.norms: dict[str, Tensor] = {}

    def see(self, norms: Mapping[str, Tensor], channels: Mapping[str, Tensor]) -> None:
        """Note the norms of the drawn channels after a backward pass.

        Args:
            norms: Layer -> norm of each drawn channel.
            channels: Layer -> drawn channels, in the same order.
        """
        for name, found in norms.items():
            if name not in self.norms:
                self.norms[name] = torch.full((self._sizes[name],), float("nan"), dtype=torch.float64)
            self.norms[name][channels[name].cpu().long()] = found.double().cpu()

    def as_lists(self) -> dict[str, list[float]] | None:
        """Layer -> norm of each channel, ``NaN`` where none was seen; ``None`` before anything was."""
        return {name: found.tolist() for name, found in self.norms.items()} or None


@dataclass(frozen=True)
class DensePass:
    """Gradient norms of all channels, and what they took.

    Args:
        norms: Layer -> norm of each channel.
        num_bytes: Memory of the dense backward pass, predicted.
        seconds: How long it took.
    """

    norms: dict[str, list[float]]
    num_bytes: int
    seconds: float

    def __str__(self) -> str:
        return f"dense pass for the norms: {format_bytes(self.num_bytes)}, {self.seconds:.1f} s"


def dense_norms(model: nn.Module, plan: Plan, batches: Iterable[Batch], loss: LossFunction | None) -> DensePass:
    """Gradient norm of every channel by dense backward passes, as ``d-det-rgn`` wants before each draw.

    Args:
        model: The model, not frozen; its weights and statistics stay as they are.
        plan: Names its layers.
        batches: What to measure on.
        loss: As in training.

    Returns:
        Layer name -> norm of each channel's gradient.
    """
    started = time.perf_counter()
    given = list(batches)
    targets = given[0].targets if loss is not None else None
    size = batch_size_of(given[0].inputs)
    traced = trace(model, given[0].inputs, targets=targets, loss=loss, norm=plan.settings.norm, batch_sizes=(size,))
    found = calibrate(model, given, loss=loss, norm=plan.settings.norm, traced=traced).by_weight
    norms = {
        layer.name: list(found[layer.weight_name].channel_norms)
        for layer in plan.table.layers
        if layer.weight_name in found
    }
    return DensePass(norms, calibration_peak_bytes(traced), time.perf_counter() - started)
