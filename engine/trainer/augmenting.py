"""Pictures seen a little differently each epoch: a random crop and a mirror, each a function of its seed.

Held by ``tests/engine/trainer/test_loaders.py``.
"""

import math
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

#: Share of the area that a crop keeps, and its width over its height.
_AREAS: Final = (0.5, 1.0)
_ASPECTS: Final = (3 / 4, 4 / 3)
_TRIES: Final = 10


def augmented(picture: Tensor, size: tuple[int, int], seed: int) -> Tensor:
    """A random part of a picture, resized, mirrored every other time.

    Args:
        picture: Normalised float ``[C, H, W]``.
        size: ``(H', W')`` of the result.
        seed: The same seed crops and mirrors the same way.

    Returns:
        ``[C, H', W']``.

    Source:
        Random resized crops: Szegedy et al. 2015; with milder bounds, as fine-tuning on small pictures wants.
    """
    generator = torch.Generator().manual_seed(seed)
    top, left, height, width = _random_box(picture.shape[1], picture.shape[2], generator)
    part = picture[:, top : top + height, left : left + width].unsqueeze(0)
    resized = F.interpolate(part, size, mode="bilinear", align_corners=False, antialias=True).squeeze(0)
    is_mirrored = bool(torch.rand((), generator=generator) < 0.5)
    return resized.flip(2) if is_mirrored else resized


def _random_box(height: int, width: int, generator: torch.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of a crop; the whole picture where no crop of that shape fits."""
    for _ in range(_TRIES):
        area = height * width * _between(*_AREAS, generator)
        aspect = math.exp(_between(math.log(_ASPECTS[0]), math.log(_ASPECTS[1]), generator))
        tall, wide = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < tall <= height and 0 < wide <= width:
            return _below(height - tall + 1, generator), _below(width - wide + 1, generator), tall, wide
    return 0, 0, height, width


def _between(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def _below(bound: int, generator: torch.Generator) -> int:
    return int(torch.randint(bound, (), generator=generator))
