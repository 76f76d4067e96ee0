"""Fake kernels where PyTorch's own are slow, or say another element type than the real ones.

Held by ``tests/planner/tracing/test_tracing.py``.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

Results = tuple[Tensor, Tensor, Tensor]


def fake_batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Results:
    """``aten::native_batch_norm`` of fake tensors: half of a convolutional network's tracing time otherwise.

    Args:
        x: Input ``[B, C, *positions]``.
        weight: Affine weight ``[C]``.
        bias: Affine bias ``[C]``.
        running_mean: Running statistics ``[C]``.
        running_var: Running statistics ``[C]``.
        training: Whether the batch's own statistics are used.
        momentum: Of the running statistics.
        eps: Added to the variance.

    Returns:
        The output, and the mean and inverse deviation saved for backward (empty with running statistics).
    """
    if x.device.type != "cpu":
        results: Results = torch.ops.aten.native_batch_norm.default(
            x, weight, bias, running_mean, running_var, training, momentum, eps
        )
        return results
    channels = x.shape[1] if training else 0
    statistics_dtype = x.dtype if weight is None else weight.dtype
    mean = torch.empty(channels, dtype=statistics_dtype, device=x.device)
    return torch.empty_like(x), mean, torch.empty_like(mean)


def fake_mixed_norm(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Results:
    """Layer and group norm of fake tensors: on a CPU mixed types (autocast) keep statistics in the weight's type."""
    output, mean, deviation = func(*args, **kwargs)
    named = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | dict(kwargs)
    weight = named["weight"]
    if weight is not None and output.device.type == "cpu" and weight.dtype != output.dtype:
        mean, deviation = mean.to(weight.dtype), deviation.to(weight.dtype)
    return output, mean, deviation


def _batch_norm(_: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Results:
    return fake_batch_norm(*args, **kwargs)


def _device(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.device:
    if isinstance(args[0], FakeTensor):
        return args[0].fake_device
    device: torch.device = func(*args, **kwargs)
    return device


def _rand(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """A random scalar decides whether a layer is dropped (layer drop): the step that keeps most drops none."""
    if len(args[0]) == 0 and kwargs.get("dtype") in (None, torch.float32):
        return torch.tensor(_NEVER_BELOW, dtype=torch.float32)
    drawn: Tensor = func(*args, **kwargs)
    return drawn


def _col2im(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """Fold: the CPU kernel makes its result as large as the columns and resizes it, so that storage stays large."""
    columns: Tensor = args[0]
    folded: Tensor = func(*args, **kwargs)
    if folded.device.type != "cpu" or columns.numel() <= folded.numel():
        return folded
    storage = torch.empty(columns.numel(), dtype=folded.dtype, device=folded.device)
    return storage.as_strided(folded.shape, folded.stride())


def _weight_norm(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Weight norm: the CPU kernel keeps norms of both half types in float32, the fake one of torch 2.14 of one."""
    normed, norms = func(*args, **kwargs)
    is_half = norms.dtype in (torch.float16, torch.bfloat16)
    return normed, norms.float() if is_half and norms.device.type == "cpu" else norms


def _grouped_product(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """Products of experts: the CPU kernel takes float32, the fake one of torch 2.14 half types alone."""
    left, right, *rest = args
    is_refused = left.dtype is torch.float32 and left.device.type == "cpu"
    product: Tensor = func(left.bfloat16(), right.bfloat16(), *rest, **kwargs) if is_refused else func(*args, **kwargs)
    return product.contiguous().float() if is_refused else product


#: Above any probability of dropping, and below one as every number that ``torch.rand`` draws.
_NEVER_BELOW: Final = 1 - 2**-20

_KERNELS: Final[Mapping[Any, Callable[[Any, Sequence[Any], Mapping[str, Any]], Any]]] = {
    torch.ops.prim.device.default: _device,
    torch.ops.aten.rand.default: _rand,
    torch.ops.aten.native_batch_norm.default: _batch_norm,
    torch.ops.aten.native_layer_norm.default: fake_mixed_norm,
    torch.ops.aten.native_group_norm.default: fake_mixed_norm,
    torch.ops.aten.col2im.default: _col2im,
    torch.ops.aten._weight_norm_interface.default: _weight_norm,
    torch.ops.aten._grouped_mm.default: _grouped_product,
}


def run_fake(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Run an operation on fake tensors, by our kernel where we have one."""
    kernel = _KERNELS.get(func)
    return func(*args, **kwargs) if kernel is None else kernel(func, args, kwargs)
