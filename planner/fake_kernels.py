"""Fake kernels that say the shapes of results at once, where PyTorch's own run a long decomposition."""

import torch
from torch import Tensor

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
    saved = (torch.empty(channels, dtype=statistics_dtype, device=x.device) for _ in range(2))
    return torch.empty_like(x), *saved
