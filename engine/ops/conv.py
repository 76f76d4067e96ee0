"""Convolutions that keep the drawn input channels only, and frozen ones that keep nothing but their weight.

Held by ``tests/engine/ops/test_ops.py``.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from trady.engine.ops.redirecting import (
    Bindings,
    Handler,
    Pick,
    autocast_type,
    cast_for_autocast,
    each_dimension,
    is_differentiable,
)
from trady.planner.lean import (
    Convolution,
    bias_gradient,
    conv_input_gradient,
    conv_slice_gradient,
    conv_weight_gradient,
)

_aten: Final = torch.ops.aten


class _PlainConvolution(torch.autograd.Function):
    """A convolution that keeps its input only where its weight trains, and a cast of its weight never."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, how: Convolution) -> Tensor:
        """Run it; a cast of the weight is made again in backward, not kept."""
        ctx.how, ctx.input_size = how, inputs.shape[2:]
        ctx.save_for_backward(weight, *([inputs] if ctx.needs_input_grad[1] else []))
        return _run(how, inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Gradients of input, weight and bias."""
        (weight, *inputs), grad = ctx.saved_tensors, grads[0]
        to_input = to_weight = to_bias = None
        if ctx.needs_input_grad[1]:
            to_weight = conv_weight_gradient(grad, inputs[0], tuple(weight.shape), ctx.how).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            to_bias = bias_gradient(grad, 1).to(weight.dtype)
        if ctx.needs_input_grad[0]:
            to_input = conv_input_gradient(grad, weight.to(grad.dtype), ctx.input_size, ctx.how)
        return to_input, to_weight, to_bias, None


class _Drawing(NamedTuple):
    """How a drawn layer convolves, and how it finds its channels in what is stored."""

    how: Convolution
    pick: Pick


class _DrawnConvolution(torch.autograd.Function):
    """A convolution that trains the drawn input channels of its weight."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        compact: Tensor,
        bias: Tensor | None,
        weight: Tensor,
        stored: Tensor | None,
        index: Tensor,
        drawing: _Drawing,
    ) -> Tensor:
        """Run it with the whole weight; keep the stored channels."""
        ctx.how, ctx.pick = drawing
        ctx.input_size = inputs.shape[2:]
        ctx.in_channels, ctx.slice_shape, ctx.slice_dtype = inputs.shape[1], compact.shape, compact.dtype
        ctx.save_for_backward(weight, inputs if stored is None else stored, index)
        return _run(ctx.how, inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Gradients of input, slice and bias."""
        weight, stored, index = ctx.saved_tensors
        grad = grads[0]
        to_input = to_slice = to_bias = None
        if ctx.needs_input_grad[1]:
            channels = ctx.pick.channels(index)
            drawn = ctx.pick.from_stored(stored, index, 1)
            to_slice = conv_slice_gradient(grad, drawn, channels, ctx.slice_shape, ctx.in_channels, ctx.how)
            to_slice = to_slice.to(ctx.slice_dtype)
            del drawn
        if ctx.needs_input_grad[2]:
            to_bias = bias_gradient(grad, 1).to(ctx.slice_dtype)
        if ctx.needs_input_grad[0]:
            to_input = conv_input_gradient(grad, weight.to(grad.dtype), ctx.input_size, ctx.how)
        return to_input, to_slice, to_bias, None, None, None, None


def _run(how: Convolution, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``torch.convolution`` with the casts of autocast, which passes it by on the CPU."""
    return how(cast_for_autocast(inputs), cast_for_autocast(weight), None if bias is None else cast_for_autocast(bias))


def _convolve(bindings: Bindings, inputs: Tensor, weight: Tensor, bias: Tensor | None, how: Convolution) -> Tensor:
    """A convolution of a batch, or of one sample without a batch dimension."""
    if inputs.dim() == len(how.stride) + 1:
        return _convolve_batch(bindings, inputs.unsqueeze(0), weight, bias, how).squeeze(0)
    return _convolve_batch(bindings, inputs, weight, bias, how)


def _convolve_batch(
    bindings: Bindings, inputs: Tensor, weight: Tensor, bias: Tensor | None, how: Convolution
) -> Tensor:
    """A convolution of whatever kind, redirected by what its weight is."""
    drawn = bindings.drawn(weight)
    inputs = cast_for_autocast(inputs)
    if drawn is not None:
        kept = bindings.keep(drawn, inputs, 1)
        result: Tensor = _DrawnConvolution.apply(
            inputs, drawn.compact, bias, weight, kept.tensor, kept.index, _Drawing(how, kept.pick)
        )
        return result
    if bindings.is_always_trained(weight):
        inputs = bindings.keep_for_always_trained(inputs)
        if autocast_type(inputs) is None:
            return how(inputs, weight, bias)
    elif not is_differentiable(inputs) and not (bias is not None and is_differentiable(bias)):
        return _run(how, inputs, weight, bias)
    result = _PlainConvolution.apply(inputs, weight, bias, how)
    return result


def _padded(inputs: Tensor, weight: Tensor, padding: Any, dilation: tuple[int, ...]) -> tuple[Tensor, tuple[int, ...]]:
    """Padding by number; ``same`` that is uneven is padded beforehand, as PyTorch does."""
    if not isinstance(padding, str):
        return inputs, each_dimension(padding, len(dilation))
    if padding == "valid":
        return inputs, (0,) * len(dilation)
    totals = [step * (size - 1) for step, size in zip(dilation, weight.shape[2:], strict=True)]
    extra = [total % 2 for total in totals]
    if any(extra):
        inputs = F.pad(inputs, [amount for total in reversed(extra) for amount in (0, total)])
    return inputs, tuple(total // 2 for total in totals)


class _ConvCall(NamedTuple):
    """Arguments of ``conv1d`` to ``conv3d``, named and defaulted as PyTorch's."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None = None
    stride: int | Sequence[int] = 1
    padding: str | int | Sequence[int] = 0
    dilation: int | Sequence[int] = 1
    groups: int = 1


class _TransposedCall(NamedTuple):
    """Arguments of ``conv_transpose1d`` to ``conv_transpose3d``."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None = None
    stride: int | Sequence[int] = 1
    padding: int | Sequence[int] = 0
    output_padding: int | Sequence[int] = 0
    groups: int = 1
    dilation: int | Sequence[int] = 1


def _conv(dims: int) -> Handler:
    def handle(bindings: Bindings, func: Any, *args: Any, **kwargs: Any) -> Tensor:
        call = _ConvCall(*args, **kwargs)
        steps, spread = each_dimension(call.stride, dims), each_dimension(call.dilation, dims)
        inputs, pads = _padded(call.input, call.weight, call.padding, spread)
        how = Convolution(steps, pads, spread, False, (0,) * dims, call.groups)
        return _convolve(bindings, inputs, call.weight, call.bias, how)

    return handle


def _conv_transpose(dims: int) -> Handler:
    def handle(bindings: Bindings, func: Any, *args: Any, **kwargs: Any) -> Tensor:
        call = _TransposedCall(*args, **kwargs)
        steps, pads, spread, more = (
            each_dimension(value, dims) for value in (call.stride, call.padding, call.dilation, call.output_padding)
        )
        how = Convolution(steps, pads, spread, True, more, call.groups)
        return _convolve(bindings, call.input, call.weight, call.bias, how)

    return handle


class _AnyCall(NamedTuple):
    """Arguments of ``torch.convolution``."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    transposed: bool
    output_padding: Sequence[int]
    groups: int


def _convolution(bindings: Bindings, func: Any, *args: Any, **kwargs: Any) -> Tensor:
    call = _AnyCall(*args, **kwargs)
    steps, pads, spread, more = map(tuple, (call.stride, call.padding, call.dilation, call.output_padding))
    how = Convolution(steps, pads, spread, call.transposed, more, call.groups)
    return _convolve_batch(bindings, call.input, call.weight, call.bias, how)


HANDLERS: Final[dict[Any, Handler]] = {
    torch.conv1d: _conv(1),
    torch.conv2d: _conv(2),
    torch.conv3d: _conv(3),
    torch.conv_transpose1d: _conv_transpose(1),
    torch.conv_transpose2d: _conv_transpose(2),
    torch.conv_transpose3d: _conv_transpose(3),
    torch.convolution: _convolution,
    _aten.conv1d.default: _conv(1),
    _aten.conv2d.default: _conv(2),
    _aten.conv3d.default: _conv(3),
    _aten.conv1d.padding: _conv(1),
    _aten.conv2d.padding: _conv(2),
    _aten.conv3d.padding: _conv(3),
    _aten.conv_transpose1d.default: _conv_transpose(1),
    _aten.conv_transpose2d.input: _conv_transpose(2),
    _aten.conv_transpose3d.input: _conv_transpose(3),
    _aten.convolution.default: _convolution,
}
