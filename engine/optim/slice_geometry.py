"""Slices: the part of a weight that belongs to the drawn input channels, as a compact tensor."""

from dataclasses import dataclass

import torch
from torch import Tensor

from trady.planner.ledger import LayerCosts, LayerKind

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


@dataclass(frozen=True)
class SliceGeometry:
    """Where the input channels of a weight lie, in the weight and in a compact slice of it.

    =================  =====================  =============================================================
    layer              weight                 slice of ``n`` channels
    =================  =====================  =============================================================
    convolution        ``[O, C, *kernel]``    ``[O, n, *kernel]``
    depthwise          ``[C*m, 1, *kernel]``  ``[n*m, 1, *kernel]``: channel ``c`` owns rows ``c*m .. c*m+m``
    grouped            ``[O, C/g, *kernel]``  ``[n, O/g, *kernel]``: channel ``c`` is ``c % (C/g)`` of its group
    transposed         ``[C, O/g, *kernel]``  ``[n, O/g, *kernel]``
    linear             ``[O, C]``             ``[O, n]``
    linear, transposed ``[C, O]``             ``[n, O]``
    =================  =====================  =============================================================

    Channels are int32 or int64 tensors on the weight's device, each channel at most once, in any order.

    Args:
        kind: The layer's kind.
        channel_dim: Dimension of the weight that input channels run along.
        in_channels: Input channels ``C``, all groups together.
        out_channels: Output channels ``O``.
        groups: Convolution groups ``g``.
    """

    kind: str
    channel_dim: int
    in_channels: int
    out_channels: int
    groups: int

    @classmethod
    def of(cls, layer: LayerCosts) -> "SliceGeometry":
        """Geometry of a layer of a plan."""
        return cls(layer.kind, layer.channel_dim, layer.in_channels, layer.out_channels, layer.groups)

    def shape(self, weight_shape: tuple[int, ...], num_channels: int) -> tuple[int, ...]:
        """Shape of the slice of so many channels."""
        shape = list(weight_shape)
        if self.kind == LayerKind.DEPTHWISE_CONV:
            return (num_channels * self._multiplier, *shape[1:])
        if self.kind == LayerKind.GROUPED_CONV:
            return (num_channels, shape[0] // self.groups, *shape[2:])
        shape[self.channel_dim] = num_channels
        return tuple(shape)

    def gather(self, weight: Tensor, channels: Tensor) -> Tensor:
        """A compact copy of the channels' part of a weight, in the weight's memory format."""
        found = weight.detach()
        if self.kind == LayerKind.GROUPED_CONV:
            found = self._of_groups(found)[self._in_groups(channels)]
        elif self.kind == LayerKind.DEPTHWISE_CONV:
            found = self._of_channels(found).index_select(0, channels).flatten(0, 1)
        else:
            found = found.index_select(self.channel_dim, channels)
        return found.contiguous(memory_format=_memory_format(weight))

    @torch.no_grad()
    def scatter_(self, weight: Tensor, channels: Tensor, values: Tensor) -> None:
        """Write a slice back into its weight, in place; the other channels keep their values."""
        if self.kind == LayerKind.GROUPED_CONV:
            self._of_groups(weight)[self._in_groups(channels)] = values
        elif self.kind == LayerKind.DEPTHWISE_CONV:
            self._of_channels(weight).index_copy_(0, channels.long(), self._of_channels(values))
        else:
            weight.index_copy_(self.channel_dim, channels.long(), values)

    def by_channel(self, compact: Tensor) -> Tensor:
        """A view of a slice with its channels as first dimension: ``[n, ...]``."""
        if self.kind == LayerKind.DEPTHWISE_CONV:
            return self._of_channels(compact)
        if self.kind in (LayerKind.CONV, LayerKind.LINEAR):
            return compact.movedim(self.channel_dim, 0)
        return compact

    @property
    def _multiplier(self) -> int:
        return self.out_channels // self.in_channels

    def _of_channels(self, rows: Tensor) -> Tensor:
        """Depthwise rows ``[n*m, 1, *kernel]`` as ``[n, m, 1, *kernel]``."""
        return rows.view(len(rows) // self._multiplier, self._multiplier, *rows.shape[1:])

    def _of_groups(self, weight: Tensor) -> Tensor:
        """A grouped weight ``[O, C/g, *kernel]`` as ``[g, C/g, O/g, *kernel]``."""
        return weight.view(self.groups, len(weight) // self.groups, *weight.shape[1:]).transpose(1, 2)

    def _in_groups(self, channels: Tensor) -> tuple[Tensor, Tensor]:
        """Group and place in it of each channel."""
        places, per_group = channels.long(), self.in_channels // self.groups
        return places // per_group, places % per_group


def _memory_format(weight: Tensor) -> torch.memory_format:
    """Channels last where the weight is that and nothing else."""
    channels_last = _CHANNELS_LAST.get(weight.dim())
    if channels_last is None or weight.is_contiguous() or not weight.is_contiguous(memory_format=channels_last):
        return torch.contiguous_format
    return channels_last
