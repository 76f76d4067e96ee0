"""Layers, found by the operation that consumes a parameter as its weight.

The class of the module does not matter: ``nn.Linear``, GPT-2's ``Conv1D``, a packed attention projection and a
functional call on a bare parameter are found alike.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

from trady.planner.ledger import (
    ChannelCost,
    LayerKind,
    conv_channel_cost,
    conv_macs,
    linear_channel_cost,
    matmul_macs,
    transposed_conv_channel_cost,
)
from trady.planner.tracing.records import Capture, Operand, Operation, TensorRecord

CONVOLUTIONS: Final = frozenset({"aten::convolution"})
#: Matrix products by the schema names of their two factors; the second holds a layer's weight.
MATRIX_PRODUCTS: Final = {
    "aten::mm": ("self", "mat2"),
    "aten::addmm": ("mat1", "mat2"),
    "aten::bmm": ("self", "mat2"),
    "aten::baddbmm": ("batch1", "batch2"),
}
#: Products of stacked expert weights.
GROUPED_PRODUCTS: Final = frozenset({"aten::_grouped_mm", "aten::_scaled_grouped_mm"})
_EMBEDDINGS: Final = frozenset({"aten::embedding", "aten::_embedding_bag"})
_MOST_HEADS: Final = 4
_CASTS: Final = frozenset({"aten::_to_copy"})


@dataclass(frozen=True)
class LayerCall:
    """One use of a layer's weight.

    Args:
        operation: Index of the operation in the capture.
        input: What it reads, ``[B, C, *positions]`` for a convolution, ``[tokens, C]`` for a matrix product.
        output: What it writes.
        upstream: Bit set of the trained parameters its input depends on.
    """

    operation: int
    input: TensorRecord
    output: TensorRecord
    upstream: int


@dataclass(frozen=True)
class Layer:
    """A weight that can be trained input channel by input channel.

    Args:
        name: Module path, or the parameter's own name where it is not called ``weight``.
        weight_name: Dotted name of the parameter.
        bias_name: Dotted name of its bias; empty where there is none.
        kind: What an input channel of it is.
        weight_shape: Shape of the parameter.
        weight_itemsize: Bytes per element of the parameter.
        channel_dim: Dimension of the weight that input channels run along.
        in_channels: Input channels ``C`` (all groups together).
        out_channels: Output channels ``C'``.
        groups: Convolution groups.
        batch_size: Samples in the step the costs are for.
        calls: Every use in the step.
    """

    name: str
    weight_name: str
    bias_name: str
    kind: LayerKind
    weight_shape: tuple[int, ...]
    weight_itemsize: int
    channel_dim: int
    in_channels: int
    out_channels: int
    groups: int
    batch_size: int
    calls: tuple[LayerCall, ...]

    @cached_property
    def inputs(self) -> tuple[TensorRecord, ...]:
        """The distinct tensors its calls read."""
        return tuple(dict.fromkeys(call.input for call in self.calls))

    @cached_property
    def channel_cost(self) -> ChannelCost:
        """Cost of one input channel over the whole batch and all calls."""
        costs = [self._call_cost(call) for call in self.calls]
        activation_elements = sum(tensor.numel // self.in_channels for tensor in self.inputs)
        return ChannelCost(self.weight_elements, activation_elements, sum(cost.weight_grad_macs for cost in costs))

    @property
    def weight_elements(self) -> int:
        """Elements of one input channel's weight slice: ``C_W``."""
        if self.kind is LayerKind.LINEAR:
            return self.out_channels
        if self.kind is LayerKind.TRANSPOSED_CONV:
            return math.prod(self.weight_shape[1:])
        return math.prod(self.weight_shape[2:]) * self.weight_shape[0] // self.groups

    @property
    def activation_elements(self) -> int:
        """Elements of one input channel's stored input over the batch: ``C_A`` at batch size 1."""
        return self.channel_cost.activation_elements

    @property
    def activation_bytes(self) -> int:
        """Bytes of one input channel's stored input over the batch, in the activation's own type."""
        return sum(tensor.numel // self.in_channels * tensor.itemsize for tensor in self.inputs)

    @property
    def sample_cost(self) -> float:
        """``C_W + C_A``, in elements for one sample: the denominator of RGN."""
        return self.weight_elements + self.activation_elements / self.batch_size

    @property
    def output_elements(self) -> int:
        """Elements its calls write over the batch."""
        return sum(call.output.numel for call in self.calls)

    @property
    def weight_grad_macs(self) -> int:
        """Multiply-adds of one input channel's weight gradient over the batch."""
        return self.channel_cost.weight_grad_macs

    @property
    def forward_macs(self) -> int:
        """Multiply-adds of its calls over the batch; the input gradient takes as many."""
        return sum(self._call_macs(call) for call in self.calls)

    def _call_macs(self, call: LayerCall) -> int:
        if self.kind is LayerKind.LINEAR:
            return matmul_macs(call.input.shape, call.output.shape)
        return conv_macs(self.weight_shape, self._kernel_positions(call))

    def _call_cost(self, call: LayerCall) -> ChannelCost:
        input_positions = call.input.numel // self.in_channels
        if self.kind is LayerKind.LINEAR:
            return linear_channel_cost(call.output.shape[-1], input_positions)
        if self.kind is LayerKind.TRANSPOSED_CONV:
            return transposed_conv_channel_cost(self.weight_shape, input_positions)
        return conv_channel_cost(self.weight_shape, self._kernel_positions(call), input_positions, self.groups)

    def _kernel_positions(self, call: LayerCall) -> int:
        if self.kind is LayerKind.TRANSPOSED_CONV:
            return call.input.numel // self.in_channels
        return call.output.numel // self.out_channels


class Weights:
    """Which parameters of a recorded step are weights, and of what.

    Args:
        capture: The recorded step.
    """

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self.parameter_of = _parameter_of_storage(capture)
        self._from_parameters = _storages_from_parameters(capture)

    def layers(self) -> tuple[Layer, ...]:
        """Drawable layers in order of first use, the head among them.

        A weight is drawable when a parameter that requires a gradient is used, whole or by output rows, as the
        weight of convolutions or matrix products and of nothing else, its input channels along one dimension in all.

        Returns:
            The layers, in the order they first run.
        """
        refused = self.refused()
        found: dict[str, Layer] = {}
        mixed: set[str] = set()
        for index, operation in enumerate(self._capture.operations):
            layer = self._layer_at(index, operation)
            if layer is None or layer.weight_name in refused:
                continue
            known = found.get(layer.weight_name, layer)
            if (known.kind, known.channel_dim, known.groups) != (layer.kind, layer.channel_dim, layer.groups):
                mixed.add(layer.weight_name)
            elif known is not layer:
                layer = replace(known, calls=known.calls + layer.calls)
            found[layer.weight_name] = layer
        return tuple(layer for name, layer in found.items() if name not in mixed)

    def refused(self) -> dict[str, str]:
        """Parameters used as a weight whose channels cannot be drawn, with the reason."""
        reasons: dict[str, str] = {}
        for operation in self._capture.operations:
            for name, reason in self._refusals(operation):
                reasons.setdefault(name, reason)
        return reasons

    def _refusals(self, operation: Operation) -> Iterator[tuple[str, str]]:
        if operation.target in _EMBEDDINGS:
            table = self._parameter_name(operation.operands[0].tensor)
            if table:
                yield table, "is an embedding, or tied to one"
        if operation.target in GROUPED_PRODUCTS:
            for name in self._upstream_names(operation.operands[1]):
                yield name, "holds stacked experts"
        factors = factors_of(operation)
        if factors is None:
            return
        weight = factors[1]
        if self._is_computed(weight):
            for name in self._upstream_names(weight):
                yield name, "its weight is computed from it at each forward (weight norm or standardisation)"
        name = self._parameter_name(weight.tensor)
        if name and self._geometry(operation, weight.tensor) is None:
            yield name, "is used through a view that mixes its input channels"
        name = self._parameter_name(factors[0].tensor)
        if name:
            yield name, "is the left factor of a product"

    def _layer_at(self, index: int, operation: Operation) -> Layer | None:
        factors = factors_of(operation)
        if factors is None or not factors[1].differentiable:
            return None
        input_operand, weight = factors
        geometry = self._geometry(operation, weight.tensor)
        if geometry is None:
            return None
        channel_dim, kind = geometry
        storage = self._capture.storages[self.parameter_of[weight.tensor.storage]]
        shape = storage.tensor_shape
        groups = 1 if kind is LayerKind.LINEAR else operation.attributes.get("groups", 1)
        return Layer(
            name=storage.name.removesuffix(".weight"),
            weight_name=storage.name,
            bias_name=self._bias_of(operation, storage.name),
            kind=kind,
            weight_shape=shape,
            weight_itemsize=storage.itemsize,
            channel_dim=channel_dim,
            in_channels=shape[channel_dim] * (1 if kind is LayerKind.TRANSPOSED_CONV else groups),
            out_channels=shape[1 - channel_dim] if kind is LayerKind.LINEAR else operation.outputs[0].shape[1],
            groups=groups,
            batch_size=self._capture.batch_size,
            calls=(LayerCall(index, input_operand.tensor, operation.outputs[0], input_operand.upstream),),
        )

    def _bias_of(self, operation: Operation, weight_name: str) -> str:
        """The bias the operation adds, or else the weight's sibling: a product in three dimensions adds it apart."""
        bias = operation.operand("bias") or (operation.operand("self") if operation.target == "aten::addmm" else None)
        if bias is not None:
            return self._parameter_name(bias.tensor)
        parent, _, leaf = weight_name.rpartition(".")
        sibling = f"{parent}.{leaf.replace('weight', 'bias')}".removeprefix(".")
        return sibling if sibling != weight_name and sibling in self._capture.parameters else ""

    def _parameter_name(self, tensor: TensorRecord) -> str:
        parameter = self.parameter_of.get(tensor.storage)
        return "" if parameter is None else self._capture.storages[parameter].name

    def _is_computed(self, weight: Operand) -> bool:
        """Whether a factor is computed from parameters alone, other than by a cast."""
        storage = weight.tensor.storage
        return storage in self._from_parameters and storage not in self.parameter_of

    def _upstream_names(self, operand: Operand) -> Iterator[str]:
        for bit, name in enumerate(self._capture.parameters):
            if operand.upstream >> bit & 1:
                yield name

    def _geometry(self, operation: Operation, weight: TensorRecord) -> tuple[int, LayerKind] | None:
        """Channel dimension and kind of a weight as used; ``None`` where channels cannot be drawn."""
        parameter = self.parameter_of.get(weight.storage)
        if parameter is None:
            return None
        shape = self._capture.storages[parameter].tensor_shape
        if operation.target in CONVOLUTIONS:
            return _conv_geometry(operation, shape) if weight.shape == shape else None
        if len(shape) != 2 or len(weight.shape) != 2:
            return None
        return next(((dim, LayerKind.LINEAR) for dim in (1, 0) if _runs_along(weight, shape, dim)), None)


def heads_of(capture: Capture, layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """The layers whose outputs become the logits with no other layer in between.

    Usually one; a distilled model that averages two classifiers has two. A model whose output is a sum of many
    layers (features of a residual network) has none.
    """
    by_operation = {call.operation: layer for layer in layers for call in layer.calls}
    wanted, heads = {capture.output.storage}, dict[str, Layer]()
    for index in range(len(capture.operations) - 1, -1, -1):
        operation = capture.operations[index]
        if wanted.isdisjoint(output.storage for output in operation.outputs):
            continue
        if index in by_operation:
            heads[by_operation[index].name] = by_operation[index]
            wanted.difference_update(output.storage for output in operation.outputs)
        elif factors_of(operation) is not None:
            return ()
        else:
            wanted.update(operand.tensor.storage for operand in operation.operands if operand.upstream)
    return tuple(heads.values()) if len(heads) <= _MOST_HEADS else ()


def factors_of(operation: Operation) -> tuple[Operand, Operand] | None:
    """The input and the weight of a convolution, the two factors of a matrix product, else ``None``."""
    if operation.target in CONVOLUTIONS:
        names = ("input", "weight")
    elif operation.target in MATRIX_PRODUCTS:
        names = MATRIX_PRODUCTS[operation.target]
    else:
        return None
    left, right = (operation.operand(name) for name in names)
    return None if left is None or right is None else (left, right)


def _conv_geometry(operation: Operation, shape: tuple[int, ...]) -> tuple[int, LayerKind]:
    if operation.attributes.get("transposed"):
        return 0, LayerKind.TRANSPOSED_CONV
    if operation.attributes.get("groups", 1) == 1:
        return 1, LayerKind.CONV
    return 1, LayerKind.DEPTHWISE_CONV if shape[1] == 1 else LayerKind.GROUPED_CONV


def _runs_along(weight: TensorRecord, shape: tuple[int, ...], channel_dim: int) -> bool:
    """Whether a factor ``[C, C']`` is all input channels, and some output rows, of a parameter."""
    strides = (shape[1], 1)
    return (
        weight.shape[0] == shape[channel_dim]
        and weight.shape[1] <= shape[1 - channel_dim]
        and (weight.stride[0] == strides[channel_dim] or weight.shape[0] == 1)
        and (weight.stride[1] == strides[1 - channel_dim] or weight.shape[1] == 1)
    )


def _parameter_of_storage(capture: Capture) -> dict[int, int]:
    """Storage -> storage of the parameter it is, or is a mere cast of (autocast casts weights at each forward)."""
    origin = {index: index for index, storage in enumerate(capture.storages) if storage.kind == "parameter"}
    for operation in capture.operations:
        if operation.target in _CASTS and operation.operands:
            source = operation.operands[0].tensor.storage
            if source in origin:
                origin.setdefault(operation.outputs[0].storage, origin[source])
    return origin


def _storages_from_parameters(capture: Capture) -> frozenset[int]:
    """Storages computed from parameters and buffers alone."""
    pure = {index for index, storage in enumerate(capture.storages) if storage.kind in ("parameter", "buffer")}
    for operation in capture.operations:
        if operation.operands and all(operand.tensor.storage in pure for operand in operation.operands):
            pure.update(output.storage for output in operation.outputs)
    return frozenset(pure)
