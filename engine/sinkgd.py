"""SinkGD: gradients whose rows and columns are brought to one length, so that plain descent needs no state."""

from collections.abc import Callable, Iterable
from typing import Any, Final

import torch
from torch import Tensor
from torch.optim import Optimizer

#: Divides what has no gradient at all.
_LEAST_NORM: Final = 1e-30


class SinkGD(Optimizer):
    """Stateless gradient descent with normalised gradients.

    Each weight's gradient is taken as a matrix ``[first dimension, all others]``, its rows and then its columns are
    scaled to a root mean square of 1, several times over; a vector is scaled once. Layers of any scale then move alike,
    as under Adam, but nothing is kept between steps: of Trady's ledger it takes no more than SGD without momentum.
    The gradient's own scale does not matter, and so neither do loss scaling and the reduction over a batch.

    Args:
        params: Parameters, or groups of them; :meth:`trady.engine.Engine.parameters`.
        lr: How far a step moves a weight, as a root mean square; 0.001 is a good start for fine-tuning.
        iterations: How often rows and columns are scaled in turn.
        weight_decay: Decoupled, as AdamW's: weights shrink by ``lr * weight_decay`` of themselves.

    Raises:
        ValueError: An option is out of its range.
        RuntimeError: A gradient is sparse.

    Source:
        SinkGD, Gradient Multi-Normalization for Efficient LLM Training, arXiv 2502.06742. There Adam trains vectors.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, *, iterations: int = 5, weight_decay: float = 0.0
    ) -> None:
        if not float(lr) >= 0.0:
            raise ValueError(f"The learning rate must be 0 or more, got {lr}. Fine-tuning starts well at 0.001.")
        if iterations < 1:
            raise ValueError(f"Rows and columns must be scaled once at least, got iterations={iterations}.")
        if not weight_decay >= 0.0:
            raise ValueError(f"Weight decay must be 0 or more, got {weight_decay}.")
        super().__init__(params, {"lr": lr, "iterations": iterations, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every parameter that has a gradient; gradients stay as they are.

        Args:
            closure: Computes the loss again and returns it.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    _move(parameter, parameter.grad, group)
        return loss


def _move(parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
    if gradient.is_sparse:
        raise RuntimeError("SinkGD takes no sparse gradients. Build the embedding with sparse=False.")
    if group["weight_decay"]:
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
    parameter.add_(normalised(gradient, group["iterations"]), alpha=-group["lr"])


def normalised(gradient: Tensor, iterations: int) -> Tensor:
    """A gradient whose rows and columns have a root mean square of 1, nearly all rows and exactly all columns.

    Rows and columns of zeros stay zero. The work is one copy of the gradient and the norms of one side.

    Args:
        gradient: Of any shape; the first dimension are the rows.
        iterations: How often rows and columns are scaled in turn.
    """
    found = gradient.clone(memory_format=torch.contiguous_format)
    if found.dim() < 2:
        _to_unit_length_(found.view(1, -1), dim=1)
        return found.mul_(found.numel() ** 0.5)
    matrix = found.view(len(found), -1)
    for _ in range(iterations):
        _to_unit_length_(matrix, dim=1)
        _to_unit_length_(matrix, dim=0)
    return found.mul_(len(matrix) ** 0.5)


def _to_unit_length_(matrix: Tensor, dim: int) -> None:
    """Divide what lies along a dimension by its norm, in place."""
    kind = torch.promote_types(matrix.dtype, torch.float32)
    norms = torch.linalg.vector_norm(matrix, dim=dim, keepdim=True, dtype=kind)
    matrix.div_(norms.clamp_min_(_LEAST_NORM))
