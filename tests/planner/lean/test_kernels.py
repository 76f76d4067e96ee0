"""The tensor functions of a lean step against numpy's bits, PyTorch's indices and dense gradients."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor
from torch.testing import assert_close

from trady.planner.lean.kernels import (
    Convolution,
    Pooling,
    bias_gradient,
    conv_input_gradient,
    conv_slice_gradient,
    max_pool_input_gradient,
    pack_bits,
    select_channels,
    unpack_bits,
    window_positions,
)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_bits_are_packed_as_numpy_packs_them(shape: list[int], random: np.random.Generator) -> None:
    order = list(range(len(shape)))
    random.shuffle(order)
    mask = torch.rand(shape).gt(0.5).permute(order).clone(memory_format=torch.preserve_format)
    expected = mask.clone(memory_format=torch.preserve_format)
    in_memory = mask.as_strided((mask.numel(),), (1,)).numpy().copy()
    packed = pack_bits(mask)
    assert packed.dtype == torch.uint8
    assert packed.untyped_storage().nbytes() == (expected.numel() + 7) // 8
    np.testing.assert_array_equal(packed.numpy(), np.packbits(in_memory, bitorder="little"))
    found = unpack_bits(packed, expected.shape, expected.stride())
    assert found.dtype == torch.bool and found.stride() == expected.stride()
    assert torch.equal(found, expected)


@st.composite
def poolings(draw: st.DrawFn) -> tuple[Tensor, Pooling]:
    """A pooling of two or three dimensions that PyTorch takes, and an input with equal elements in it."""
    dims = draw(st.integers(2, 3))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    kernel, stride, dilation = each(1, 3), each(1, 3), each(1, 2)
    padding = tuple(draw(st.integers(0, size // 2)) for size in kernel)
    least = [max(2, step * (size - 1) + 1) for size, step in zip(kernel, dilation, strict=True)]
    size = tuple(draw(st.integers(smallest, smallest + 4)) for smallest in least)
    inputs = torch.randn(draw(st.integers(0, 3)), draw(st.integers(1, 3)), *size)
    if draw(st.booleans()):
        inputs = inputs.round()
    if dims == 2 and draw(st.booleans()):
        inputs = inputs.to(memory_format=torch.channels_last)
    return inputs, Pooling(size, kernel, stride, padding, dilation, draw(st.booleans()))


@settings(deadline=None, max_examples=150)
@given(poolings())
def test_positions_in_windows_lead_gradients_back(case: tuple[Tensor, Pooling]) -> None:
    inputs, pooling = case
    inputs.requires_grad_()
    pool = F.max_pool2d if len(pooling.kernel) == 2 else F.max_pool3d
    outputs, indices = pool(
        inputs,
        pooling.kernel,
        pooling.stride,
        pooling.padding,
        pooling.dilation,
        pooling.ceil_mode,
        return_indices=True,
    )
    positions = window_positions(indices, pooling)
    assert positions.dtype == torch.uint8 and positions.shape == outputs.shape
    assert positions.numel() == 0 or int(positions.max()) < torch.Size(pooling.kernel).numel()
    gradient = torch.randn_like(outputs)
    (expected,) = torch.autograd.grad(outputs, inputs, gradient)
    assert_close(max_pool_input_gradient(gradient, positions, pooling), expected)


def test_many_samples_go_through_in_chunks() -> None:
    inputs = torch.randn(40, 8, 60, 60, requires_grad=True)
    outputs, indices = F.max_pool2d(inputs, 2, return_indices=True)
    assert outputs.numel() > 1 << 18
    pooling = Pooling((60, 60), (2, 2), (2, 2), (0, 0), (1, 1), False)
    gradient = torch.randn_like(outputs)
    (expected,) = torch.autograd.grad(outputs, inputs, gradient)
    assert_close(max_pool_input_gradient(gradient, window_positions(indices, pooling), pooling), expected)


@pytest.mark.parametrize(("side", "dtype"), [(16, torch.uint8), (17, torch.int16), (190, torch.int16)])
def test_large_windows_take_two_bytes(side: int, dtype: torch.dtype) -> None:
    inputs = torch.randn(1, 2, 200, 200, requires_grad=True)
    outputs, indices = F.max_pool2d(inputs, side, 5, return_indices=True)
    pooling = Pooling((200, 200), (side, side), (5, 5), (0, 0), (1, 1), False)
    positions = window_positions(indices, pooling)
    assert positions.dtype == dtype
    (expected,) = torch.autograd.grad(outputs.sum(), inputs)
    assert_close(max_pool_input_gradient(torch.ones_like(outputs), positions, pooling), expected)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Tensor, Tensor, list[int], Convolution]:
    """Input, weight, drawn channels and how of a convolution of one to three dimensions, transposed or not."""
    dims, transposed = draw(st.integers(1, 3)), draw(st.booleans())

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    groups, inputs, outputs = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    kernel, stride, dilation = each(1, 3), each(1, 3), each(1, 2)
    padding = tuple(draw(st.integers(0, step * (size - 1))) for size, step in zip(kernel, dilation, strict=True))
    left_over = tuple(draw(st.integers(0, max(a, b) - 1)) for a, b in zip(stride, dilation, strict=True))
    size = [step * (edge - 1) + 1 + draw(st.integers(0, 3)) for edge, step in zip(kernel, dilation, strict=True)]
    channels = inputs * groups
    shape = (channels, outputs) if transposed else (outputs * groups, inputs)
    drawn = draw(st.permutations(range(channels)))[: draw(st.integers(1, channels))]
    how = Convolution(stride, padding, dilation, transposed, left_over if transposed else (0,) * dims, groups)
    x = torch.randn(draw(st.integers(1, 2)), channels, *size, dtype=torch.float64)
    return x, torch.randn(*shape, *kernel, dtype=torch.float64), drawn, how


@settings(deadline=None, max_examples=200)
@given(convolutions())
def test_gradients_of_any_convolution(case: tuple[Tensor, Tensor, list[int], Convolution]) -> None:
    inputs, weight, drawn, how = case
    inputs.requires_grad_()
    weight.requires_grad_()
    outputs = how(inputs, weight, None)
    gradient = torch.randn_like(outputs)
    to_input, to_weight = torch.autograd.grad(outputs, (inputs, weight), gradient)
    assert_close(conv_input_gradient(gradient, weight.detach(), inputs.shape[2:], how), to_input)
    per_group = outputs.shape[1] // how.groups
    expected = by_channel(to_weight, how)[drawn]
    shape = (len(drawn), per_group, *weight.shape[2:])
    if how.groups == 1 and not how.transposed:
        expected, shape = expected.transpose(0, 1), (shape[1], shape[0], *shape[2:])
    found = conv_slice_gradient(
        gradient, inputs.detach()[:, drawn], torch.tensor(drawn, dtype=torch.int32), shape, inputs.shape[1], how
    )
    assert_close(found, expected)


def by_channel(weight: Tensor, how: Convolution) -> Tensor:
    """A weight's gradient with all input channels first: ``[C, C'/g, *kernel]``."""
    if how.transposed:
        return weight
    return torch.cat([rows.transpose(0, 1) for rows in weight.chunk(how.groups)])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dim", [1, 3])
def test_selected_channels_are_a_copy_in_the_same_layout(layout: torch.memory_format, dim: int) -> None:
    inputs = torch.randn(2, 6, 3, 4).to(memory_format=layout)
    index = torch.tensor([2, 0], dtype=torch.int32)
    found = select_channels(inputs, index, dim)
    assert_close(found, inputs.index_select(dim, index))
    assert found.untyped_storage().nbytes() == found.numel() * 4
    assert dim != 1 or found.is_contiguous(memory_format=layout)


def test_a_bias_gets_the_sum_over_all_else() -> None:
    gradient = torch.randn(2, 3, 4)
    assert_close(bias_gradient(gradient, 1), gradient.sum((0, 2)))
    assert_close(bias_gradient(gradient[0, 0], 0), gradient[0, 0])
