"""From a trace to the cost table: who pays what, per channel, per operation."""

from collections.abc import Iterable, Iterator, Sequence
from math import prod
from typing import Final

from trady.planner.costs.peak_costs import MemoryCosts, is_redundant_clone
from trady.planner.costs.step_memory import StepMemory
from trady.planner.ledger import (
    CostTable,
    GroupInput,
    InputGroup,
    KeptBytes,
    LayerCosts,
    OperationCosts,
    Upstream,
    attention_macs,
    conv_macs,
    matmul_macs,
)
from trady.planner.options import DType, OptimizerKind
from trady.planner.tracing import (
    CONVOLUTIONS,
    GROUPED_PRODUCTS,
    MATRIX_PRODUCTS,
    REQUIRING_INPUTS,
    Capture,
    Layer,
    Operation,
    StorageRecord,
    Trace,
    factors_of,
)

#: Optimizer state per trained element, in elements, and per trained tensor, in bytes (Adam's float32 step count).
OPTIMIZER_STATE: Final = {
    OptimizerKind.SGD: (0, 0),
    OptimizerKind.SINKGD: (0, 0),
    OptimizerKind.MOMENTUM: (1, 0),
    OptimizerKind.ADAM: (2, 4),
    OptimizerKind.ADAMW: (2, 4),
}
#: Copies of one trained tensor that a step works in, and of the tensor before that are dropped only then: Adam's
#: denominator is made of one while another is made, SinkGD works in a copy of the gradient.
OPTIMIZER_COPIES: Final = {
    OptimizerKind.SGD: (0, 0),
    OptimizerKind.SINKGD: (1, 0),
    OptimizerKind.MOMENTUM: (0, 0),
    OptimizerKind.ADAM: (2, 1),
    OptimizerKind.ADAMW: (2, 1),
}
ATTENTION: Final = frozenset(
    {
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_cudnn_attention",
    }
)
_INT8_BIAS_BYTES: Final = 4
#: A norm of a row or column: float32, as SinkGD works in at least.
_NORM_BYTES: Final = 4


def build_cost_table(
    trace: Trace,
    layers: Sequence[Layer],
    *,
    optimizer: OptimizerKind,
    dtype: DType | None = None,
    train_bias: bool = False,
    memory: StepMemory | None = None,
) -> CostTable:
    """What a step of the traced model can cost, as a function of the channels drawn from ``layers``.

    Args:
        trace: The model's trace at the planned batch size.
        layers: Eligible layers; all others stay frozen.
        optimizer: What is kept for each trained element.
        dtype: ``int8`` charges activations and weight gradients 1 byte and biases 4; else the trace's own sizes.
        train_bias: Whether the bias of a drawn layer trains with it.
        memory: When the step's memory is released, and what kernels work in; without it no peak is known.

    Returns:
        The table: everything that bytes and work are computed from.
    """
    builder = _TableBuilder(trace, layers, optimizer, dtype is DType.INT8, train_bias, memory)
    return builder.build()


