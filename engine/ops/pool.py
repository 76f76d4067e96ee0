"""Pooling: the maximum's position inside its window in one byte, averages keep nothing but shapes.

Held by ``tests/engine/ops/test_ops.py``.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from trady.engine.ops.redirecting import Handler, each_dimension, is_differentiable, keeps_masks
from trady.planner.lean import Pooling, max_pool_input_gradient, window_positions

_aten: Final = torch.ops.aten
_MAX_POOLS: Final = {2: _aten.max_pool2d_with_indices.default, 3: _aten.max_pool3d_with_indices.default}
_AVERAGE_GRADIENTS: Final = {2: _aten.avg_pool2d_backward.default, 3: _aten.avg_pool3d_backward.default}
_ADAPTIVE: Final = {2: _aten._adaptive_avg_pool2d.default, 3: _aten._adaptive_avg_pool3d.default}
_ADAPTIVE_GRADIENTS: Final = {
    2: _aten._adaptive_avg_pool2d_backward.default,
    3: _aten._adaptive_avg_pool3d_backward.default,
}


def _run_max_pool(inputs: Tensor, pooling: Pooling) -> tuple[Tensor, Tensor]:
    """PyTorch's own pooling: outputs and flat indices."""
    outputs, indices = _MAX_POOLS[len(pooling.kernel)](
        inputs,
        list(pooling.kernel),
        list(pooling.stride),
        list(pooling.padding),
        list(pooling.dilation),
        pooling.ceil_mode,
    )
    return outputs, indices


class _MaxPool(torch.autograd.Function):
    """Max pooling that keeps positions inside windows instead of int64 indices and the input."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, pooling: Pooling) -> tuple[Tensor, Tensor]:
        """PyTorch's own pooling, its indices made small."""
        outputs, indices = _run_max_pool(inputs, pooling)
        ctx.pooling = pooling
        ctx.mark_non_differentiable(indices)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(window_positions(indices, pooling))
        return outputs, indices

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        """Each gradient goes to its window's maximum."""
        if grads[0] is None:
            return None, None
        (positions,) = ctx.saved_tensors
        return max_pool_input_gradient(grads[0], positions, ctx.pooling), None


class _AveragePool(torch.autograd.Function):
    """Average pooling: backward needs the input's shape, not the input."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, run: Callable[[Tensor], Tensor], gradient: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """Run the plain pooling."""
        ctx.shape, ctx.gradient = inputs.shape, gradient
        ctx.is_channels_last = inputs.dim() == 4 and inputs.is_contiguous(memory_format=torch.channels_last)
        return run(inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """PyTorch's own gradient, on a stand-in of the input's shape."""
        found = ctx.gradient(grads[0], grads[0].new_empty(1).expand(ctx.shape))
        return found.contiguous(memory_format=torch.channels_last) if ctx.is_channels_last else found, None, None


def _stride(stride: int | Sequence[int] | None, kernel: tuple[int, ...]) -> tuple[int, ...]:
    """Where none is given, windows lie side by side."""
    if stride is None or (isinstance(stride, Sequence) and not stride):
        return kernel
    return each_dimension(stride, len(kernel))


class _MaxPoolCall(NamedTuple):
    """Arguments of max pooling, named and defaulted as PyTorch's."""

    input: Tensor
    kernel_size: int | Sequence[int]
    stride: int | Sequence[int] | None = None
    padding: int | Sequence[int] = 0
    dilation: int | Sequence[int] = 1
    ceil_mode: bool = False
    return_indices: bool = True


class _AveragePoolCall(NamedTuple):
    """Arguments of average pooling; in one dimension there is no divisor to set."""

    input: Tensor
    kernel_size: int | Sequence[int]
    stride: int | Sequence[int] | None = None
    padding: int | Sequence[int] = 0
    ceil_mode: bool = False
    count_include_pad: bool = True
    divisor_override: int | None = None


