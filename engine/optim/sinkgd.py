"""SinkGD: gradients whose rows and columns are brought to one length, so that plain descent needs no state."""

from collections.abc import Callable, Iterable
from typing import Any, Final

import torch
from torch import Tensor
from torch.optim import Optimizer

#: Rows and columns shorter than this share of the largest element have no gradient to speak of: their squares vanish.
_LEAST_NORM: Final = 1e-18


class SinkGD(Optimizer):
    """Stateless gradient descent with normalised gradients.

    Each weight's gradient is taken as a matrix ``[first dimension, all others]``, its rows and then its columns are
    scaled to a root mean square of 1, several times over; a vector is scaled once. Layers of any scale then move alike,
    as under Adam, but nothing is kept between steps: scopes ``update`` and ``training`` of a plan are those of plain
    SGD. While it steps it works in a copy of one layer's gradient, which scope ``peak`` holds. The gradient's own scale
    does not matter, and so neither do loss scaling, clipping and the reduction over a batch.

    Args:
        params: Parameters, or groups of them; :meth:`trady.engine.Engine.parameters`.
        lr: How far a step moves a weight, as a root mean square; 0.001 is a good start for fine-tuning.
        iterations: How often rows and columns are scaled in turn.
        weight_decay: Decoupled, as AdamW's: weights shrink by ``lr * weight_decay`` of themselves.

    Raises:
        ValueError: An option is out of its range.
        RuntimeError: A gradient is sparse.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2, 2))
        >>> optimizer = SinkGD([weight], lr=0.01)
        >>> weight.sum().backward()
        >>> _ = optimizer.step()
        >>> weight.detach().flatten().tolist() == [weight[0, 0].item()] * 4
        True

    Known limitations:
        Of a matrix of one column, as a slice of one channel of a linear layer is, the sign is left, and a row of mere
        rounding noise moves as far as any. ``lr`` is a mean over the whole matrix: of an embedding the few rows that
        have a gradient move farther.

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

        Returns:
            What ``closure`` returned; ``None`` without one.
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
    """A gradient whose rows and columns are scaled in turn to a root mean square of 1, the columns last.

    Rows and columns of zeros stay zero. The work is one copy of the gradient and the norms of one side, in float32 for
    half types.

    Args:
        gradient: Of any shape; the first dimension are the rows.
        iterations: How often rows and columns are scaled.
    """
    kind = torch.promote_types(gradient.dtype, torch.float32)
    found = gradient.to(kind, memory_format=torch.contiguous_format, copy=True)
    if not found.numel():
        return gradient
    found.div_(torch.linalg.vector_norm(found, ord=torch.inf).clamp_min_(torch.finfo(kind).tiny))
    if found.dim() < 2:
        _to_unit_length_(found.view(1, -1), dim=1)
        found.mul_(found.numel() ** 0.5)
    else:
        matrix = found.view(len(found), -1)
        for _ in range(iterations):
            _to_unit_length_(matrix, dim=1)
            _to_unit_length_(matrix, dim=0)
        found.mul_(len(matrix) ** 0.5)
    return found.to(gradient.dtype)


def _to_unit_length_(matrix: Tensor, dim: int) -> None:
    """Divide what lies along a dimension by its norm, in place."""
    matrix.div_(torch.linalg.vector_norm(matrix, dim=dim, keepdim=True).clamp_min_(_LEAST_NORM))
