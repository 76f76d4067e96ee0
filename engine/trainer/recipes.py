"""The recipe of a run: optimizer, learning rate, loss and precision, each from plain numbers."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trady.planner.models import LossFunction, logits_of, step_loss
from trady.planner.options import DType

StepLoss = Callable[[Any, Any], Tensor]


def learning_rate_at(step: int, *, peak: float, warmup_steps: float, total_steps: int) -> float:
    """Linear warm-up, then a cosine to zero.

    Args:
        step: Optimizer steps done, from 0 to ``total_steps``.
        peak: The largest rate.
        warmup_steps: Steps until the peak is reached.
        total_steps: Steps of the whole run.

    Returns:
        The learning rate.

    Source:
        TraDy, arXiv 2510.19675: five warm-up epochs, cosine to 0.
    """
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    share = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return peak * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


def make_loss(loss: LossFunction | None, label_smoothing: float = 0.0) -> StepLoss:
    """The scalar of a step: the given loss, the model's own, or cross-entropy.

    Args:
        loss: ``loss(outputs, targets)``; ``None`` takes the model's own, else cross-entropy.
        label_smoothing: Share of the target spread over all classes; cross-entropy only.
    """
    if label_smoothing == 0.0:
        return lambda outputs, targets: step_loss(outputs, targets, loss)

    def smoothed(outputs: Any, targets: Tensor) -> Tensor:
        logits = logits_of(outputs)
        if logits.dim() == 3:
            logits, targets = logits.flatten(0, 1), targets.flatten()
        return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)

    return smoothed


def make_scaler(device: torch.device, amp: DType | None) -> torch.amp.GradScaler:
    """Gradients of float16 are scaled so that small ones do not vanish; a scaler that does nothing otherwise."""
    return torch.amp.GradScaler(device.type, enabled=amp is DType.FLOAT16)
