"""What the peak adds to a cost table: when memory is released, gradients on their way, workspaces.

Held by ``tests/integration/test_peak.py``.
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, Final

import torch

from trady.planner.costs.step_memory import StepMemory
from trady.planner.costs.workspaces import is_measured
from trady.planner.lean import LeanForm, lean_form, window_position_bytes
from trady.planner.ledger import BackwardCosts, GradientBytes, SliceCosts
from trady.planner.tracing import (
    CONVOLUTIONS,
    MATRIX_PRODUCTS,
    GradientStorage,
    Layer,
    Operation,
    Shape,
    TensorRecord,
    Trace,
    factors_of,
)

#: Elements whose pooling positions :mod:`trady.planner.lean.kernels` works on at a time.
_POOL_CHUNK: Final = 1 << 18
#: Channels that kernels fill up to: a vector of AVX-512 in float32.
_BLOCK: Final = 16
#: Scalars, descriptions of kernels and the like.
_FEW_BYTES: Final = 4096
#: Functions with a bound on either side: a mask of each lives before they are packed as one.
_TWO_MASKS: Final = frozenset({"aten::hardtanh", "aten::hardtanh_"})


class MemoryCosts:
    """The fields of a cost table that the peak is made of.

    Args:
        trace: The model's trace: its lean step is what counts.
        memory: Of that step: when it is released, and what was measured of kernels; bounds stand in for the rest, and
            without any measure nothing is counted.
        layers: Eligible layers.
        upstream: Bit set of parameters -> index of an upstream of the table, ``None`` where nothing of it trains.
        storages: Storage of the step -> storage of the table.
    """

    def __init__(
        self,
        trace: Trace,
        memory: StepMemory,
        layers: Sequence[Layer],
        upstream: Callable[[int], int | None],
        storages: Mapping[int, int],
    ) -> None:
        self._capture, self._weights, self._always_trained = trace.step, trace.weights, trace.always_trained
        self._kept = frozenset(entry.storage for entry in trace.kept if entry.storage is not None)
        self._lifetimes, self._workspaces = memory.lifetimes, memory.workspaces
        self._layers, self._upstream, self._storages = tuple(layers), upstream, storages
        self._frees = self._by_last_holder()
        self._stores = self._by_first_reader()
        self._backwards = self._backward_costs()
        self._slices = self._slice_costs()
        self._always = self._always_gradients()

    def of(self, place: int) -> dict[str, Any]:
        """Fields of :class:`trady.planner.ledger.cost_table.OperationCosts` for one operation."""
        recording, when = self._recording(place)
        return {
            "frees": tuple(self._frees.get(place, ())),
            "workspace": self._forward_workspace(place),
            "recording": recording,
            "recorded_when": when,
            "stores": tuple(self._stores.get(place, ())),
            "slices": tuple(self._slices.get(place, ())),
            "backwards": tuple(self._backwards.get(place, ())),
            "always_gradients": self._always.get(place, 0),
        }

    def gradient_storages(self) -> tuple[GradientBytes, ...]:
        """Memory of gradients of activations, what never trains left out."""
        return tuple(found for storage in self._lifetimes.gradients if (found := self._gradient_bytes(storage)))

    def _gradient_bytes(self, storage: GradientStorage) -> GradientBytes | None:
        """What is still to use it shrinks as backward goes on, and with it whose training makes it be there."""
        uses: list[tuple[int, int]] = []
        bits = 0
        for until, upstream in sorted(storage.uses):
            bits |= upstream
            index = self._upstream(bits)
            if index is not None and (not uses or uses[-1][1] != index):
                uses.append((until, index))
        if not uses or storage.num_bytes == 0:
            return None
        return GradientBytes(num_bytes=storage.num_bytes, born=storage.born, uses=tuple(reversed(uses)))

    def _by_last_holder(self) -> dict[int, list[int]]:
        frees: dict[int, list[int]] = {}
        for place, position, last in self._lifetimes.deaths:
            storage = self._storages.get(self._capture.operations[place].outputs[position].storage)
            if storage is not None:
                frees.setdefault(last, []).append(storage)
        return frees

    def _by_first_reader(self) -> dict[int, list[tuple[int, int]]]:
        groups = list(dict.fromkeys(layer.inputs for layer in self._layers))
        first: dict[tuple[int, int], int] = {}
        for layer in self._layers:
            group = groups.index(layer.inputs)
            for call in layer.calls:
                pair = (group, layer.inputs.index(call.input))
                first[pair] = min(first.get(pair, call.operation), call.operation)
        stores: dict[int, list[tuple[int, int]]] = {}
        for pair, place in first.items():
            stores.setdefault(place, []).append(pair)
        return stores

    def _form(self, operation: Operation) -> LeanForm | None:
        trained = frozenset(operand.name for operand in operation.operands if operand.upstream)
        return lean_form(operation.target, operation.api, operation.attributes, trained)

    def _forward_workspace(self, place: int) -> int:
        if self._workspaces is None or not is_measured(self._lifetimes.calls[place]):
            return 0
        known = self._workspaces.forward.get(place)
        operation = self._capture.operations[place]
        if known is not None:
            return known
        return self._kernel_bound(operation) if operation.target in CONVOLUTIONS else self._operand_bytes(operation)

    def _recording(self, place: int) -> tuple[int, int | None]:
        """Masks are a byte an element before they are packed, and indices eight before they are positions."""
        operation = self._capture.operations[place]
        when = self._upstream(_upstream_of(operation))
        form = self._form(operation)
        if when is None or not operation.outputs:
            return 0, None
        elements = operation.outputs[0].numel
        if form is LeanForm.BIT_MASK:
            masks = 1 if operation.target not in _TWO_MASKS else 2
            return masks * (elements * (2 if elements % 8 else 1) + 8), when
        if form is LeanForm.WINDOW_POSITION:
            return _positions_recorded(operation), when
        return 0, None

    def _backward_costs(self) -> dict[int, list[BackwardCosts]]:
        costs: dict[int, list[BackwardCosts]] = {}
        for run in self._lifetimes.backwards:
            operation = self._capture.operations[run.operation]
            upstream = self._upstream(self._towards_activations(operation, run.upstream))
            if upstream is not None:
                workspace = self._backward_workspace(run.operation, run.scratch_bytes)
                entry = BackwardCosts(upstream=upstream, workspace=workspace)
                if entry not in costs.setdefault(run.operation, []):
                    costs[run.operation].append(entry)
        return costs

    def _towards_activations(self, operation: Operation, upstream: int) -> int:
        """A layer's input gets a gradient only where something before the layer trains."""
        factors = factors_of(operation)
        if factors is None or factors[1].tensor.storage not in self._weights.parameter_of:
            return upstream
        return factors[0].upstream

    def _backward_workspace(self, place: int, scratch_bytes: int) -> int:
        operation = self._capture.operations[place]
        form = self._form(operation)
        outputs = operation.outputs[0] if operation.outputs else None
        if form is LeanForm.BIT_MASK and outputs is not None:
            return 8 * -(-outputs.numel // 8)
        if form is LeanForm.WINDOW_POSITION and outputs is not None:
            taken = self._lifetimes.taken.get(place, ())
            return _positions_read(operation, taken[0] if taken else None)
        if form is LeanForm.NOTHING and "norm" in operation.target:
            return 4 * operation.operands[0].tensor.shape[1] * 8
        if operation.target in MATRIX_PRODUCTS:
            return 0 if form is LeanForm.FACTORS else scratch_bytes
        if self._workspaces is None or not is_measured(self._lifetimes.calls[place]):
            return 0 if operation.target in CONVOLUTIONS else scratch_bytes
        known = self._workspaces.backward.get(place)
        if known is not None:
            return known
        if operation.target in CONVOLUTIONS:
            return 2 * self._kernel_bound(operation)
        return scratch_bytes + 2 * self._operand_bytes(operation)

    def _kernel_bound(self, operation: Operation) -> int:
        """A bound of what a convolution works in: all in blocks of channels, columns and weights for each thread."""
        tensors = [operand.tensor for operand in operation.operands if operand.name != "bias"]
        read, weight, written = *tensors, operation.outputs[0]
        copies = sum(tensor.numel * tensor.itemsize for tensor in tensors if not _is_dense(tensor))
        per_thread = _in_blocks(weight, (0, 1)) + _columns(operation) + _FEW_BYTES
        blocks = _in_blocks(read, (1,)) + _in_blocks(written, (1,)) + _in_blocks(weight, (0, 1))
        return copies + blocks + torch.get_num_threads() * per_thread

    def _operand_bytes(self, operation: Operation) -> int:
        """A bound of what a kernel works in until it is measured: all it reads and writes once more."""
        tensors = [operand.tensor for operand in operation.operands] + list(operation.outputs)
        return sum(tensor.numel * tensor.itemsize for tensor in tensors)

    def _slice_costs(self) -> dict[int, list[SliceCosts]]:
        costs: dict[int, list[SliceCosts]] = {}
        for index, layer in enumerate(self._layers):
            last = max(call.operation for call in layer.calls)
            for call in layer.calls:
                entry = self._slice_cost(index, layer, call.operation, call.input, call.operation == last)
                costs.setdefault(call.operation, []).append(entry)
        return costs

    def _slice_cost(self, index: int, layer: Layer, place: int, read: TensorRecord, completes: bool) -> SliceCosts:
        """The kernel's, a copy of the channels where the group stores more than them, and a second gradient."""
        channel_bytes = read.numel // layer.in_channels * read.itemsize
        slice_bytes = layer.weight_elements * layer.weight_itemsize
        is_whole = read.storage in self._kept or self._capture.storages[read.storage].kind == "input"
        shares = is_whole or sum(other.inputs == layer.inputs for other in self._layers) > 1
        extra = (channel_bytes if shares else 0) + (0 if completes else slice_bytes)
        operation = self._capture.operations[place]
        if self._workspaces is None or operation.target not in CONVOLUTIONS:
            return SliceCosts(layer=index, base=0, channel=extra, block=0, completes=completes)
        known = self._workspaces.slices.get(place)
        if known is None:
            base, channel = _slice_bound(operation, layer, channel_bytes, slice_bytes)
            return SliceCosts(layer=index, base=base, channel=channel + extra, block=0, completes=completes)
        base, channel, block = known.fitted()
        exact = tuple((number, size + number * extra) for number, size in known.measured.items())
        return SliceCosts(
            layer=index, base=base, channel=channel + extra, block=block, exact=exact, completes=completes
        )

    def _always_gradients(self) -> dict[int, int]:
        """Bytes by the last operation that reads each always-trained parameter: the first one backward meets."""
        last: dict[int, int] = {}
        for place, operation in enumerate(self._capture.operations):
            written = {output.storage for output in operation.outputs}
            for operand in operation.operands:
                parameter = self._weights.parameter_of.get(operand.tensor.storage)
                if parameter is not None and operand.upstream and operand.tensor.storage not in written:
                    last[parameter] = place
        found: dict[int, int] = {}
        for parameter, place in last.items():
            record = self._capture.storages[parameter]
            if record.name in self._always_trained:
                found[place] = found.get(place, 0) + record.num_bytes
        return found


def is_redundant_clone(operations: Sequence[Operation], place: int) -> bool:
    """Whether an operation is autograd's copy of what the next one overwrites: made for backward alone."""
    if operations[place].target != "aten::clone" or place + 1 >= len(operations):
        return False
    following = operations[place + 1]
    if not following.target.endswith("_") or not following.operands:
        return False
    return operations[place].operands[0].tensor.storage == following.operands[0].tensor.storage


def _upstream_of(operation: Operation) -> int:
    bits = 0
    for operand in operation.operands:
        bits |= operand.upstream
    return bits


def _positions_recorded(operation: Operation) -> int:
    """Indices counted from a window's start, copied where they are not in order, and what they are looked up as."""
    outputs = operation.outputs[0]
    each = 8 + _position_bytes(operation) + (8 if _is_channels_last(outputs) else 0)
    return each * _chunk(outputs) + _window_tables(operation)


def _positions_read(operation: Operation, taken: Shape | None) -> int:
    """Positions as int32, indices as int64, both in the layout the kernel wants, and the gradient in it."""
    outputs = operation.outputs[0]
    each = 16 if _is_channels_last(outputs) else 12
    if taken is None or taken.stride != outputs.stride:
        each += outputs.itemsize
    return each * _chunk(outputs) + _window_tables(operation)


def _slice_bound(operation: Operation, layer: Layer, channel_bytes: int, slice_bytes: int) -> tuple[int, int]:
    """Bounds of what a slice gradient works in, whatever the channels and for each of them."""
    written, threads = operation.outputs[0], torch.get_num_threads()
    gathered = 0 if layer.groups == 1 else written.numel * written.itemsize // layer.groups
    weights = slice_bytes * _blocks(layer.out_channels) // layer.out_channels
    columns = _columns(operation) * layer.groups // layer.in_channels
    channel = 2 * (channel_bytes + gathered) + (1 + threads) * weights + threads * columns
    return 2 * _in_blocks(written, (1,)) + _BLOCK * channel + (1 + threads) * _FEW_BYTES, channel


def _columns(operation: Operation) -> int:
    """Bytes of the windows of one sample, laid out for a matrix product, of one group."""
    read, weight, written = operation.operands[0].tensor, operation.operands[1].tensor, operation.outputs[0]
    windows = read if operation.attributes.get("transposed") else written
    return prod(weight.shape[1:]) * prod(windows.shape[2:]) * weight.itemsize


def _in_blocks(tensor: TensorRecord, dims: Sequence[int]) -> int:
    """Bytes of a tensor whose channels are filled up to whole blocks."""
    sizes = [_blocks(size) if dim in dims else size for dim, size in enumerate(tensor.shape)]
    return prod(sizes) * tensor.itemsize


def _blocks(channels: int) -> int:
    return _BLOCK * -(-channels // _BLOCK)


def _is_dense(tensor: TensorRecord) -> bool:
    """Whether its elements lie side by side, in any order of the dimensions."""
    elements = 1
    for stride, size in sorted((stride, size) for stride, size in zip(tensor.stride, tensor.shape, strict=True)):
        if size > 1 and stride != elements:
            return False
        elements *= size
    return True


def _position_bytes(operation: Operation) -> int:
    return window_position_bytes(1, tuple(operation.attributes["kernel_size"]))


def _is_channels_last(tensor: TensorRecord) -> bool:
    return tensor.stride[1] == 1 and tensor.shape[1] > 1


def _window_tables(operation: Operation) -> int:
    """Where each window starts and how far its positions lie from there, int64; the way back spans an input at most."""
    read, outputs = operation.operands[0].tensor, operation.outputs[0]
    planes, window = max(1, outputs.shape[0] * outputs.shape[1]), int(prod(operation.attributes["kernel_size"]))
    num_bytes = 8 * outputs.numel + _position_bytes(operation) * read.numel
    return num_bytes // planes + 8 * window


def _chunk(tensor: TensorRecord) -> int:
    """Elements of a pooling's result that are worked on at a time: whole samples."""
    sample = max(1, tensor.numel // max(1, tensor.shape[0]))
    return min(tensor.numel, sample * max(1, _POOL_CHUNK // sample))
