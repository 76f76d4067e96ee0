"""Optimizers by the name a plan gives them.

Held by ``tests/engine/trainer/test_recipes.py``.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from trady.engine.optim import SinkGD
from trady.planner.options import DEFAULT_MOMENTUM, OptimizerKind


def make_optimizer(
    parameters: Iterable[Tensor],
    kind: OptimizerKind | str,
    *,
    learning_rate: float,
    momentum: float = DEFAULT_MOMENTUM,
    weight_decay: float = 0.0,
) -> torch.optim.Optimizer:
    """An optimizer of the planned kind.

    Args:
        parameters: What trains.
        kind: SGD is without momentum, which only ``momentum`` has.
        learning_rate: Its peak.
        momentum: For ``momentum`` only.
        weight_decay: Decoupled for AdamW and SinkGD, as a part of the gradient for the others.

    Returns:
        The optimizer, of PyTorch or Trady's own.
    """
    kind = OptimizerKind(kind)
    if kind is OptimizerKind.ADAMW:
        return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
    if kind is OptimizerKind.SINKGD:
        return SinkGD(parameters, lr=learning_rate, weight_decay=weight_decay)
    if kind is OptimizerKind.ADAM:
        return torch.optim.Adam(parameters, lr=learning_rate, weight_decay=weight_decay)
    kept = momentum if kind is OptimizerKind.MOMENTUM else 0.0
    return torch.optim.SGD(parameters, lr=learning_rate, momentum=kept, weight_decay=weight_decay)
