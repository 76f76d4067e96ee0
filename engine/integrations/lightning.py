"""The engine under the ``Trainer`` of Lightning.

Held by ``tests/integration/test_integrations.py``.
"""

from collections.abc import Callable, Iterable
from typing import Any

from trady.engine import Engine
from trady.planner.errors import EngineError
from trady.planner.models import Batch

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError:
    try:
        from pytorch_lightning import Callback, LightningModule, Trainer
    except ImportError as error:
        raise EngineError(
            "trady.engine.integrations.lightning needs lightning or pytorch-lightning, and neither is installed: "
            "pip install 'trady[lightning]'."
        ) from error


class EngineCallback(Callback):  # type: ignore[misc, unused-ignore]
    """Registers the trainer's optimizers, draws anew at each epoch, and keeps the draw in Lightning's checkpoints.

    Args:
        engine: Attached to the network inside the module, or a part of the module; ``configure_optimizers`` is to
            use ``engine.parameters()``.
        batches: Labelled batches for the dense pass of ``d-det-rgn`` at each draw.
    """

    def __init__(self, engine: Engine, *, batches: Callable[[], Iterable[Batch]] | None = None) -> None:
        self._engine, self._batches = engine, batches

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the optimizers follow the draws."""
        self._engine.register(None)
        for optimizer in trainer.optimizers:
            self._engine.register(optimizer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw; Lightning does not call this where it goes on inside an epoch."""
        self._engine.resample(trainer.current_epoch, batches=None if self._batches is None else self._batches())

    def state_dict(self) -> dict[str, Any]:
        """What Lightning saves."""
        return self._engine.draw_state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What Lightning loads, before it makes the optimizers and loads their state."""
        self._engine.load_draw_state(state_dict)
