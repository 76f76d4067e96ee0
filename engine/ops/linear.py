"""Matrix products with a weight: linear layers, ``addmm``, GPT-2's Conv1D, packed attention projections.

Held by ``tests/engine/ops/test_ops.py``.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from trady.engine.ops.redirecting import Bindings, Handler, Pick, autocast_type, cast_for_autocast, is_differentiable
from trady.planner.lean import bias_gradient

_aten: Final = torch.ops.aten

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""``product(inputs [..., C], right [C, C'], bias) -> [..., C']`` by the user's own call."""


class _CastProduct(torch.autograd.Function):
    """A product with a parameter under autocast: the parameter is cast again in backward, its cast not kept."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, right: Tensor, bias: Tensor | None, product: Product) -> Tensor:
        """Run it; the input is kept where the parameter trains."""
        ctx.save_for_backward(right, *([inputs] if ctx.needs_input_grad[1] else []))
        return product(inputs, right, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Gradients of input, parameter and bias."""
        (right, *kept), grad = ctx.saved_tensors, grads[0]
        to_input = to_right = to_bias = None
        if ctx.needs_input_grad[0]:
            to_input = grad.matmul(right.to(grad.dtype).t())
        if ctx.needs_input_grad[1]:
            inputs = kept[0].reshape(-1, kept[0].shape[-1])
            to_right = inputs.t().mm(grad.reshape(-1, grad.shape[-1])).to(right.dtype)
        if ctx.needs_input_grad[2]:
            to_bias = bias_gradient(grad, grad.dim() - 1).to(right.dtype)
        return to_input, to_right, to_bias, None


class _Drawing(NamedTuple):
    """How a drawn layer multiplies, along which dimension channels run in its slice, and how it finds them."""

    product: Product
    channel_dim: int
    pick: Pick


class _DrawnProduct(torch.autograd.Function):
    """A product that trains the drawn input channels of its weight."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        compact: Tensor,
        bias: Tensor | None,
        right: Tensor,
        stored: Tensor | None,
        index: Tensor,
        drawing: _Drawing,
    ) -> Tensor:
        """Run it with the whole weight; keep the stored channels."""
        product, ctx.channel_dim, ctx.pick = drawing
        ctx.slice_dtype = compact.dtype
        ctx.save_for_backward(right, inputs if stored is None else stored, index)
        return product(inputs, right, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Gradients of input, slice ``[C', n]`` (``[n, C']`` where channels come first) and bias."""
        right, stored, index = ctx.saved_tensors
        grad = grads[0]
        to_input = to_slice = to_bias = None
        if ctx.needs_input_grad[1]:
            drawn = ctx.pick.from_stored(stored, index, stored.dim() - 1)
            rows = grad.reshape(-1, grad.shape[-1])
            columns = drawn.reshape(-1, drawn.shape[-1])
            to_slice = rows.t().mm(columns) if ctx.channel_dim == 1 else columns.t().mm(rows)
            to_slice = to_slice.to(ctx.slice_dtype)
            del drawn, columns
        if ctx.needs_input_grad[2]:
            to_bias = bias_gradient(grad, grad.dim() - 1).to(ctx.slice_dtype)
        if ctx.needs_input_grad[0]:
            to_input = grad.matmul(right.to(grad.dtype).t())
        return to_input, to_slice, to_bias, None, None, None, None


def _multiply(
    bindings: Bindings, inputs: Tensor, weight: Tensor, right: Tensor, bias: Tensor | None, product: Product
) -> Tensor:
    """A product with ``right [C, C']``, which is ``weight`` or its transpose, redirected by what that is."""
    found = bindings.drawn_part(weight)
    if found is not None:
        layer, compact = found
        inputs = cast_for_autocast(inputs)
        kept = bindings.keep(layer, inputs, inputs.dim() - 1)
        drawing = _Drawing(product, layer.channel_dim, kept.pick)
        result: Tensor = _DrawnProduct.apply(inputs, compact, bias, right, kept.tensor, kept.index, drawing)
        return result
    if bindings.is_always_trained(weight):
        inputs = bindings.keep_for_always_trained(inputs)
    elif not is_differentiable(inputs):
        return product(inputs, right, bias)
    if autocast_type(inputs) is None or not bindings.is_parameter(weight):
        return product(inputs, right, bias)
    result = _CastProduct.apply(cast_for_autocast(inputs), right, bias, product)
    return result


def _by_linear(inputs: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(inputs, right.t(), bias)


def _by_matmul(inputs: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
    return inputs.matmul(right)


def _linear(bindings: Bindings, func: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if weight.dim() != 2:
        return F.linear(input, weight, bias)
    return _multiply(bindings, input, weight, weight.t(), bias, _by_linear)


def _matmul(bindings: Bindings, func: Any, input: Tensor, other: Tensor, **kwargs: Any) -> Tensor:
    if kwargs or not isinstance(other, Tensor) or other.dim() != 2 or not isinstance(input, Tensor):
        return func(input, other, **kwargs)  # type: ignore[no-any-return]
    return _multiply(bindings, input, other, other, None, _by_matmul)


def _aten_mm(bindings: Bindings, func: Any, input: Tensor, mat2: Tensor, **kwargs: Any) -> Tensor:
    return _matmul(bindings, func, input, mat2, **kwargs)


def _addmm(
    bindings: Bindings,
    func: Any,
    input: Tensor,
    mat1: Tensor,
    mat2: Tensor,
    *,
    beta: float = 1,
    alpha: float = 1,
) -> Tensor:
    if beta != 1 or alpha != 1 or input.dim() != 1:
        added = _multiply(bindings, mat1, mat2, mat2, None, _by_matmul).mul(alpha)
        return added if beta == 0 else added.add(input, alpha=beta)

    def product(inputs: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
        assert bias is not None
        return torch.addmm(bias, inputs, right)

    return _multiply(bindings, mat1, mat2, mat2, input, product)


def _aten_addmm(
    bindings: Bindings, func: Any, self: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    return _addmm(bindings, func, self, mat1, mat2, beta=beta, alpha=alpha)


HANDLERS: Final[dict[Any, Handler]] = {
    F.linear: _linear,
    _aten.linear.default: _linear,
    torch.matmul: _matmul,
    torch.Tensor.matmul: _matmul,
    torch.Tensor.__matmul__: _matmul,
    torch.mm: _aten_mm,
    torch.Tensor.mm: _aten_mm,
    _aten.matmul.default: _aten_mm,
    _aten.mm.default: _aten_mm,
    torch.addmm: _addmm,
    torch.Tensor.addmm: _addmm,
    _aten.addmm.default: _aten_addmm,
}