def _max_pool_with_indices(dims: int) -> Handler:
    """Max pooling over the last ``dims`` dimensions; one dimension runs as two, the first of size 1."""

    def handle(_: Any, func: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        call = _MaxPoolCall(*args, **kwargs)
        kernel = each_dimension(call.kernel_size, dims)
        places = (
            tuple(call.input.shape[-dims:]),
            kernel,
            _stride(call.stride, kernel),
            each_dimension(call.padding, dims),
            each_dimension(call.dilation, dims),
        )
        unbatched = call.input.dim() == dims + 1
        inputs = call.input.unsqueeze(0) if unbatched else call.input
        if dims == 1:
            filler = ((1,), (1,), (1,), (0,), (1,))
            places = tuple(first + place for first, place in zip(filler, places, strict=True))  # type: ignore[assignment]
            inputs = inputs.unsqueeze(-2)
        pooling = Pooling(*places, call.ceil_mode)
        # Steps longer than the input may miss it: such a window has no maximum, and no position of one.
        missing = any(step > size for step, size in zip(pooling.dilation, pooling.input_size, strict=True))
        outputs, indices = _run_max_pool(inputs, pooling) if missing else _MaxPool.apply(inputs, pooling)
        if dims == 1:
            outputs, indices = outputs.squeeze(-2), indices.squeeze(-2)
        return (outputs.squeeze(0), indices.squeeze(0)) if unbatched else (outputs, indices)

    return handle


def _max_pool(dims: int, with_indices: bool = False) -> Handler:
    pool = _max_pool_with_indices(dims)

    def handle(bindings: Any, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not keeps_masks(input):
            return func(input, *args, **kwargs)
        wanted = with_indices or bool(kwargs.get("return_indices", len(args) > 5 and args[5]))
        outputs, indices = pool(bindings, func, input, *args, **kwargs)
        return (outputs, indices) if wanted else outputs

    return handle


def _average_pool(dims: int) -> Handler:
    def handle(_: Any, func: Any, *args: Any, **kwargs: Any) -> Tensor:
        call = _AveragePoolCall(*args, **kwargs)
        kernel = each_dimension(call.kernel_size, dims)
        places = [list(kernel), list(_stride(call.stride, kernel)), list(each_dimension(call.padding, dims))]
        options = [*places, call.ceil_mode, call.count_include_pad, call.divisor_override]

        def run(inputs: Tensor) -> Tensor:
            return func(inputs, *options)  # type: ignore[no-any-return]

        def gradient(grad: Tensor, stand_in: Tensor) -> Tensor:
            to_input: Tensor = _AVERAGE_GRADIENTS[dims](grad, stand_in, *options)
            return to_input

        if not is_differentiable(call.input):
            return run(call.input)
        result: Tensor = _AveragePool.apply(call.input, run, gradient)
        return result

    return handle


def _average_pool_1d(bindings: Any, func: Any, *args: Any, **kwargs: Any) -> Tensor:
    call = _AveragePoolCall(*args, **kwargs)
    kernel = each_dimension(call.kernel_size, 1)
    as_two = call._replace(
        input=call.input.unsqueeze(-2),
        kernel_size=(1, *kernel),
        stride=(1, *_stride(call.stride, kernel)),
        padding=(0, *each_dimension(call.padding, 1)),
    )
    result: Tensor = _average_pool(2)(bindings, F.avg_pool2d, *as_two)
    return result.squeeze(-2)


def _adaptive_average_pool(dims: int) -> Handler:
    """To a size above 1; an average over all positions is a mean, of which autograd keeps nothing."""

    def handle(_: Any, func: Any, input: Tensor, output_size: Any) -> Tensor:
        asked = each_dimension(output_size, dims) if isinstance(output_size, int) else tuple(output_size)
        size = [input.shape[place - dims] if wanted is None else wanted for place, wanted in enumerate(asked)]
        if not is_differentiable(input) or all(wanted == 1 for wanted in size):
            return func(input, size)  # type: ignore[no-any-return]

        def run(inputs: Tensor) -> Tensor:
            outputs: Tensor = _ADAPTIVE[dims](inputs, size)
            return outputs

        result: Tensor = _AveragePool.apply(input, run, _ADAPTIVE_GRADIENTS[dims])
        return result

    return handle


def _adaptive_average_pool_1d(bindings: Any, func: Any, input: Tensor, output_size: Any) -> Tensor:
    wanted = output_size if isinstance(output_size, int) else output_size[0]
    handle = _adaptive_average_pool(2)
    result: Tensor = handle(bindings, F.adaptive_avg_pool2d, input.unsqueeze(-2), (1, wanted))
    return result.squeeze(-2)


HANDLERS: Final[dict[Any, Handler]] = {
    F.max_pool1d: _max_pool(1),
    torch.max_pool1d: _max_pool(1),
    F.max_pool1d_with_indices: _max_pool(1, with_indices=True),
    F.max_pool2d: _max_pool(2),
    torch.max_pool2d: _max_pool(2),
    F.max_pool2d_with_indices: _max_pool(2, with_indices=True),
    F.max_pool3d: _max_pool(3),
    torch.max_pool3d: _max_pool(3),
    F.max_pool3d_with_indices: _max_pool(3, with_indices=True),
    _aten.max_pool1d.default: _max_pool(1),
    _aten.max_pool2d.default: _max_pool(2),
    _aten.max_pool3d.default: _max_pool(3),
    _aten.max_pool2d_with_indices.default: _max_pool(2, with_indices=True),
    F.avg_pool1d: _average_pool_1d,
    F.avg_pool2d: _average_pool(2),
    F.avg_pool3d: _average_pool(3),
    _aten.avg_pool1d.default: _average_pool_1d,
    _aten.avg_pool2d.default: _average_pool(2),
    _aten.avg_pool3d.default: _average_pool(3),
    F.adaptive_avg_pool1d: _adaptive_average_pool_1d,
    F.adaptive_avg_pool2d: _adaptive_average_pool(2),
    F.adaptive_avg_pool3d: _adaptive_average_pool(3),
    _aten.adaptive_avg_pool1d.default: _adaptive_average_pool_1d,
    _aten.adaptive_avg_pool2d.default: _adaptive_average_pool(2),
    _aten.adaptive_avg_pool3d.default: _adaptive_average_pool(3),
}
