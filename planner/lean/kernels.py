"""The tensor functions of a lean step: masks of one bit, window positions, gradients of channel slices.

No autograd here: the engine wraps these in its operations, and the planner measures the memory they work in.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

#: Gathers the lowest bit of eight bytes in the highest byte of their product, byte ``i`` to bit ``i``.
_GATHER_BITS: Final = 0x0102040810204080
#: Repeats a byte eight times.
_REPEAT_BYTE: Final = 0x0101010101010101
#: Bit ``i`` of byte ``i``, as a signed number.
_BIT_OF_BYTE: Final = 0x8040201008040201 - (1 << 64)
#: Added to a byte of 0 to 0x80 it sets the highest bit of all but 0.
_ROUND_UP: Final = 0x7F7F7F7F7F7F7F7F
#: Elements whose int64 positions are worked on at a time.
_CHUNK_ELEMENTS: Final = 1 << 18


def pack_bits(mask: Tensor, other: Tensor | None = None) -> Tensor:
    """Eight elements to a byte.

    Args:
        mask: Dense boolean tensor of any shape and layout; used up: its memory is worked in.
        other: A second mask of the same layout; an element counts where both are true.

    Returns:
        uint8 ``[ceil(n / 8)]``, in the order of the masks' memory.
    """
    words = _as_words(mask)
    if other is not None:
        words.bitwise_and_(_as_words(other))
    return words.mul_(_GATHER_BITS).bitwise_right_shift_(56).to(torch.uint8)


def _as_words(mask: Tensor) -> Tensor:
    """Eight booleans as one int64, padded with false; the mask's own memory where it needs no padding."""
    elements = mask.numel()
    flat = mask.as_strided((elements,), (1,))
    if elements % 8:
        flat = torch.cat([flat, flat.new_zeros(8 - elements % 8)])
    return flat.view(torch.int64)


def unpack_bits(packed: Tensor, shape: Sequence[int], stride: Sequence[int]) -> Tensor:
    """The boolean tensor :func:`pack_bits` was given, in its layout.

    Args:
        packed: What :func:`pack_bits` returned.
        shape: Of the mask.
        stride: Of the mask, in elements; dense.

    Returns:
        The bits as booleans of the shape.
    """
    words = packed.to(torch.int64).mul_(_REPEAT_BYTE).bitwise_and_(_BIT_OF_BYTE)
    words.add_(_ROUND_UP).bitwise_right_shift_(7).bitwise_and_(_REPEAT_BYTE)
    return words.view(torch.bool).as_strided(tuple(shape), tuple(stride))


def masked_gradient(grad: Tensor, passes: Tensor, slope: float = 0.0, scale: float = 1.0) -> Tensor:
    """``scale * grad`` where the mask is true, ``slope * grad`` elsewhere.

    The mask becomes the result's memory: ``torch.where`` and products with a boolean are five times slower on the CPU.

    Args:
        grad: Any shape.
        passes: Boolean, of the same shape.
        slope: Factor where the mask is false.
        scale: Factor where it is true.

    Returns:
        The gradient of the input.
    """
    factor = passes.view(torch.uint8).to(grad.dtype)
    if slope or scale != 1.0:
        factor.mul_(scale - slope).add_(slope)
    return factor.mul_(grad)


@dataclass(frozen=True)
class Pooling:
    """Windows of a max pooling, one entry per dimension.

    Args:
        input_size: Positions of the input.
        kernel: Window.
        stride: Step between windows.
        padding: Padding on both sides.
        dilation: Step inside a window.
        ceil_mode: Whether windows may stand over the edge.
    """

    input_size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    ceil_mode: bool

    @property
    def position_dtype(self) -> torch.dtype:
        """One byte for windows of up to 256 positions."""
        return torch.uint8 if torch.Size(self.kernel).numel() <= 256 else torch.int16


def window_positions(indices: Tensor, pooling: Pooling) -> Tensor:
    """The maximum's position inside its window, from its index in the input.

    Args:
        indices: int64 ``[B, C, *output]``, flat over the input's positions, as PyTorch's pooling returns them.
        pooling: The windows.

    Returns:
        uint8 ``[B, C, *output]``, int16 where a window has more than 256 positions.
    """
    positions = torch.empty_like(indices, dtype=pooling.position_dtype)
    firsts, steps = _window_starts(indices, pooling), _window_steps(pooling, indices.device)
    place_of_step = torch.zeros(int(steps[-1]) + 1, dtype=pooling.position_dtype, device=indices.device)
    place_of_step[steps] = torch.arange(len(steps), device=indices.device).to(pooling.position_dtype)
    for rows in _chunks(indices):
        step = indices[rows] - firsts
        positions[rows] = place_of_step.index_select(0, step.flatten()).view(step.shape)
    return positions


