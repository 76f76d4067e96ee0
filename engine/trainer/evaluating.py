"""How well a model does on data: loss and accuracy, counted exactly, nothing kept for backward."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trady.engine.trainer.processes import Processes
from trady.planner.errors import TracingError
from trady.planner.models import Batch, as_it_was, batch_size_of, logits_of

#: Runs a model on a batch under the run's precision: outputs and loss.
Forward = Callable[[nn.Module, Batch], tuple[Any, Tensor]]


@dataclass
class Tally:
    """Running sums over batches.

    Args:
        loss_sum: Mean loss of each batch times its samples.
        samples: Samples seen.
        correct: Answers that were right.
        answers: Answers there were; 0 where the task has no classes.
    """

    loss_sum: float = 0.0
    samples: int = 0
    correct: int = 0
    answers: int = 0

    def add(self, loss: float, outputs: object, batch: Batch) -> None:
        """Count one batch."""
        size = batch_size_of(batch.inputs)
        correct, answers = count_correct(outputs, batch.targets)
        self.loss_sum += loss * size
        self.samples += size
        self.correct += correct
        self.answers += answers

    def over(self, processes: Processes) -> "Tally":
        """The sums over all processes."""
        loss_sum, *counts = processes.totals(*asdict(self).values())
        return Tally(loss_sum, *map(int, counts))

    @property
    def loss(self) -> float:
        """Mean loss of a sample; ``nan`` where there was none."""
        return self.loss_sum / self.samples if self.samples else float("nan")

    @property
    def accuracy(self) -> float | None:
        """Share of right answers, 0 to 1; ``None`` where the task has no classes."""
        return self.correct / self.answers if self.answers else None


def count_correct(outputs: object, targets: object) -> tuple[int, int]:
    """Right answers and all answers of a batch; none of either where the targets are no classes.

    Args:
        outputs: Logits ``[B, K]``, ``[B, T, K]`` or ``[B, K, H, W]``, or what holds them.
        targets: Class indices ``[B]``, ``[B, T]`` or ``[B, H, W]``; negative ones are not counted, as in cross-entropy.
    """
    if not isinstance(targets, Tensor) or targets.is_floating_point():
        return 0, 0
    try:
        logits = logits_of(outputs)
    except TracingError:
        return 0, 0
    answers = logits.argmax(dim=2 if logits.dim() == 3 else 1)
    if answers.shape != targets.shape:
        return 0, 0
    counted = targets >= 0
    return int((answers.eq(targets) & counted).sum()), int(counted.sum())


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    forward: Forward,
    *,
    processes: Processes | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Tally:
    """Loss and accuracy over all batches, norms frozen, nothing kept.

    Args:
        model: The model; its training mode is put back.
        batches: What to evaluate on, on the model's device.
        forward: Runs the model on a batch.
        processes: Adds the sums up over them.
        stop: Asked before each batch; a true answer ends the evaluation, whose result is then of no use.

    Returns:
        Sums of loss and of right answers.
    """
    tally = Tally()
    with as_it_was(model), torch.no_grad():  # inference_mode would poison what a model caches in its forward
        model.eval()
        for batch in batches:
            if stop():
                break
            outputs, loss = forward(model, batch)
            tally.add(float(loss), outputs, batch)
    return tally if processes is None else tally.over(processes)
