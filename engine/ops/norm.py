"""Batch norm with frozen statistics and affine: an elementwise scale that keeps nothing.

Held by ``tests/engine/ops/test_ops.py``.
"""

from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from trady.engine.ops.redirecting import Handler, is_differentiable


class _FrozenBatchNorm(torch.autograd.Function):
    """``dx = dy * weight / sqrt(var + eps)``: neither input nor output is read."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        mean: Tensor,
        variance: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
    ) -> Tensor:
        """PyTorch's own batch norm in evaluation mode."""
        ctx.eps = eps
        ctx.save_for_backward(*([variance] if weight is None else [variance, weight]))
        return F.batch_norm(inputs, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Scale by channel."""
        variance, *weight = ctx.saved_tensors
        scale = (variance + ctx.eps).rsqrt()
        if weight:
            scale = scale * weight[0]
        shape = [1, -1] + [1] * (grads[0].dim() - 2)
        return grads[0] * scale.to(grads[0].dtype).view(shape), None, None, None, None, None


class _NormCall(NamedTuple):
    """Arguments of ``F.batch_norm``, named and defaulted as PyTorch's."""

    input: Tensor
    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None = None
    bias: Tensor | None = None
    training: bool = False
    momentum: float = 0.1
    eps: float = 1e-5


class _AtenCall(NamedTuple):
    """Arguments of ``torch.batch_norm``."""

    input: Tensor
    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    training: bool
    momentum: float
    eps: float
    cudnn_enabled: bool = True


def _batch_norm(_: Any, func: Any, *args: Any, **kwargs: Any) -> Tensor:
    call = _NormCall(*args, **kwargs)
    trained = any(affine is not None and affine.requires_grad for affine in (call.weight, call.bias))
    no_statistics = call.running_mean is None or call.running_var is None
    if call.training or trained or no_statistics or not is_differentiable(call.input):
        return F.batch_norm(*call)
    result: Tensor = _FrozenBatchNorm.apply(*call[:5], call.eps)
    return result


def _aten_batch_norm(_: Any, func: Any, *args: Any, **kwargs: Any) -> Tensor:
    named = _AtenCall(*args, **kwargs)._asdict()
    named.pop("cudnn_enabled")
    return _batch_norm(_, func, **named)


HANDLERS: Final[dict[Any, Handler]] = {
    F.batch_norm: _batch_norm,
    torch.batch_norm: _aten_batch_norm,
    torch.ops.aten.batch_norm.default: _aten_batch_norm,
}
