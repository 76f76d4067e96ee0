"""What a cost table is made of: layers, input groups, kept memory, operations. No torch.

Held by ``tests/planner/costs/test_table_builder.py``.
"""

from collections.abc import Sequence
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Any, Final, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from trady.planner.records import Count, Record

#: Bytes of one drawn channel's index (int32).
INDEX_BYTES: Final = 4
#: Channels that kernels of slice gradients work on at a time.
SLICE_BLOCK: Final = 8


class LayerKind(StrEnum):
    """Kinds of layer by what one input channel of the weight is."""

    CONV = "conv"
    GROUPED_CONV = "grouped conv"
    DEPTHWISE_CONV = "depthwise conv"
    TRANSPOSED_CONV = "transposed conv"
    LINEAR = "linear"


#: What MIT's schemes number: every convolution that is not transposed.
FORWARD_CONVOLUTIONS: Final = frozenset({LayerKind.CONV, LayerKind.GROUPED_CONV, LayerKind.DEPTHWISE_CONV})


class Upstream(Record):
    """Which trained parameters a tensor depends on.

    Args:
        always: Whether an always-trained parameter is among them.
        layers: Ranges ``(first, last)`` of layer indices, both included.
    """

    always: bool
    layers: tuple[tuple[Count, Count], ...]

    @cached_property
    def bits(self) -> int:
        """The layers as a bit set."""
        bits = 0
        for first, last in self.layers:
            bits |= (1 << last + 1) - (1 << first)
        return bits

    def is_trained(self, active: int) -> bool:
        """Whether anything of it trains when the layers of a bit set do."""
        return self.always or bool(self.bits & active)

    @classmethod
    def from_bits(cls, bits: int, always: bool) -> "Upstream":
        """Ranges of the set bits."""
        ranges: list[tuple[int, int]] = []
        for index in range(bits.bit_length()):
            if bits >> index & 1:
                if ranges and ranges[-1][1] == index - 1:
                    ranges[-1] = (ranges[-1][0], index)
                else:
                    ranges.append((index, index))
        return cls(always=always, layers=tuple(ranges))


def active_bits(counts: Sequence[int]) -> int:
    """Bit set of the layers with channels drawn."""
    return sum(1 << index for index, count in enumerate(counts) if count)


class LayerCosts(Record):
    """What drawing from one layer costs; bytes and multiply-adds per input channel over the whole batch.

    Args:
        name: Module path of the layer.
        weight_name: Dotted name of its weight.
        bias_name: Dotted name of its bias, or empty.
        kind: ``conv``, ``depthwise conv``, ``linear``...
        channel_dim: Dimension of the weight that input channels run along.
        in_channels: Input channels.
        out_channels: Output channels.
        groups: Convolution groups.
        group: Index of the input group it draws with.
        weight_elements: Elements of one channel's weight slice (``C_W``).
        sample_elements: Elements of one channel's stored input for one sample (``C_A``), rounded down.
        output_elements: Elements the layer writes for one sample, rounded down.
        gradient_bytes: Gradient of one channel.
        optimizer_bytes: Optimizer state of one channel.
        optimizer_tensor_bytes: Optimizer state of the layer whatever the channels (Adam's step count).
        active_weight_bytes: Compact copy of one channel's weights.
        bias_bytes: Gradient and state of its bias while the layer trains; 0 where biases do not train.
        forward_macs: The layer's calls; its input gradient takes as many.
        weight_grad_macs: Weight gradient of one channel.
    """

    name: str
    weight_name: str
    bias_name: str
    kind: str
    channel_dim: Count
    in_channels: Annotated[int, Field(ge=1)]
    out_channels: Annotated[int, Field(ge=1)]
    groups: Annotated[int, Field(ge=1)]
    group: Count
    weight_elements: Annotated[int, Field(ge=1)]
    sample_elements: Count
    output_elements: Count
    gradient_bytes: Count
    optimizer_bytes: Count
    optimizer_tensor_bytes: Count
    active_weight_bytes: Count
    bias_bytes: Count
    forward_macs: Count
    weight_grad_macs: Count

    @property
    def sample_cost(self) -> int:
        """``C_W + C_A`` in elements for one sample."""
        return self.weight_elements + self.sample_elements

    @property
    def norm_elements(self) -> tuple[int, int]:
        """Rows and columns of a slice as a matrix of its first dimension: whatever the channels, and for each."""
        if self.kind == LayerKind.DEPTHWISE_CONV:
            multiplier = self.out_channels // self.in_channels
            return self.weight_elements // multiplier, multiplier
        if self.kind in (LayerKind.CONV, LayerKind.LINEAR) and self.channel_dim == 1:
            return self.out_channels, self.weight_elements // self.out_channels
        return self.weight_elements, 1


