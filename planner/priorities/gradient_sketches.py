"""Sketches of gradients: eight numbers for each input channel, whose dot products estimate those of the gradients."""

import hashlib
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

#: Numbers a channel's gradient is reduced to: one for each bit of a random byte.
SKETCH_SIZE: Final = 8
#: Chooses the signs. Recordings can be held against each other because all of them use the same.
SKETCH_SEED: Final = 0


def sketch(rows: Tensor, weight_name: str, *, seed: int = SKETCH_SEED) -> Tensor:
    """Project each row on random signs, the same ones at every call; linear, so that sums of sketches are sketches.

    The dot product of two sketches is an unbiased estimate of the dot product of what they sketch, its standard
    deviation at most ``sqrt(2 / 8)`` times the product of the norms. Signs differ from channel to channel, so that
    errors average out in sums over channels.

    Args:
        rows: Gradient of each input channel, ``[C_in, C_W]``, as :func:`channel_rows` gives it.
        weight_name: Dotted name of the weight: every weight has signs of its own.
        seed: Of the signs.

    Returns:
        ``[C_in, 8]`` in float32, on the CPU.

    Source:
        Achlioptas, "Database-friendly random projections", JCSS 2003.
    """
    signs = torch.from_numpy(_random_bytes(rows.numel(), weight_name, seed)).to(rows.device).view(rows.shape)
    wide = rows.detach().float()
    columns = [torch.where(signs & (1 << bit) > 0, wide, -wide).sum(dim=1) for bit in range(SKETCH_SIZE)]
    return (torch.stack(columns, dim=1) / SKETCH_SIZE**0.5).cpu()


def channel_rows(weight: Tensor, channel_dim: int, groups: int) -> Tensor:
    """A weight, or its gradient, with one row for each input channel.

    Args:
        weight: A layer's weight ``[C_out, C_in / groups, *kernel]``, or with ``C_in`` first when transposed.
        channel_dim: Dimension that input channels run along.
        groups: Convolution groups.

    Returns:
        ``[C_in, C_W]``, groups one after the other.
    """
    if groups > 1 and channel_dim == 1:
        grouped = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
        return grouped.transpose(1, 2).reshape(groups * weight.shape[1], -1)
    return weight.movedim(channel_dim, 0).flatten(1)


def _random_bytes(count: int, weight_name: str, seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Raw bits of a counter-based generator: the same on every machine."""
    key = int.from_bytes(hashlib.sha256(f"{seed} {weight_name}".encode()).digest()[:16], "little")
    words = np.random.Philox(key=key).random_raw(-(-count // 8))
    return words.astype("<u8").view(np.uint8)[:count]
