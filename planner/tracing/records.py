"""What a recorded training step is made of: storages, tensors, operations. Plain data, no torch.

Held by ``tests/planner/tracing/test_tracing.py``.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

#: Stands among the parameters for inputs that a model itself makes require a gradient (speech models do, for
#: checkpointing's sake): what follows keeps what backward to them needs, whatever is drawn.
REQUIRING_INPUTS: Final = "(inputs made to require a gradient)"


@dataclass(frozen=True)
class StorageRecord:
    """A block of memory met during the step.

    Args:
        num_bytes: Its size.
        kind: ``parameter``, ``buffer``, ``input`` (the batch and its targets) or ``activation``.
        name: Dotted name of the parameter or buffer; empty otherwise.
        tensor_shape: Shape of the first tensor seen on it.
        tensor_stride: Strides of that tensor, in elements.
        itemsize: Bytes per element of that tensor.
    """

    num_bytes: int
    kind: str
    name: str
    tensor_shape: tuple[int, ...]
    tensor_stride: tuple[int, ...]
    itemsize: int


@dataclass(frozen=True)
class TensorRecord:
    """A view of a storage, as an operation read or wrote it."""

    storage: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: str
    itemsize: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Operand:
    """A tensor argument of an operation.

    Args:
        name: Argument name in the operation's schema.
        tensor: What was passed.
        differentiable: Whether autograd follows it when every parameter trains.
        upstream: Bit set of the parameters it depends on through differentiable paths.
    """

    name: str
    tensor: TensorRecord
    differentiable: bool
    upstream: int


@dataclass(frozen=True)
class Operation:
    """One ATen operation of the forward pass.

    Args:
        target: Schema name, ``aten::convolution``.
        module: Dotted path of the module running it.
        api: The Python function it was reached through, ``dropout``; empty where there was none.
        operands: Tensor arguments.
        outputs: Tensor results.
        attributes: Plain arguments (strides, flags) by schema name.
        saved: Storages autograd packed for it, still alive when the loss exists, with every parameter training.
        triggers: For each saved storage, the operands whose gradient needs it.
    """

    target: str
    module: str
    api: str
    operands: tuple[Operand, ...]
    outputs: tuple[TensorRecord, ...]
    attributes: Mapping[str, Any]
    saved: tuple[int, ...] = ()
    triggers: Mapping[int, frozenset[str]] = field(default_factory=dict)

    def operand(self, name: str) -> Operand | None:
        """The tensor argument of that schema name, if it was given."""
        return next((operand for operand in self.operands if operand.name == name), None)


@dataclass(frozen=True)
class Capture:
    """A recorded training step at one batch size.

    Args:
        batch_size: Samples in the step.
        operations: Forward operations in order, the loss included.
        storages: Every storage met, by index.
        parameters: Parameter names by bit position of :attr:`Operand.upstream`; :data:`REQUIRING_INPUTS` is the last.
        saved: Storages packed by autograd and alive when the loss exists (parameters, buffers, batch left out).
        loss_name: How the loss is named in a plan.
        output: What the loss read: the model's logits, or its own loss.
    """

    batch_size: int
    operations: tuple[Operation, ...]
    storages: tuple[StorageRecord, ...]
    parameters: tuple[str, ...]
    saved: frozenset[int]
    loss_name: str
    output: TensorRecord

    @cached_property
    def reaching_loss(self) -> frozenset[int]:
        """Indices of the operations that the loss depends on: outputs the loss does not read train nothing."""
        found: set[int] = set()
        wanted: set[int] | None = None
        for index in range(len(self.operations) - 1, -1, -1):
            operation = self.operations[index]
            read = {operand.tensor.storage for operand in operation.operands if operand.differentiable}
            if wanted is None:
                wanted = {output.storage for output in operation.outputs} if read else None
            if wanted is not None and not wanted.isdisjoint(output.storage for output in operation.outputs):
                found.add(index)
                wanted |= read
        return frozenset(found)

    @property
    def saved_bytes(self) -> int:
        """Bytes autograd keeps for backward when every parameter trains."""
        return sum(self.storages[storage].num_bytes for storage in self.saved)