class GroupInput(Record):
    """A tensor the layers of an input group read.

    Args:
        channel_bytes: Bytes of one channel of it over the batch.
        kept_by: Index of the upstream whose training keeps it whole anyway; ``None`` where nothing does.
    """

    channel_bytes: Count
    kept_by: Count | None


class InputGroup(Record):
    """Layers that read the same tensors: their draws are nested and stored once."""

    inputs: tuple[GroupInput, ...]


class KeptBytes(Record):
    """Memory an operation keeps for backward when a parameter upstream trains.

    Args:
        num_bytes: Its size.
        upstream: Index of the upstream that makes it be kept.
        line: ``residuals``, or ``always_trained`` for the stored input of an always-trained weight.
        storage: Storage kept; ``None`` for a mask or positions made for backward alone.
    """

    num_bytes: Count
    upstream: Count
    line: Literal["residuals", "always_trained"]
    storage: Count | None


class BackwardCosts(Record):
    """The gradient of an operation's operands that are activations.

    Args:
        upstream: Index of the upstream that makes it run.
        workspace: Bytes it works in, beside the gradients it takes and gives.
    """

    upstream: Count
    workspace: Count


class SliceCosts(Record):
    """What the gradient of ``n`` drawn channels works in: ``base + n * channel + ceil(n / 8) * block`` bytes.

    Args:
        layer: Index of the layer.
        base: Whatever the channels.
        channel: For each channel.
        block: For each 8 channels begun.
        exact: ``(n, bytes)`` where it was measured: special kernels take less than the line says.
        completes: Whether the slice's gradient lives from here on; a weight used twice makes a second one for a moment.
    """

    layer: Count
    base: Count
    channel: Count
    block: Count
    exact: tuple[tuple[Count, Count], ...] = ()
    completes: bool = True

    def num_bytes(self, count: int) -> int:
        """Bytes for so many channels; nothing for none."""
        return dict(self.exact).get(count, self.line(count)) if count else 0

    def line(self, count: int) -> int:
        """What other numbers of channels than the measured ones take."""
        return self.base + count * self.channel + -(-count // SLICE_BLOCK) * self.block

    @property
    def highest_base(self) -> int:
        """A base with which the line is an upper bound for any number of channels."""
        return self.base + max([0, *(size - self.line(count) for count, size in self.exact)])


class GradientBytes(Record):
    """Memory of gradients of activations.

    Args:
        num_bytes: Its size.
        born: Operation whose backward makes it.
        uses: ``(operation, upstream)``, the last operation first: it is needed until that operation's backward has
            run, while anything of the upstream trains.
    """

    num_bytes: Count
    born: Count
    uses: tuple[tuple[Count, Count], ...]


class OperationCosts(Record):
    """One operation of the forward pass; in a file, what is zero or empty is left out.

    Args:
        target: Operation name.
        module: Module path.
        allocates: Storages it writes first.
        frees: Storages that nothing but autograd holds once it is done.
        kept: What it keeps for backward.
        macs: Forward multiply-adds.
        gradients: Index of the upstream of each factor whose gradient costs ``macs`` more.
        workspace: Bytes its kernel works in beside operands and results.
        recording: The same where it is recorded for backward (masks before they are packed).
        recorded_when: Index of the upstream that makes it be recorded.
        stores: ``(group, input)`` pairs whose drawn channels are stored when it runs.
        slices: Slice gradients in its backward.
        backwards: Gradients towards activations in its backward.
        always_gradients: Gradients of always-trained parameters made in its backward.
    """

    target: str
    module: str
    allocates: tuple[Count, ...] = ()
    frees: tuple[Count, ...] = ()
    kept: tuple[KeptBytes, ...] = ()
    macs: Count = 0
    gradients: tuple[Count, ...] = ()
    workspace: Count = 0
    recording: Count = 0
    recorded_when: Count | None = None
    stores: tuple[tuple[Count, Count], ...] = ()
    slices: tuple[SliceCosts, ...] = ()
    backwards: tuple[BackwardCosts, ...] = ()
    always_gradients: Count = 0

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Hundreds of operations: what says nothing is not written."""
        fields = type(self).model_fields
        return {
            name: value
            for name, value in handler(self).items()
            if (tuple(value) if isinstance(value, list) else value) != fields[name].default
        }
