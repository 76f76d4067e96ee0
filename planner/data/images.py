"""Pictures to normalised tensors, from files, from packed JPEG bytes and from arrays of pixels."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trady.planner.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

_INTERPOLATIONS: Final = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
_MODE_OF_CHANNELS: Final = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class PictureFormat:
    """How pictures become a model's inputs: resized, cropped, scaled to 0..1, normalised.

    Args:
        size: ``(C, H, W)`` with C 1 (grey) or 3 (RGB).
        mean: One value per channel, on pixels scaled to 0..1.
        std: One value per channel, above zero, on pixels scaled to 0..1.
        interpolation: A Pillow resampling filter by name.
        crop_fraction: Share of the resized short side that the centre crop keeps, above 0 and at most 1.

    Raises:
        DataError: A value is outside its range; all such values are listed.
    """

    size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    crop_fraction: float = 0.875

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise DataError(f"Picture format: {'; '.join(problems)}.")

    def _problems(self) -> Sequence[str]:
        channels, *sides = self.size
        rules = {
            f"size must be C x H x W with C 1 or 3 and sides of at least 1, got {self.size}": (
                len(sides) == 2 and channels in _MODE_OF_CHANNELS and min(sides) >= 1
            ),
            f"mean and std need {channels} values each, got {len(self.mean)} and {len(self.std)}": (
                len(self.mean) == len(self.std) == channels
            ),
            f"std must be above zero, got {self.std}": all(value > 0 for value in self.std),
            f"interpolation must be one of {', '.join(_INTERPOLATIONS)}, got {self.interpolation!r}": (
                self.interpolation in _INTERPOLATIONS
            ),
            f"crop fraction must be above 0 and at most 1, got {self.crop_fraction}": 0.0 < self.crop_fraction <= 1.0,
        }
        return [problem for problem, holds in rules.items() if not holds]


def require_pillow() -> ModuleType:
    """The module ``PIL.Image``.

    Raises:
        DataError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError('Pictures are read with Pillow, which is not installed. pip install "trady[vision]"') from error
    module: ModuleType = Image
    return module


def picture_tensor(image: "Image", picture: PictureFormat) -> Tensor:
    """Make a Pillow image a model's input.

    The short side is resized to ``round(side / crop_fraction)`` with the aspect ratio kept, then the
    centre is cropped: what torchvision's ``Resize`` and ``CenterCrop`` do. For an oblong input the
    picture is resized to cover both sides.

    Args:
        image: A ``PIL.Image.Image`` of any mode with 8 or 16 bits a channel.
        picture: The model's format, ``size`` being ``(C, H, W)``.

    Returns:
        float32 ``[C, H, W]``.

    Error:
        DataError: The pixels are 32-bit, whose range is not known.
    """
    converted = _eight_bit(image).convert(_MODE_OF_CHANNELS[picture.size[0]])
    cropped = _crop_centre(_resize_to_cover(converted, picture), picture.size[1], picture.size[2])
    return _normalise(torch.from_numpy(np.array(cropped)), picture)


def _eight_bit(image: Any) -> Any:
    """Pillow's own conversion clips 16-bit grey to white, so take the upper byte.

    Raises:
        DataError: The pixels have 32 bits of unknown range.
    """
    if image.mode.startswith("I;16"):
        return require_pillow().fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise DataError(f"has 32-bit pixels (mode {image.mode}) of unknown range; save it with 8 or 16 bits a channel")
    return image.convert("RGBA") if image.mode == "P" else image


def _resize_to_cover(image: Any, picture: PictureFormat) -> Any:
    height, width = (round(side / picture.crop_fraction) for side in picture.size[1:])
    if height * image.width <= width * image.height:
        size = (width, max(height, int(width * image.height / image.width)))
    else:
        size = (max(width, int(height * image.width / image.height)), height)
    return image.resize(size, require_pillow().Resampling[picture.interpolation.upper()])


def _crop_centre(image: Any, height: int, width: int) -> Any:
    top, left = round((image.height - height) / 2), round((image.width - width) / 2)
    return image.crop((left, top, left + width, top + height))


def _normalise(pixels: Tensor, picture: PictureFormat) -> Tensor:
    """Pixels ``[H, W]`` or ``[H, W, C]``, uint8 or floats in 0..1, to float32 ``[C, H, W]``."""
    unit = pixels.float() / 255.0 if pixels.dtype == torch.uint8 else pixels.float()
    planes = unit.unsqueeze(0) if unit.dim() == 2 else unit.permute(2, 0, 1)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (picture.mean, picture.std))
    return ((planes - mean) / std).contiguous()


def _decode(file: Path | io.BytesIO, name: str, picture: PictureFormat) -> Tensor:
    pillow = require_pillow()
    try:
        with pillow.open(file) as image:
            return picture_tensor(image, picture)
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, zlib.error and more
        raise DataError(f"Picture {name!r} cannot be read: {error}. Remove it or save it anew.") from error


@dataclass(frozen=True)
class PictureFiles:
    """Picture files under one folder, decoded when asked for."""

    root: Path
    paths: Sequence[Path]
    picture: PictureFormat
    noun: str = "pictures"

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """The path below the root."""
        return self.paths[index].relative_to(self.root).as_posix()

    def load(self, index: int) -> Tensor:
        """float32 ``[C, H, W]``; DataError if the file is not a whole picture."""
        return _decode(self.paths[index], self.name(index), self.picture)


@dataclass(frozen=True)
class PackedPictures:
    """Encoded pictures one after the other in a byte array, decoded when asked for.

    Args:
        encoded: uint8; picture i is ``encoded[offsets[i]:offsets[i + 1]]``.
        offsets: int64 ``[N + 1]``.
        names: Of each picture.
        picture: The model's format.
    """

    encoded: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    names: Sequence[str]
    picture: PictureFormat
    noun: str = "pictures"

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        """The file's original name, or its position."""
        return self.names[index]

    def load(self, index: int) -> Tensor:
        """float32 ``[C, H, W]``; DataError if the bytes are not a whole picture."""
        start, stop = self.offsets[index], self.offsets[index + 1]
        return _decode(io.BytesIO(self.encoded[start:stop].tobytes()), self.names[index], self.picture)


@dataclass(frozen=True)
class PixelArrays:
    """Pictures that are arrays of pixels already.

    Arrays of the model's height and width are taken whole; others are resized and cropped like
    pictures. Floats are rounded to 8 bits where they are resized or change their channels.

    Args:
        pixels: ``[N, H, W, C]`` or ``[N, H, W]``, uint8 or floats in 0..1; C is 1, 3 or 4.
        picture: The model's format.
    """

    pixels: NDArray[Any]
    picture: PictureFormat
    noun: str = "pictures"

    def __len__(self) -> int:
        return len(self.pixels)

    def name(self, index: int) -> str:
        """The picture's position in the array."""
        return f"picture {index}"

    def load(self, index: int) -> Tensor:
        """float32 ``[C, H, W]``."""
        pixels = self.pixels[index]
        height, width, channels = (*pixels.shape, 1)[:3]
        if (channels, height, width) == self.picture.size:
            return _normalise(torch.from_numpy(np.array(pixels)), self.picture)
        eight_bit = pixels if pixels.dtype == np.uint8 else np.round(pixels * 255).astype(np.uint8)
        image = require_pillow().fromarray(eight_bit[..., 0] if eight_bit.shape[2:] == (1,) else eight_bit)
        fits = (height, width) == self.picture.size[1:]
        return picture_tensor(image, replace(self.picture, crop_fraction=1.0) if fits else self.picture)
