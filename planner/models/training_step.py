"""One training step: inputs, outputs, targets and the loss, for every kind of model we accept.

Held by ``tests/integration/test_saved_bytes.py``.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trady.planner.errors import TracingError
from trady.planner.options import DType

Inputs: TypeAlias = Tensor | tuple[Any, ...] | dict[str, Any]
LossFunction: TypeAlias = Callable[[Any, Any], Tensor]
Nested = TypeVar("Nested")
"""Tensors in tuples, lists and mappings, and whatever stands beside them."""

CROSS_ENTROPY: Final = "cross_entropy"
MODEL_LOSS: Final = "model"


@dataclass(frozen=True)
class Batch:
    """One batch of a training set.

    Args:
        inputs: What the model is called with: a tensor ``[B, ...]``, positional arguments, or keyword arguments.
        targets: Second argument of the loss; ``None`` where the model returns its own loss.
    """

    inputs: Inputs
    targets: Any = None


def call_model(model: Callable[..., object], inputs: Inputs) -> Any:
    """Call the model the way its inputs ask for: keywords, positions, or one tensor."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, tuple | list):
        return model(*inputs)
    return model(inputs)


def input_tensors(inputs: object) -> Iterator[Tensor]:
    """Every tensor inside nested inputs, in order."""
    if isinstance(inputs, Tensor):
        yield inputs
    elif isinstance(inputs, Mapping):
        for value in inputs.values():
            yield from input_tensors(value)
    elif isinstance(inputs, tuple | list):
        for value in inputs:
            yield from input_tensors(value)


def map_tensors(function: Callable[[Tensor], object], inputs: Nested) -> Nested:
    """The same nested inputs with every tensor replaced; lists come back as tuples."""
    mapped: Any = inputs
    if isinstance(inputs, Tensor):
        mapped = function(inputs)
    elif isinstance(inputs, Mapping):
        mapped = {name: map_tensors(function, value) for name, value in inputs.items()}
    elif isinstance(inputs, tuple | list):
        mapped = tuple(map_tensors(function, value) for value in inputs)
    return mapped  # type: ignore[no-any-return]


def batch_size_of(inputs: Inputs) -> int:
    """Samples in a batch: the first dimension of its first tensor.

    Returns:
        Samples.

    Raises:
        TracingError: No tensor has a batch dimension.
    """
    for tensor in input_tensors(inputs):
        if tensor.dim() > 0:
            return tensor.shape[0]
    raise TracingError(
        "The inputs hold no tensor with a batch dimension. Give for instance torch.zeros(1, 3, 224, 224)."
    )


def own_loss(outputs: object) -> Tensor | None:
    """The loss a model computes itself, where its output carries one."""
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
    if loss is None and isinstance(outputs, Tensor) and outputs.dim() == 0 and outputs.is_floating_point():
        loss = outputs
    return loss if isinstance(loss, Tensor) else None


def logits_of(outputs: object) -> Tensor:
    """The tensor that looks like logits: ``.logits``, the first entry of a tuple or mapping, or the output itself.

    Returns:
        The logits.

    Raises:
        TracingError: No floating-point tensor of two or more dimensions is among the outputs.
    """
    found = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    candidates = [found] if isinstance(found, Tensor) else list(input_tensors(outputs))
    for tensor in candidates:
        if tensor.is_floating_point() and tensor.dim() >= 2:
            return tensor
    raise TracingError(
        f"The model's output ({type(outputs).__name__}) has nothing that looks like logits and no loss of its own. "
        "Give a loss: loss=function(outputs, targets) in Python, --loss module:function on the command line."
    )


def cross_entropy(outputs: object, targets: Tensor) -> Tensor:
    """Mean cross-entropy of the logits among a model's outputs.

    Logits ``[B, K]`` take targets ``[B]``; token logits ``[B, T, K]`` take ``[B, T]``; maps ``[B, K, H, W]``
    take ``[B, H, W]``.

    Returns:
        The mean over the samples, a scalar.
    """
    logits = logits_of(outputs)
    if logits.dim() == 3:
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    return F.cross_entropy(logits, targets)


def synthetic_targets(outputs: object, generator: torch.Generator | None = None) -> Tensor:
    """Uniform random class labels of the shape :func:`cross_entropy` expects for these outputs."""
    logits = logits_of(outputs)
    class_dim = 2 if logits.dim() == 3 else 1
    shape = [size for dim, size in enumerate(logits.shape) if dim != class_dim]
    return torch.randint(logits.shape[class_dim], shape, generator=generator).to(logits.device)


def loss_name_of(outputs: object, loss: LossFunction | None) -> str:
    """How the step's loss is named in a plan: the user's function, the model's own, or cross-entropy."""
    if loss is not None and loss is not cross_entropy:
        module = getattr(loss, "__module__", type(loss).__module__)
        return f"{module}:{getattr(loss, '__qualname__', type(loss).__qualname__)}"
    if loss is None and own_loss(outputs) is not None:
        return MODEL_LOSS
    logits_of(outputs)
    return CROSS_ENTROPY


def step_loss(outputs: object, targets: Any, loss: LossFunction | None) -> Tensor:
    """The scalar a training step differentiates.

    Args:
        outputs: What the model returned.
        targets: Second argument of the loss.
        loss: The user's ``loss(outputs, targets)``; ``None`` takes the model's own loss, else cross-entropy.

    Returns:
        The loss, a scalar.
    """
    if loss is not None:
        return loss(outputs, targets)
    own = own_loss(outputs)
    return cross_entropy(outputs, targets) if own is None else own


def is_on_meta(model: nn.Module) -> bool:
    """Whether the model has no memory for weights: nothing of it can be run or measured."""
    return any(parameter.is_meta for parameter in model.parameters())


def torch_dtype(dtype: DType | None) -> torch.dtype | None:
    """The torch type that a plan's element type is run in; int8 is accounted for on float32."""
    if dtype is None:
        return None
    of_torch: torch.dtype = torch.float32 if dtype is DType.INT8 else getattr(torch, dtype.value)
    return of_torch


def dtype_name(dtype: torch.dtype) -> str:
    """A torch type by its name, ``"float32"``."""
    return str(dtype).removeprefix("torch.")
