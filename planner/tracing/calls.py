"""Operations as they were called, without the tensors, so that they can be repeated on others.

Held by ``tests/planner/tracing/test_tracing.py``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trady.planner.models import map_tensors


@dataclass(frozen=True)
class Shape:
    """What it takes to make a tensor like another one; the tensor itself would keep its memory and graph alive."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool

    @classmethod
    def of(cls, tensor: Tensor) -> "Shape":
        """Describe a tensor."""
        return cls(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype, tensor.device, tensor.requires_grad)

    def new(self) -> Tensor:
        """An empty tensor of this description, without a gradient."""
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)

    def zeros(self) -> Tensor:
        """Zeros: valid indices, and no denormal numbers to slow kernels down; elements may share memory."""
        tensor = self.new()
        if tensor.numel():
            tensor.as_strided((tensor.untyped_storage().nbytes() // tensor.element_size(),), (1,)).zero_()
        return tensor


@dataclass(frozen=True)
class Call:
    """An operation as it was called, tensors replaced by their :class:`Shape`."""

    function: Any
    args: Sequence[Any]
    kwargs: Mapping[str, Any]

    @classmethod
    def of(cls, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> "Call":
        """Describe a call."""
        return cls(function, map_tensors(Shape.of, args), map_tensors(Shape.of, kwargs))

    @property
    def target(self) -> str:
        """Schema name without the overload, ``aten::convolution``."""
        return str(self.function.name()).split(".")[0]

    @property
    def key(self) -> str:
        """Equal for calls that do the same."""
        return f"{self.function.name()} {self.args!r} {self.kwargs!r}"

    @property
    def named(self) -> dict[str, Any]:
        """Arguments by their names in the operation's schema."""
        names = (argument.name for argument in self.function._schema.arguments)
        return dict(zip(names, self.args, strict=False)) | dict(self.kwargs)

    def with_tensors(self, make: Callable[[str, Shape], Tensor]) -> tuple[list[Any], dict[str, Any]]:
        """Arguments with every :class:`Shape` replaced by what ``make(argument, shape)`` gives."""

        def fresh(name: str, value: Any) -> Any:
            if isinstance(value, list | tuple):
                return [fresh(name, item) for item in value]
            return make(name, value) if isinstance(value, Shape) else value

        names = (argument.name for argument in self.function._schema.arguments)
        args = [fresh(name, value) for name, value in zip(names, self.args, strict=False)]
        return args, {name: fresh(name, value) for name, value in self.kwargs.items()}