def max_pool_input_gradient(grad: Tensor, positions: Tensor, pooling: Pooling) -> Tensor:
    """Gradient of a max pooling's input from positions inside windows.

    Args:
        grad: ``[B, C, *output]``.
        positions: What :func:`window_positions` returned.
        pooling: The windows.

    Returns:
        ``[B, C, *input]``, in the layout of the positions.
    """
    layout = torch.channels_last if _is_channels_last(positions) else torch.contiguous_format
    shape = (*positions.shape[:2], *pooling.input_size)
    result = torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=layout)
    kind = torch.ops.aten.max_pool2d_with_indices_backward
    if len(pooling.kernel) == 3:
        kind = torch.ops.aten.max_pool3d_with_indices_backward
    firsts, steps = _window_starts(positions, pooling), _window_steps(pooling, positions.device)
    for rows in _chunks(positions):
        part = result[rows]
        kind.grad_input(
            grad[rows],
            part,
            list(pooling.kernel),
            list(pooling.stride),
            list(pooling.padding),
            list(pooling.dilation),
            pooling.ceil_mode,
            _flat_indices(positions[rows], pooling, firsts, steps),
            grad_input=part,
        )
    return result


def _flat_indices(positions: Tensor, pooling: Pooling, firsts: Tensor, steps: Tensor) -> Tensor:
    places = positions.flatten().to(torch.int32)
    if positions.dtype == torch.int16:
        places.bitwise_and_(0xFFFF)
    return steps.index_select(0, places).view(positions.shape).add_(firsts)


def _window_starts(like: Tensor, pooling: Pooling) -> Tensor:
    """Flat input index of each window's first position, int64 ``[*output]``; negative inside the padding."""
    starts = torch.zeros(1, dtype=torch.int64, device=like.device)
    for dim, size in enumerate(pooling.input_size):
        first = torch.arange(like.shape[dim + 2], device=like.device) * pooling.stride[dim] - pooling.padding[dim]
        starts = starts.mul(size).unsqueeze(-1) + first
    return starts.squeeze(0)


def _window_steps(pooling: Pooling, device: torch.device) -> Tensor:
    """How far each position of a window lies from its first, in flat input indices, int64 ``[positions]``."""
    steps = torch.zeros(1, dtype=torch.int64, device=device)
    for size, window, dilation in zip(pooling.input_size, pooling.kernel, pooling.dilation, strict=True):
        steps = (steps[:, None] * size + torch.arange(window, device=device) * dilation).flatten()
    return steps


