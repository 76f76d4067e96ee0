"""Slices against plain indexing, one channel at a time."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from trady.engine.optim.slice_geometry import SliceGeometry
from trady.planner.costs.table_builder import build_cost_table
from trady.planner.ledger.cost_records import LayerKind
from trady.planner.options import DType, OptimizerKind
from trady.planner.tracing.tracing import trace


@st.composite
def weights(draw: st.DrawFn) -> tuple[SliceGeometry, Tensor]:
    """A weight of any kind of layer; one in two channels last where that exists."""
    kind = draw(st.sampled_from(list(LayerKind)))
    spatial = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    outputs, inputs, groups = draw(st.integers(1, 4)), draw(st.integers(1, 5)), 1
    if kind is LayerKind.LINEAR:
        dim = draw(st.integers(0, 1))
        return SliceGeometry(kind, dim, inputs, outputs, 1), torch.randn(
            (outputs, inputs) if dim else (inputs, outputs)
        )
    if kind in (LayerKind.GROUPED_CONV, LayerKind.TRANSPOSED_CONV):
        groups = draw(st.integers(1, 3))
    if kind is LayerKind.DEPTHWISE_CONV:
        groups, shape = inputs, (inputs * outputs, 1)
        total_in, total_out = inputs, inputs * outputs
    elif kind is LayerKind.TRANSPOSED_CONV:
        total_in, total_out, shape = inputs * groups, outputs * groups, (inputs * groups, outputs)
    else:
        total_in, total_out, shape = inputs * groups, outputs * groups, (outputs * groups, inputs)
    weight = torch.randn(*shape, *spatial)
    if len(spatial) > 1 and draw(st.booleans()):
        weight = weight.to(memory_format=torch.channels_last if len(spatial) == 2 else torch.channels_last_3d)
    return SliceGeometry(kind, 0 if kind is LayerKind.TRANSPOSED_CONV else 1, total_in, total_out, groups), weight


def one_channel(geometry: SliceGeometry, weight: Tensor, channel: int) -> Tensor:
    """What one input channel is multiplied with, by the definition of the layer."""
    if geometry.kind == LayerKind.DEPTHWISE_CONV:
        multiplier = weight.shape[0] // geometry.in_channels
        return weight[channel * multiplier : (channel + 1) * multiplier]
    if geometry.kind == LayerKind.GROUPED_CONV:
        rows = weight.shape[0] // geometry.groups
        group, place = divmod(channel, weight.shape[1])
        return weight[group * rows : (group + 1) * rows, place]
    return weight.select(geometry.channel_dim, channel)


@st.composite
def draws(draw: st.DrawFn) -> tuple[SliceGeometry, Tensor, Tensor]:
    geometry, weight = draw(weights())
    order = draw(st.permutations(range(geometry.in_channels)))
    count = draw(st.integers(0, geometry.in_channels))
    dtype = draw(st.sampled_from([torch.int32, torch.int64]))
    return geometry, weight, torch.tensor(order[:count], dtype=dtype)


@settings(deadline=None, max_examples=150)
@given(draws())
def test_a_slice_is_the_channels_one_by_one(case: tuple[SliceGeometry, Tensor, Tensor]) -> None:
    geometry, weight, channels = case
    compact = geometry.gather(weight, channels)
    view = geometry.by_channel(compact)
    assert tuple(compact.shape) == geometry.shape(tuple(weight.shape), len(channels))
    assert view.untyped_storage().data_ptr() == compact.untyped_storage().data_ptr()
    assert view.shape[0] == len(channels)
    for place, channel in enumerate(channels.tolist()):
        torch.testing.assert_close(view[place], one_channel(geometry, weight, channel), rtol=0, atol=0)


@settings(deadline=None, max_examples=150)
@given(draws())
def test_writing_back_changes_the_drawn_channels_alone(case: tuple[SliceGeometry, Tensor, Tensor]) -> None:
    geometry, weight, channels = case
    weight = nn.Parameter(weight)
    before = weight.detach().clone()
    geometry.scatter_(weight, channels, geometry.gather(weight, channels))
    torch.testing.assert_close(weight.detach(), before, rtol=0, atol=0)
    geometry.scatter_(weight, channels, geometry.gather(weight, channels) + 1)
    for channel in range(geometry.in_channels):
        added = 1.0 if channel in channels.tolist() else 0.0
        expected = one_channel(geometry, before, channel) + added
        torch.testing.assert_close(one_channel(geometry, weight.detach(), channel), expected, rtol=0, atol=0)


@settings(deadline=None, max_examples=100)
@given(draws())
def test_a_slice_is_a_dense_copy_in_the_memory_format_of_its_weight(case: tuple[SliceGeometry, Tensor, Tensor]) -> None:
    geometry, weight, channels = case
    compact = geometry.gather(nn.Parameter(weight), channels)
    assert not compact.requires_grad
    assert compact.untyped_storage().data_ptr() != weight.untyped_storage().data_ptr()
    assert compact.untyped_storage().nbytes() == compact.numel() * compact.element_size()
    if weight.dim() == 4 and compact.dim() == 4 and not weight.is_contiguous():
        assert compact.is_contiguous(memory_format=torch.channels_last)
    else:
        assert weight.dim() == 5 or compact.is_contiguous()


class EveryKind(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.depthwise = nn.Conv2d(8, 16, 3, groups=8)
        self.grouped = nn.Conv2d(16, 8, 1, groups=4)
        self.transposed = nn.ConvTranspose2d(8, 6, 3, groups=2)
        self.linear = nn.Linear(6, 5)
        self.columns = nn.Parameter(torch.randn(5, 7))
        self.head = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.transposed(self.grouped(self.depthwise(self.conv(x))))
        logits: Tensor = self.head(self.linear(x.mean((2, 3))) @ self.columns)
        return logits


def test_a_slice_has_the_elements_the_plan_pays_for() -> None:
    model = EveryKind()
    traced = trace(model, torch.randn(2, 3, 9, 9))
    table = build_cost_table(traced, traced.layers, optimizer=OptimizerKind.SGD, dtype=DType.FLOAT32)
    weights = dict(model.named_parameters())
    assert {layer.kind for layer in table.layers} == set(LayerKind)
    for layer in table.layers:
        count = (layer.in_channels + 1) // 2
        compact = SliceGeometry.of(layer).gather(weights[layer.weight_name], torch.arange(count))
        assert compact.numel() == count * layer.weight_elements


def test_a_weight_on_the_meta_device_has_slices_too() -> None:
    geometry = SliceGeometry(LayerKind.CONV, 1, 4, 6, 1)
    compact = geometry.gather(torch.empty(6, 4, 3, 3, device="meta"), torch.empty(2, dtype=torch.int32, device="meta"))
    assert compact.shape == (6, 2, 3, 3)


@pytest.mark.parametrize("kind", list(LayerKind))
def test_a_geometry_is_a_plain_value(kind: LayerKind) -> None:
    assert SliceGeometry(kind, 1, 4, 4, 1) == SliceGeometry(kind.value, 1, 4, 4, 1)
