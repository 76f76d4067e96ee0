"""The engine under the ``Trainer`` of transformers.

Held by ``tests/integration/test_integrations.py``.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import torch
from torch.optim import Optimizer

from trady.engine import Engine
from trady.planner.errors import EngineError
from trady.planner.models import Batch

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise EngineError(
        "trady.engine.integrations.transformers needs transformers and accelerate, which are not installed: "
        "pip install 'trady[trainer]'."
    ) from error

#: File in each checkpoint folder that holds the state of the draws.
DRAW_FILE: Final = "trady_draw.pt"


class EngineCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Draws anew at each epoch, and saves the draw in each checkpoint folder.

    The Trainer trains the user's own model, with the engine attached to it. It clips and clears
    ``model.parameters()``, which the slices are not among: the callback does both for all that trains.

    Args:
        engine: Attached to the model: ``Engine.attach(model, plan)``.
        optimizer: Over ``engine.parameters()``, the same that ``Trainer(optimizers=(optimizer, scheduler))`` gets.
        resume_from: Checkpoint folder, the same that ``trainer.train(resume_from_checkpoint=...)`` gets.
        max_grad_norm: Largest norm of the gradient, 0 for any; the Trainer's own is to be 0.
        batches: Labelled batches for the dense pass of ``d-det-rgn`` at each draw.

    Raises:
        EngineError: The checkpoint folder has no draw.

    Known limitations:
        A checkpoint inside an epoch finds its draw again only if the data loader has a length.
    """

    def __init__(
        self,
        engine: Engine,
        optimizer: Optimizer,
        *,
        resume_from: str | Path | None = None,
        max_grad_norm: float = 0.0,
        batches: Callable[[], Iterable[Batch]] | None = None,
    ) -> None:
        self._engine, self._optimizer = engine, optimizer
        self._max_grad_norm, self._batches = max_grad_norm, batches
        self._next_epoch, self._drawn_epoch = 0, -1
        engine.register(optimizer)
        if resume_from is not None:
            engine.load_draw_state(_load_draw(Path(resume_from)))
            self._drawn_epoch = engine.epoch

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Check what the Trainer does by itself.

        Raises:
            EngineError: It would clip the head alone, or copy the model to several devices.
        """
        if args.max_grad_norm:
            raise EngineError(
                f"The Trainer clips model.parameters() at max_grad_norm={args.max_grad_norm}, and the slices are not "
                "among them. Set TrainingArguments(max_grad_norm=0) and give the norm to "
                "EngineCallback(max_grad_norm=...)."
            )
        self._next_epoch = int(state.epoch or 0)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Draw, unless the checkpoint that training goes on from was saved inside this very epoch."""
        epoch, self._next_epoch = self._next_epoch, self._next_epoch + 1
        if epoch != self._drawn_epoch:
            self._engine.resample(epoch, batches=None if self._batches is None else self._batches())
        self._drawn_epoch = -1

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: object
    ) -> None:
        """Clip the gradient of all that trains."""
        if self._max_grad_norm:
            scaler = getattr(given.get("optimizer"), "scaler", None)
            if scaler is not None:
                scaler.unscale_(self._optimizer)
            torch.nn.utils.clip_grad_norm_(self._engine.parameters(), self._max_grad_norm)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Clear the gradient of all that trains."""
        self._optimizer.zero_grad()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Write the draw beside the weights, which are the plain model's."""
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if args.should_save and folder.is_dir():
            torch.save(self._engine.draw_state(), folder / DRAW_FILE)


def _load_draw(folder: Path) -> dict[str, Any]:
    path = folder / DRAW_FILE
    if not path.is_file():
        raise EngineError(
            f"Checkpoint {folder} holds no {DRAW_FILE}, so its draw is not known. Resume from a folder that was saved "
            "with the EngineCallback in Trainer(callbacks=[...])."
        )
    found: dict[str, Any] = torch.load(path, weights_only=True)
    return found
