"""What the runtime asks of an engine, which stands above it.

Held by ``tests/engine/test_engine.py``.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor, nn

from trady.engine.runtime.redirection import StorageNotes
from trady.engine.runtime.trained_slices import DrawnSlices
from trady.planner.ledger import Ledger
from trady.planner.plan import Plan
from trady.planner.sampling import ChannelDraw


class PlannedModel(Protocol):
    """A model that trains as planned."""

    model: nn.Module
    plan: Plan
    channels: ChannelDraw

    @property
    def epoch(self) -> int:
        """The epoch that was drawn for last."""

    @property
    def ledger(self) -> Ledger:
        """Planned bytes of a step with the channels drawn now."""

    @property
    def slices(self) -> DrawnSlices:
        """The slices that train."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """A lean forward pass."""

    def redirected(self, inputs: object = None) -> AbstractContextManager[None]:
        """The context of a lean forward pass."""

    def recording(self) -> AbstractContextManager[StorageNotes]:
        """The context in which forward passes note what they store, and for which line."""

    def thawed(self) -> AbstractContextManager[nn.Module]:
        """The model as it was before it was frozen."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """What trains."""

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """Buffers of the model."""

    def modules(self) -> Iterator[nn.Module]:
        """The engine and the modules of the model."""

    def train(self) -> object:
        """Put all of them in training mode, as planned."""
