"""Activations and dropout that keep one bit per element: where the gradient passes.

Held by ``tests/engine/ops/test_ops.py``.
"""

from collections.abc import Callable
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from trady.engine.ops.redirecting import Handler, keeps_masks
from trady.planner.lean import masked_gradient, pack_bits, unpack_bits


class _Masked(torch.autograd.Function):
    """An elementwise function whose slope is one of two numbers, told apart by its output."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        run: Callable[[Tensor], Tensor],
        lower: float,
        upper: float | None,
        slope: float,
        in_place: bool,
    ) -> Tensor:
        """Run the plain function; keep where ``lower < output < upper``."""
        outputs = run(inputs)
        if in_place:
            ctx.mark_dirty(inputs)
        passes = outputs.gt(lower)
        ctx.layout, ctx.slope = (passes.shape, passes.stride()), slope
        ctx.save_for_backward(pack_bits(passes, None if upper is None else outputs.lt(upper)))
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """The gradient where the output was inside, ``slope`` times it elsewhere."""
        (packed,) = ctx.saved_tensors
        passes = unpack_bits(packed, *ctx.layout)
        return masked_gradient(grads[0], passes, slope=ctx.slope), None, None, None, None, None


class _Dropped(torch.autograd.Function):
    """Dropout that keeps its mask as bits."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, probability: float, in_place: bool) -> Tensor:
        """Draw the same random numbers as PyTorch's own dropout on the same device."""
        if inputs.device.type == "cuda":
            outputs, kept = torch.native_dropout(inputs, probability, True)
            if in_place:
                outputs = inputs.copy_(outputs)
        else:
            noise = torch.empty_like(inputs).bernoulli_(1 - probability)
            kept = noise.ne(0)
            noise.div_(1 - probability)
            outputs = inputs.mul_(noise) if in_place else inputs * noise
        if in_place:
            ctx.mark_dirty(inputs)
        ctx.layout, ctx.scale = (kept.shape, kept.stride()), 1 / (1 - probability)
        ctx.save_for_backward(pack_bits(kept))
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """The gradient of what was not dropped, scaled up."""
        (packed,) = ctx.saved_tensors
        kept = unpack_bits(packed, *ctx.layout)
        return masked_gradient(grads[0], kept, scale=ctx.scale), None, None


def _masked(
    inputs: Tensor, out: Callable[..., Tensor], into: Callable[..., Tensor], in_place: bool, bounds: tuple[float, ...]
) -> Tensor:
    lower, upper, slope = bounds
    run = into if in_place else out
    result: Tensor = _Masked.apply(inputs, run, lower, None if upper == _NO_BOUND else upper, slope, in_place)
    return result


_NO_BOUND: Final = float("inf")
_RELU: Final = (0.0, _NO_BOUND, 0.0)


def _relu(_: Any, func: Any, input: Tensor, inplace: bool = False) -> Tensor:
    if not keeps_masks(input):
        return func(input, inplace) if func is F.relu else func(input)
    return _masked(input, torch.relu, torch.relu_, inplace, _RELU)


def _relu_(_: Any, func: Any, input: Tensor) -> Tensor:
    if not keeps_masks(input):
        return func(input)  # type: ignore[no-any-return]
    return _masked(input, torch.relu, torch.relu_, True, _RELU)


def _relu6(_: Any, func: Any, input: Tensor, inplace: bool = False) -> Tensor:
    if not keeps_masks(input):
        return func(input, inplace)  # type: ignore[no-any-return]
    return _masked(input, F.relu6, _relu6_into, inplace, (0.0, 6.0, 0.0))


def _relu6_into(inputs: Tensor) -> Tensor:
    return F.relu6(inputs, inplace=True)


def _hardtanh(
    _: Any, func: Any, input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Tensor:
    if not keeps_masks(input):
        return F.hardtanh(input, min_val, max_val, inplace)

    def out(inputs: Tensor) -> Tensor:
        return F.hardtanh(inputs, min_val, max_val)

    def into(inputs: Tensor) -> Tensor:
        return F.hardtanh(inputs, min_val, max_val, inplace=True)

    return _masked(input, out, into, inplace, (float(min_val), float(max_val), 0.0))


def _hardtanh_(_: Any, func: Any, input: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    return _hardtanh(_, func, input, min_val, max_val, True)


def _leaky_relu(_: Any, func: Any, input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    if not keeps_masks(input) or negative_slope < 0:
        return F.leaky_relu(input, negative_slope, inplace)

    def out(inputs: Tensor) -> Tensor:
        return F.leaky_relu(inputs, negative_slope)

    def into(inputs: Tensor) -> Tensor:
        return F.leaky_relu(inputs, negative_slope, inplace=True)

    return _masked(input, out, into, inplace, (0.0, _NO_BOUND, float(negative_slope)))


def _leaky_relu_(_: Any, func: Any, input: Tensor, negative_slope: float = 0.01) -> Tensor:
    return _leaky_relu(_, func, input, negative_slope, True)


def _dropout(_: Any, func: Any, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if not training or not keeps_masks(input) or not 0 < p < 1:
        return F.dropout(input, p, training, inplace)
    result: Tensor = _Dropped.apply(input, p, inplace)
    return result


def _torch_dropout(_: Any, func: Any, input: Tensor, p: float, train: bool) -> Tensor:
    return _dropout(_, func, input, p, train)


HANDLERS: Final[dict[Any, Handler]] = {
    F.relu: _relu,
    torch.relu: _relu,
    torch.Tensor.relu: _relu,
    torch.ops.aten.relu.default: _relu,
    torch.relu_: _relu_,
    torch.Tensor.relu_: _relu_,
    torch.ops.aten.relu_.default: _relu_,
    F.relu6: _relu6,
    F.hardtanh: _hardtanh,
    torch.ops.aten.hardtanh.default: _hardtanh,
    F.hardtanh_: _hardtanh_,
    torch.ops.aten.hardtanh_.default: _hardtanh_,
    F.leaky_relu: _leaky_relu,
    torch.ops.aten.leaky_relu.default: _leaky_relu,
    F.leaky_relu_: _leaky_relu_,
    torch.ops.aten.leaky_relu_.default: _leaky_relu_,
    F.dropout: _dropout,
    torch.dropout: _torch_dropout,
    torch.ops.aten.dropout.default: _torch_dropout,
}
