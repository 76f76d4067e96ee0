"""A recorded step at any batch size, from the recordings at two of them.

Element counts are affine in the batch size (from batch 2 on: at batch 1 some copies become views).

Held by ``tests/integration/test_saved_bytes.py``.
"""

from dataclasses import replace

from trady.planner.errors import TracingError
from trady.planner.tracing.records import Capture, Operation, StorageRecord, TensorRecord


def interpolate(low: Capture, high: Capture, batch_size: int) -> Capture:
    """The step at ``batch_size``, every dimension and storage extended along the line through two recordings.

    Args:
        low: Recording at a batch size of 2 or more.
        high: Recording at another one, of the same model and settings.
        batch_size: Samples of the wanted step, 2 or more.

    Raises:
        TracingError: The two recordings differ in more than their sizes.
    """
    if batch_size == low.batch_size:
        return low
    line = _Line(low.batch_size, high.batch_size, batch_size)
    if not _alike(low, high):
        raise TracingError(
            f"The model runs other operations at batch size {low.batch_size} than at {high.batch_size}, so its bytes "
            f"at {batch_size} cannot be read off a line. Trace it with inputs of {batch_size} samples."
        )
    operations = tuple(
        line.operation(first, second) for first, second in zip(low.operations, high.operations, strict=True)
    )
    storages = tuple(line.storage(first, second) for first, second in zip(low.storages, high.storages, strict=True))
    return replace(
        low,
        batch_size=batch_size,
        operations=operations,
        storages=storages,
        output=line.tensor(low.output, high.output),
    )


def _alike(low: Capture, high: Capture) -> bool:
    """Whether two recordings differ in sizes alone."""
    return (
        [operation.target for operation in low.operations] == [operation.target for operation in high.operations]
        and [storage.kind for storage in low.storages] == [storage.kind for storage in high.storages]
        and low.saved == high.saved
    )


class _Line:
    """Reads integers off the line through two batch sizes."""

    def __init__(self, low: int, high: int, wanted: int) -> None:
        self._low, self._span, self._steps = low, high - low, wanted - low

    def value(self, low: int, high: int) -> int:
        return low + (high - low) * self._steps // self._span

    def shape(self, low: tuple[int, ...], high: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(self.value(first, second) for first, second in zip(low, high, strict=True))

    def tensor(self, low: TensorRecord, high: TensorRecord) -> TensorRecord:
        if low.shape == high.shape and low.stride == high.stride and low.offset == high.offset:
            return low
        return replace(
            low,
            shape=self.shape(low.shape, high.shape),
            stride=self.shape(low.stride, high.stride),
            offset=self.value(low.offset, high.offset),
        )

    def operation(self, low: Operation, high: Operation) -> Operation:
        operands = tuple(
            replace(first, tensor=self.tensor(first.tensor, second.tensor))
            for first, second in zip(low.operands, high.operands, strict=True)
        )
        outputs = tuple(self.tensor(first, second) for first, second in zip(low.outputs, high.outputs, strict=True))
        return replace(low, operands=operands, outputs=outputs)

    def storage(self, low: StorageRecord, high: StorageRecord) -> StorageRecord:
        if low.num_bytes == high.num_bytes:
            return low
        shape = self.shape(low.tensor_shape, high.tensor_shape)
        stride = self.shape(low.tensor_stride, high.tensor_stride)
        if _is_whole(low) and _is_whole(high):
            elements = 1
            for size in shape:
                elements *= size
            num_bytes = elements * low.itemsize
        else:
            num_bytes = self.value(low.num_bytes, high.num_bytes)
        return replace(low, num_bytes=num_bytes, tensor_shape=shape, tensor_stride=stride)


def _is_whole(storage: StorageRecord) -> bool:
    """Whether the first tensor on a storage fills it."""
    elements = 1
    for size in storage.tensor_shape:
        elements *= size
    return elements * storage.itemsize == storage.num_bytes
