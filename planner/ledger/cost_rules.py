"""What training one input channel costs, by kind of layer: pure arithmetic.

Held by ``tests/planner/costs/test_table_builder.py``.
"""

import math
from dataclasses import dataclass
from typing import TypeAlias

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class ChannelCost:
    """Cost of training one input channel.

    Args:
        weight_elements: Elements of the weight slice, so of its gradient.
        activation_elements: Elements of the stored input slice.
        weight_grad_macs: Multiply-adds of the slice's gradient.
    """

    weight_elements: int
    activation_elements: int
    weight_grad_macs: int


def conv_channel_cost(weight_shape: Shape, output_positions: int, input_positions: int, groups: int) -> ChannelCost:
    """Elements that training one input channel of a convolution keeps.

    ``dL/dW[:, c]`` reads only ``x[:, c]``: a frozen channel needs neither its
    activation slice nor its slice of the weight gradient.

    Args:
        weight_shape: ``[C_out, C_in / groups, *kernel]``.
        output_positions: Output elements per channel (``H' * W'``, times the batch for a whole step).
        input_positions: Input elements per channel (``H * W``, times the batch for a whole step).
        groups: Convolution groups; ``C_in`` for a depthwise convolution.

    Returns:
        Elements of a channel's activation and weight gradient.

    Source:
        TraDy, arXiv 2510.19675, eq. (3) and (4).
    """
    weight_elements = math.prod(weight_shape[2:]) * weight_shape[0] // groups
    return ChannelCost(weight_elements, input_positions, weight_elements * output_positions)


def transposed_conv_channel_cost(weight_shape: Shape, input_positions: int) -> ChannelCost:
    """The same for a transposed convolution, whose weight is ``[C_in, C_out / groups, *kernel]``."""
    weight_elements = math.prod(weight_shape[1:])
    return ChannelCost(weight_elements, input_positions, weight_elements * input_positions)


def linear_channel_cost(out_features: int, tokens: int) -> ChannelCost:
    """The same for a linear layer over ``tokens`` rows (batch included for a whole step)."""
    return ChannelCost(out_features, tokens, out_features * tokens)


def conv_macs(weight_shape: Shape, output_positions: int) -> int:
    """Forward multiply-adds of a convolution; as many again for each of its two gradients.

    Args:
        weight_shape: ``[C_out, C_in / groups, *kernel]``, or ``[C_in, C_out / groups, *kernel]`` when transposed.
        output_positions: Positions the kernel is applied at: output ones, or input ones when transposed,
            batch included.

    Returns:
        Multiply-adds.
    """
    return math.prod(weight_shape) * output_positions


def matmul_macs(left_shape: Shape, right_shape: Shape) -> int:
    """Forward multiply-adds of ``[..., n, k] @ [..., k, m]``."""
    return math.prod(left_shape) * right_shape[-1]


def attention_macs(query_shape: Shape, key_shape: Shape, value_shape: Shape) -> int:
    """Forward multiply-adds of attention's two products, softmax left out.

    Args:
        query_shape: ``[B, heads, T, d]``.
        key_shape: ``[B, heads, S, d]``.
        value_shape: ``[B, heads, S, e]``.

    Returns:
        Multiply-adds.
    """
    return math.prod(query_shape[:-1]) * key_shape[-2] * (query_shape[-1] + value_shape[-1])


def gradient_norm_per_cost(norm: float, weight_elements: int, activation_elements: float) -> float:
    """Reweighted gradient norm (RGN): gradient norm per stored element, one sample.

    Returns:
        The reweighted gradient norm.

    Source:
        TraDy, arXiv 2510.19675, eq. (5).
    """
    return norm / (weight_elements + activation_elements)