class _TableBuilder:
    def __init__(
        self,
        trace: Trace,
        layers: Sequence[Layer],
        optimizer: OptimizerKind,
        int8: bool,
        train_bias: bool,
        memory: StepMemory | None,
    ) -> None:
        self._trace, self._step, self._layers = trace, trace.step, tuple(layers)
        self._per_element, self._per_tensor = OPTIMIZER_STATE[optimizer]
        self._int8, self._train_bias = int8, train_bias
        self._memory = memory
        self._costs: MemoryCosts | None = None
        self._copies, self._held_copies = OPTIMIZER_COPIES[optimizer]
        self._takes_norms = optimizer is OptimizerKind.SINKGD
        bit_of = {name: bit for bit, name in enumerate(self._step.parameters)}
        self._layer_bits = {bit_of[layer.weight_name]: index for index, layer in enumerate(self._layers)}
        self._always_bits = sum(1 << bit_of[name] for name in (*trace.always_trained, REQUIRING_INPUTS))
        self._upstreams: dict[tuple[int, bool], int] = {}
        self._reduced: dict[int, int | None] = {}
        self._storages: dict[int, int] = {}

    def build(self) -> CostTable:
        self._storages = {storage: place for place, storage in enumerate(self._allocated())}
        self._costs = self._memory_costs()
        operations = self._operations()
        groups = list(dict.fromkeys(layer.inputs for layer in self._layers))
        place_of = {inputs: index for index, inputs in enumerate(groups)}
        layers = tuple(self._layer_costs(layer, place_of[layer.inputs]) for layer in self._layers)
        input_groups = tuple(self._group(layer) for layer in self._one_of_each(groups))
        parameters = [storage for storage in self._trace.dense_step.storages if storage.kind == "parameter"]
        flows = None if self._costs is None else self._costs.gradient_storages()
        always = [] if self._costs is None else [storage.num_bytes for storage in self._always_trained()]
        return CostTable(
            batch_size=self._step.batch_size,
            layers=layers,
            groups=input_groups,
            upstreams=tuple(Upstream.from_bits(bits, always) for bits, always in self._upstreams),
            operations=operations,
            storages=tuple(self._step.storages[storage].num_bytes for storage in self._storages),
            always_trained_bytes=self._always_trained_bytes(),
            weight_bytes=_bytes_of(self._step, ("parameter", "buffer")),
            input_bytes=_bytes_of(self._step, ("input",)),
            dense_saved_bytes=self._trace.saved_bytes,
            dense_gradient_bytes=sum(storage.num_bytes for storage in parameters),
            dense_optimizer_bytes=sum(
                storage.num_bytes * self._per_element + self._per_tensor for storage in parameters
            ),
            gradient_storages=flows,
            optimizer_copies=0 if self._costs is None else self._copies_of_slices(),
            largest_always_trained_bytes=max(always, default=0),
            always_trained_work_bytes=None if self._costs is None else self._always_trained_work(always),
            optimizer_norm_bytes=_NORM_BYTES if self._takes_norms and self._costs else 0,
            optimizer_held_copies=0 if self._costs is None else self._held_copies,
            first_always_trained_bytes=always[0] if always else 0,
        )

    def _memory_costs(self) -> MemoryCosts | None:
        if self._memory is None:
            return None
        return MemoryCosts(self._trace, self._memory, self._layers, self._upstream, self._storages)

    def _one_of_each(self, groups: Sequence[object]) -> Iterable[Layer]:
        first = {layer.inputs: layer for layer in reversed(self._layers)}
        return (first[inputs] for inputs in groups)  # type: ignore[index]

    def _layer_costs(self, layer: Layer, group: int) -> LayerCosts:
        itemsize = 1 if self._int8 else layer.weight_itemsize
        slice_bytes = layer.weight_elements * itemsize
        return LayerCosts(
            name=layer.name,
            weight_name=layer.weight_name,
            bias_name=layer.bias_name,
            kind=layer.kind.value,
            channel_dim=layer.channel_dim,
            in_channels=layer.in_channels,
            out_channels=layer.out_channels,
            groups=layer.groups,
            group=group,
            weight_elements=layer.weight_elements,
            sample_elements=layer.activation_elements // layer.batch_size,
            output_elements=layer.output_elements // layer.batch_size,
            gradient_bytes=slice_bytes,
            optimizer_bytes=slice_bytes * self._per_element,
            optimizer_tensor_bytes=self._per_tensor,
            active_weight_bytes=slice_bytes,
            bias_bytes=self._bias_bytes(layer),
            forward_macs=layer.forward_macs,
            weight_grad_macs=layer.weight_grad_macs,
        )

    def _bias_bytes(self, layer: Layer) -> int:
        if not (self._train_bias and layer.bias_name) or layer.bias_name in self._trace.always_trained:
            return 0
        itemsize = _INT8_BIAS_BYTES if self._int8 else layer.weight_itemsize
        return layer.out_channels * itemsize * (1 + self._per_element) + self._per_tensor

    def _group(self, layer: Layer) -> InputGroup:
        kept = {entry.storage: entry.upstream for entry in self._trace.kept if entry.storage is not None}
        inputs = []
        for tensor in layer.inputs:
            is_batch = self._step.storages[tensor.storage].kind == "input"
            kept_by = self._upstream(0, always=True) if is_batch else self._upstream(kept.get(tensor.storage, 0))
            itemsize = 1 if self._int8 else tensor.itemsize
            inputs.append(GroupInput(channel_bytes=tensor.numel // layer.in_channels * itemsize, kept_by=kept_by))
        return InputGroup(inputs=tuple(inputs))

    def _always_trained_bytes(self) -> int:
        total = 0
        for storage in self._always_trained():
            elements = prod(storage.tensor_shape)
            total += elements * storage.itemsize * (1 + self._per_element) + self._per_tensor
        return total

    def _always_trained_work(self, sizes: Sequence[int]) -> int | None:
        """Copies of one parameter, and those held of the one before it; ``None`` for copies of the largest."""
        if self._takes_norms:
            return self._sinkgd_work()
        if not self._held_copies:
            return None
        pairs = zip(sizes, (0, *sizes), strict=False)
        return max((self._copies * size + self._held_copies * before for size, before in pairs), default=0)

    def _sinkgd_work(self) -> int:
        """A copy of the gradient, in float32 at least, and the norms of one side, or what it is cast back to."""
        work = [0]
        for storage in self._always_trained():
            rows, *others = storage.tensor_shape or (1,)
            norms = max(rows, prod(others)) if others else 1
            elements, itemsize = prod(storage.tensor_shape), max(storage.itemsize, _NORM_BYTES)
            cast = elements * storage.itemsize if storage.itemsize < _NORM_BYTES else 0
            work.append(elements * itemsize + max(norms * _NORM_BYTES, cast))
        return max(work)

    def _copies_of_slices(self) -> int:
        """Work of the optimizer in copies of a slice; SinkGD's is float32, and cast back where slices are not."""
        is_half = any(layer.weight_itemsize < _NORM_BYTES for layer in self._layers)
        return 3 if self._takes_norms and is_half else self._copies

    def _always_trained(self) -> Iterator[StorageRecord]:
        for storage in self._step.storages:
            if storage.kind == "parameter" and storage.name in self._trace.always_trained:
                yield storage

    def _upstream(self, bits: int, *, always: bool = False) -> int | None:
        """Index of the upstream a set of parameters amounts to; ``None`` where none of them can train."""
        if always:
            return self._upstreams.setdefault((0, True), len(self._upstreams))
        if bits not in self._reduced:
            self._reduced[bits] = self._reduce(bits)
        return self._reduced[bits]

    def _reduce(self, bits: int) -> int | None:
        if bits & self._always_bits:
            return self._upstream(0, always=True)
        layer_bits = sum(1 << index for bit, index in self._layer_bits.items() if bits >> bit & 1)
        if layer_bits == 0:
            return None
        return self._upstreams.setdefault((layer_bits, False), len(self._upstreams))

    def _allocated(self) -> Iterable[int]:
        """Storages the forward pass makes, autograd's copies of what is overwritten left out."""
        seen: dict[int, None] = {}
        for place, operation in enumerate(self._step.operations):
            if is_redundant_clone(self._step.operations, place):
                continue
            for output in operation.outputs:
                if self._step.storages[output.storage].kind == "activation":
                    seen[output.storage] = None
        return seen

    def _operations(self) -> tuple[OperationCosts, ...]:
        kept_by_operation: dict[int, list[KeptBytes]] = {}
        for kept in self._trace.kept:
            upstream = self._upstream(kept.upstream)
            if upstream is not None:
                entry = KeptBytes(
                    num_bytes=kept.num_bytes,
                    upstream=upstream,
                    line="always_trained" if kept.for_weight else "residuals",
                    storage=None if kept.storage is None else self._storages.get(kept.storage),
                )
                kept_by_operation.setdefault(kept.operation, []).append(entry)
        first_written = self._by_first_writer()
        return tuple(
            OperationCosts(
                target=operation.target.removeprefix("aten::"),
                module=operation.module,
                allocates=tuple(first_written.get(index, ())),
                kept=tuple(kept_by_operation.get(index, ())),
                macs=operation_macs(operation),
                gradients=self._gradients(operation),
                **({} if self._costs is None else self._costs.of(index)),
            )
            for index, operation in enumerate(self._step.operations)
        )

    def _by_first_writer(self) -> dict[int, list[int]]:
        first: dict[int, int] = {}
        for index, operation in enumerate(self._step.operations):
            for output in operation.outputs:
                first.setdefault(output.storage, index)
        grouped: dict[int, list[int]] = {}
        for storage, index in first.items():
            if storage in self._storages:
                grouped.setdefault(index, []).append(self._storages[storage])
        return grouped

    def _gradients(self, operation: Operation) -> tuple[int, ...]:
        """Upstreams of the factors that are activations: each one's gradient is a product of its own."""
        if operation_macs(operation) == 0:
            return ()
        weights = self._trace.weights.parameter_of
        found = (
            self._upstream(operand.upstream)
            for operand in operation.operands
            if operand.tensor.storage not in weights and operand.name not in ("bias", "attn_mask", "attn_bias")
        )
        return tuple(upstream for upstream in found if upstream is not None)


def operation_macs(operation: Operation) -> int:
    """Forward multiply-adds of an operation; 0 for all but convolutions, matrix products and attention.

    In a grouped product each row of ``[rows, k]`` meets one of the experts' weights ``[experts, k, m]``.
    """
    if operation.target in ATTENTION:
        query, key, value = (operation.operand(name) for name in ("query", "key", "value"))
        if query is None or key is None or value is None:
            return 0
        return attention_macs(query.tensor.shape, key.tensor.shape, value.tensor.shape)
    if operation.target in GROUPED_PRODUCTS:
        rows, weights = (operand.tensor for operand in operation.operands[:2])
        return matmul_macs(rows.shape, weights.shape)
    factors = factors_of(operation)
    if factors is None:
        return 0
    left, right = (factor.tensor for factor in factors)
    if operation.target in MATRIX_PRODUCTS:
        return matmul_macs(left.shape, right.shape)
    assert operation.target in CONVOLUTIONS
    applied = left if operation.attributes.get("transposed") else operation.outputs[0]
    return conv_macs(right.shape, applied.numel // applied.shape[1])


def _bytes_of(capture: Capture, kinds: tuple[str, ...]) -> int:
    return sum(storage.num_bytes for storage in capture.storages if storage.kind in kinds)