def _chunks(tensor: Tensor) -> Iterator[slice]:
    """Slices of the batch dimension that hold few elements each."""
    rows = max(1, _CHUNK_ELEMENTS // max(1, tensor[0].numel())) if len(tensor) else 1
    for start in range(0, len(tensor), rows):
        yield slice(start, start + rows)


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


@dataclass(frozen=True)
class Convolution:
    """How a convolution was called, one entry per spatial dimension.

    Args:
        stride: Step between windows.
        padding: Padding on both sides.
        dilation: Step inside a window.
        transposed: Whether it is a transposed convolution.
        output_padding: Of a transposed convolution.
        groups: Groups.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int

    def __call__(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Run it."""
        return torch.convolution(
            inputs,
            weight,
            bias,
            self.stride,
            self.padding,
            self.dilation,
            self.transposed,
            self.output_padding,
            self.groups,
        )


def conv_input_gradient(grad: Tensor, weight: Tensor, input_size: Sequence[int], how: Convolution) -> Tensor:
    """Gradient of a convolution's input, without the input or a stand-in for it.

    ``convolution_backward`` wants the input for its shape and copies it whole on some backends; the transposed
    convolution of the gradient is the same computation and needs none.

    Args:
        grad: ``[B, C_out, *output]``.
        weight: As in the forward pass.
        input_size: Positions of the input, without batch and channels.
        how: The convolution.

    Returns:
        ``[B, C_in, *input_size]``.
    """
    if how.transposed:
        found = torch.convolution(
            grad, weight, None, how.stride, how.padding, how.dilation, False, [0] * len(how.stride), how.groups
        )
        # Output padding of a stride or more, which dilation allows, has windows that no input stands for.
        for dim, size in enumerate(input_size, start=2):
            found = found.narrow(dim, 0, size)
        return found
    kernel, output_size = weight.shape[2:], grad.shape[2:]
    left_over = [
        size - ((out - 1) * step - 2 * pad + dilation * (window - 1) + 1)
        for size, out, step, pad, dilation, window in zip(
            input_size, output_size, how.stride, how.padding, how.dilation, kernel, strict=True
        )
    ]
    return torch.convolution(grad, weight, None, how.stride, how.padding, how.dilation, True, left_over, how.groups)


def select_channels(inputs: Tensor, channels: Tensor, dim: int) -> Tensor:
    """A copy of the drawn channels, in the input's own layout.

    Args:
        inputs: ``[B, C, *positions]`` or ``[..., C]``.
        channels: Indices ``[n]``.
        dim: The channels' dimension.

    Returns:
        The channels, in the order of the indices.
    """
    if dim == 1 and _is_channels_last(inputs):
        return inputs.permute(0, 2, 3, 1).index_select(3, channels).permute(0, 3, 1, 2)
    return inputs.index_select(dim, channels)


def conv_slice_gradient(
    grad: Tensor, stored: Tensor, channels: Tensor, slice_shape: Sequence[int], in_channels: int, how: Convolution
) -> Tensor:
    """Gradient of a convolution's weight for the drawn input channels only.

    With groups a drawn channel meets its own group's outputs alone: their gradients are gathered for each drawn
    channel, and the rest is a depthwise convolution.

    Args:
        grad: ``[B, C_out, *output]``.
        stored: Input of the drawn channels, ``[B, n, *input]``.
        channels: Their indices ``[n]``.
        slice_shape: Shape of the compact weight slice: ``[C_out, n, *kernel]`` without groups, else ``n`` times the
            outputs of a group.
        in_channels: Input channels of the layer.
        how: The convolution.

    Returns:
        Gradient of the slice, of ``slice_shape``.
    """
    number, kernel = stored.shape[1], tuple(slice_shape[2:])
    if how.groups == 1:
        return _weight_gradient(grad, stored, tuple(slice_shape), how, 1)
    per_group = grad.shape[1] // how.groups
    groups = channels if in_channels == how.groups else channels.div(in_channels // how.groups, rounding_mode="floor")
    by_group = grad.unflatten(1, (how.groups, per_group))
    needed = by_group.index_select(1, groups).flatten(1, 2)
    shape = (number, per_group, *kernel) if how.transposed else (number * per_group, 1, *kernel)
    return _weight_gradient(needed, stored, shape, how, number).reshape(tuple(slice_shape))


def conv_weight_gradient(grad: Tensor, inputs: Tensor, weight_shape: tuple[int, ...], how: Convolution) -> Tensor:
    """Gradient of a convolution's whole weight, of ``weight_shape``."""
    return _weight_gradient(grad, inputs, weight_shape, how, how.groups)


def _weight_gradient(grad: Tensor, inputs: Tensor, shape: tuple[int, ...], how: Convolution, groups: int) -> Tensor:
    stand_in = grad.new_empty(1).expand(shape)
    stride = how.stride
    if _skips_positions(how, shape):
        # oneDNN (torch 2.15) writes outside its memory here for one channel, channels last.
        places = (slice(None, (size - 1) * step + 1, step) for size, step in zip(grad.shape[2:], stride, strict=True))
        inputs, stride = inputs[(slice(None), slice(None), *places)], (1,) * len(stride)
    found = torch.ops.aten.convolution_backward(
        grad,
        inputs,
        stand_in,
        None,
        list(stride),
        list(how.padding),
        list(how.dilation),
        how.transposed,
        list(how.output_padding),
        groups,
        [False, True, False],
    )
    gradient: Tensor = found[1]
    return gradient


def _skips_positions(how: Convolution, shape: tuple[int, ...]) -> bool:
    """Whether windows of one position leave out others: a plain convolution of the positions they meet."""
    plain = not how.transposed and not any(how.padding) and set(shape[2:]) == {1}
    return plain and any(step > 1 for step in how.stride)


def bias_gradient(grad: Tensor, channel_dim: int) -> Tensor:
    """Sum over all but the output channels."""
    return grad.sum([dim for dim in range(grad.dim()) if dim != channel_dim]) if grad.dim() > 1 else grad
