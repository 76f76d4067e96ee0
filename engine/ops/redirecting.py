"""What every redirected operation needs: who it runs for, and small questions about tensors.

Held by ``tests/engine/ops/test_ops.py``.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

Handler: TypeAlias = Callable[..., Any]
"""``handler(bindings, func, *args, **kwargs)``: stands in for ``func`` while gradients are recorded."""


class Pick(Protocol):
    """How a drawn layer finds its own channels in what its input group stored."""

    def channels(self, index: Tensor) -> Tensor:
        """Indices of its drawn channels, ``[n]``."""

    def from_stored(self, stored: Tensor, index: Tensor, dim: int) -> Tensor:
        """Its drawn channels of the input, ``n`` along ``dim``."""


class KeptInput(Protocol):
    """What a drawn layer keeps: channels of its input (``None``: the whole input), the index, how to pick from it."""

    tensor: Tensor | None
    index: Tensor
    pick: Pick


class DrawnWeight(Protocol):
    """A weight of which some input channels train."""

    channel_dim: int
    compact: Tensor


class Bindings(Protocol):
    """What the operations of one forward pass are redirected to."""

    def drawn(self, weight: Tensor) -> DrawnWeight | None:
        """The drawn layer a tensor is the whole weight of."""

    def drawn_part(self, weight: Tensor) -> tuple[DrawnWeight, Tensor] | None:
        """The drawn layer a matrix is the weight of, or some output rows, and the slice for those rows."""

    def is_always_trained(self, weight: Tensor) -> bool:
        """Whether a weight trains as a whole."""

    def is_parameter(self, weight: Tensor) -> bool:
        """Whether a tensor is a parameter, or a view of one: at hand without being kept."""

    def keep(self, layer: DrawnWeight, inputs: Tensor, dim: int) -> KeptInput:
        """Store what a drawn layer needs of its input, channels along ``dim``."""

    def keep_for_always_trained(self, inputs: Tensor) -> Tensor:
        """The input of an always-trained weight, copied where it is a small view of something large."""


def is_differentiable(tensor: Tensor) -> bool:
    """Whether autograd follows a tensor now."""
    return tensor.requires_grad and torch.is_grad_enabled()


def keeps_masks(tensor: Tensor) -> bool:
    """Whether an operation on a tensor keeps a packed mask; a compiled graph decides itself what it keeps."""
    return is_differentiable(tensor) and not torch.compiler.is_compiling()


def autocast_type(tensor: Tensor) -> torch.dtype | None:
    """Type that autocast runs products of this tensor in; ``None`` where it leaves them alone."""
    kind = tensor.device.type
    if not torch.is_autocast_enabled(kind) or not tensor.is_floating_point() or tensor.dtype == torch.float64:
        return None
    return torch.get_autocast_dtype(kind)


def cast_for_autocast(tensor: Tensor) -> Tensor:
    """The tensor as autocast would hand it to a convolution or a product."""
    dtype = autocast_type(tensor)
    return tensor if dtype is None or tensor.dtype == dtype else tensor.to(dtype)


def each_dimension(value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    """A stride, padding or the like for each of ``dims`` dimensions: one number stands for all."""
    if isinstance(value, int):
        return (value,) * dims
    return tuple(value) * dims if len(value) == 1 else tuple(value)
