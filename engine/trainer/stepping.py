"""One optimizer step: micro-batches, precision, clipping, several processes.

Held by ``tests/engine/trainer/test_training.py``.
"""

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trady.engine import Engine
from trady.engine.optim import make_optimizer
from trady.engine.runtime import autocast
from trady.engine.trainer.evaluating import Tally
from trady.engine.trainer.planned_model import PlannedModel
from trady.engine.trainer.processes import Processes
from trady.engine.trainer.recipes import make_loss, make_scaler
from trady.engine.trainer.run_options import RunOptions
from trady.planner.models import Batch, call_model


class LossNotFiniteError(ArithmeticError):
    """The loss of a batch is not a number, or infinite, in this process or another.

    Args:
        loss: It.
    """

    def __init__(self, loss: float) -> None:
        super().__init__(f"loss {loss}")
        self.loss = loss


class Stepper:
    """Takes optimizer steps with an engine.

    Args:
        engine: The engine; its optimizer is made and registered here.
        planned: Places batches.
        options: The recipe.
        processes: Who else takes part.
    """

    def __init__(self, engine: Engine, planned: PlannedModel, options: RunOptions, processes: Processes) -> None:
        self.engine = engine
        self.optimizer = make_optimizer(
            engine.parameters(),
            options.optimizer,
            learning_rate=options.learning_rate,
            momentum=options.momentum,
            weight_decay=options.weight_decay,
        )
        engine.register(self.optimizer)
        self.scaler = make_scaler(processes.device, options.amp)
        self._planned, self._options, self._processes = planned, options, processes
        self._loss: Callable[[Any, Any], Tensor] = make_loss(planned.loss, options.label_smoothing)
        self._wrapped: Any = engine
        self._wrapped_parameters: tuple[int, ...] = ()
        self.follow_draw()

    def follow_draw(self) -> None:
        """Wrap the engine anew where a draw changed which parameters there are."""
        parameters = tuple(id(parameter) for parameter in self.engine.parameters())
        if parameters == self._wrapped_parameters:
            return
        self._wrapped_parameters = parameters
        self._wrapped = self.engine
        if self._processes.size > 1:
            self._wrapped = DistributedDataParallel(self.engine)
        if self._options.compile:
            self._wrapped = torch.compile(self._wrapped)

    def forward(self, model: nn.Module, batch: Batch) -> tuple[object, Tensor]:
        """Outputs and loss of a batch on the model's device, under the run's precision."""
        with autocast(self._processes.device, self._options.amp):
            outputs = call_model(model, batch.inputs)
            return outputs, self._loss(outputs, batch.targets)

    def step(self, window: Iterable[Batch], size: int, learning_rate: float, tally: Tally) -> int:
        """Learn from some micro-batches with one optimizer step.

        Args:
            window: The micro-batches.
            size: How many there are to be.
            learning_rate: Of this step.
            tally: Counts them.

        Returns:
            Micro-batches there were.

        Error:
            LossNotFiniteError: The weights are as they were before the step.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        number = 0
        for number, batch in enumerate(map(self._planned.placed, window), start=1):
            with self._synchronised(is_last=number == size):
                outputs, loss = self.forward(self._wrapped, batch)
                value = float(loss.detach())
                self._check_finite(value)
                self.scaler.scale(loss / size).backward()
            tally.add(value, outputs, batch)
        if number == size:
            self._update()
        return number

    def _update(self) -> None:
        if self._options.clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(list(self.engine.parameters()), self._options.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()

    def _synchronised(self, is_last: bool) -> AbstractContextManager[Any]:
        """Gradients are summed over the processes once, with the last micro-batch."""
        wrapped = getattr(self._wrapped, "_orig_mod", self._wrapped)
        if is_last or not isinstance(wrapped, DistributedDataParallel):
            return nullcontext()
        return wrapped.no_sync()

    def _check_finite(self, loss: float) -> None:
        (is_bad,) = self._processes.any_of(not math.isfinite(loss))
        if is_bad:
            self.optimizer.zero_grad()
            raise LossNotFiniteError(loss)

    def all_finite(self) -> bool:
        """Whether everything that trains is finite."""
        return all(bool(torch.isfinite(parameter).all()) for parameter in self.engine.parameters())
