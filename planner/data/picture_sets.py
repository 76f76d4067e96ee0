"""Labelled pictures on disk: folders of class folders, and .npz archives.

Held by ``tests/planner/data/test_opening.py``.
"""

import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trady.planner.data.datasets import LabelledData
from trady.planner.data.images import PackedPictures, PictureFiles, PictureFormat, PixelArrays, require_pillow
from trady.planner.errors import DataError

_SUFFIXES: Final = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".pgm", ".ppm"))
_SPLIT_FOLDERS: Final = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
_ARRAY_KEYS: Final = {
    "train": (("x_train", "train_images", "x", "images"), ("y_train", "train_labels", "y", "labels")),
    "validation": (("x_val", "val_images"), ("y_val", "val_labels")),
    "test": (("x_test", "test_images"), ("y_test", "test_labels")),
}
_PACKED_SPLITS: Final = ("train", "test")


def read_folder(root: Path, picture: PictureFormat, split: str) -> LabelledData:
    """Find the pictures of a folder of class folders; none is opened yet.

    Pictures are looked for at any depth below a class folder; hidden files and files that are no
    pictures by their suffix are left alone. With ``train`` and ``val`` (or ``valid``,
    ``validation``, ``test``) folders one of them is read. Classes are the class folders that hold
    pictures in any of these, sorted by name.

    Args:
        root: The folder.
        picture: The model's format.
        split: Which part: ``"train"``, ``"validation"`` or ``"test"``.

    Raises:
        DataError: The folder has no class folders with pictures, or not the part asked for.
    """
    require_pillow()
    parts = _split_folders(root)
    chosen = _chosen_part(root, parts, split)
    classes = sorted({name for part in set(parts.values()) or {root} for name in _class_names(part)})
    paths_of = [_picture_paths(chosen / name) for name in classes]
    paths = [path for paths in paths_of for path in paths]
    if not paths:
        raise DataError(_no_pictures(chosen))
    labels = torch.tensor([label for label, found in enumerate(paths_of) for _ in found])
    note = f"split {split!r} from {chosen.name}/" if parts else ""
    return LabelledData(PictureFiles(root, paths, picture), labels, classes, str(root), note=note)


def _split_folders(root: Path) -> dict[str, Path]:
    """The folders of each split present; empty when the folder is not divided."""
    folders = {path.name.lower(): path for path in _visible_folders(root)}
    found = {
        split: folders[name] for split, names in _SPLIT_FOLDERS.items() for name in reversed(names) if name in folders
    }
    return found if "train" in found and (len(found) > 1 or len(folders) == 1) else {}


def _chosen_part(root: Path, parts: Mapping[str, Path], split: str) -> Path:
    if split in parts:
        return parts[split]
    if split == "train":
        return root
    found = f"only {', '.join(f'{path.name}/' for path in parts.values())}" if parts else "no train/ and val/ folders"
    raise DataError(f"{root} has no part {split!r}: {found}. Read 'train' and hold some out with .split(0.2).")


def _visible_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _class_names(folder: Path) -> list[str]:
    return [path.name for path in _visible_folders(folder) if _picture_paths(path)]


def _picture_paths(folder: Path) -> list[Path]:
    """Pictures at any depth, in one order on every machine; links to folders are followed."""
    found: list[Path] = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in files if not name.startswith(".")]
    return sorted(path for path in found if path.suffix.lower() in _SUFFIXES)


def _no_pictures(folder: Path) -> str:
    loose = sum(path.suffix.lower() in _SUFFIXES for path in folder.iterdir())
    found = f"{loose} pictures, but no folders of them" if loose else "no pictures"
    return (
        f"{folder} has {found}. Make one folder per class in it, each with that class's pictures "
        f"({', '.join(sorted(_SUFFIXES))})."
    )


def read_archive(path: Path, picture: PictureFormat, split: str) -> LabelledData:
    """Read labelled pictures from an ``.npz``, never unpickling.

    Either encoded files (``jpeg`` uint8 one after the other, ``offset``, ``label``, ``classes``, and
    perhaps ``split`` with 0 train and 1 test, and ``id``), or arrays ``x``, ``images`` or ``x_train``
    with ``y``, ``labels`` or ``y_train`` (and ``x_test`` with ``y_test``): uint8 or floats in 0..1,
    channels first or last.

    Args:
        path: The archive.
        picture: The model's format.
        split: Which part: ``"train"``, ``"validation"`` or ``"test"``.

    Raises:
        DataError: The archive cannot be read, holds pickled objects, lacks arrays or the part asked
            for, or its arrays do not fit together.
    """
    require_pillow()
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DataError(f"{path} is a single array, not an .npz. Save pictures and labels with np.savez.")
        with archive:
            return _read_arrays(path, archive, picture, split)
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if "pickle" in str(error):
            raise DataError(
                f"{path} holds pickled Python objects, which can run code and are refused: {error} "
                "Save plain arrays: np.asarray(names, dtype=str) instead of dtype=object."
            ) from error
        raise DataError(f"{path} cannot be read as .npz: {error}. Check that the file is whole.") from error


def _read_arrays(path: Path, archive: Mapping[str, Any], picture: PictureFormat, split: str) -> LabelledData:
    if "jpeg" in archive:
        return _read_packed(path, archive, picture, split)
    if not (_present(archive, "train", 0) and _present(archive, "train", 1)):
        raise DataError(
            f"{path} has none of the arrays jpeg, x, images or x_train, or no labels beside them (y, labels, y_train). "
            f"It has: {', '.join(archive) or 'nothing'}."
        )
    return _read_pixels(path, archive, picture, split)


def _read_packed(path: Path, archive: Mapping[str, Any], picture: PictureFormat, split: str) -> LabelledData:
    absent = [key for key in ("offset", "label", "classes") if key not in archive]
    if absent:
        raise DataError(f"{path} has 'jpeg' but not {', '.join(absent)}. It has: {', '.join(archive)}.")
    encoded, offsets, labels = archive["jpeg"], archive["offset"], archive["label"]
    classes = [_as_text(name) for name in archive["classes"].tolist()]
    _check_offsets(path, encoded, offsets, labels)
    _check_labels(path, labels, len(classes))
    names = _packed_names(archive, len(labels))
    chosen = _packed_part(path, archive, split, len(labels))
    items = PackedPictures(encoded, offsets, names, picture)
    note = f"split {split!r}" if "split" in archive else ""
    return LabelledData(
        items, torch.from_numpy(labels[chosen]).long(), classes, str(path), chosen=torch.from_numpy(chosen), note=note
    )


def _as_text(name: object) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name)


def _packed_names(archive: Mapping[str, Any], count: int) -> list[str]:
    names = [_as_text(name) for name in archive["id"].tolist()] if "id" in archive else []
    return names if len(names) == count else [f"picture {index}" for index in range(count)]


def _check_offsets(path: Path, encoded: NDArray[Any], offsets: NDArray[Any], labels: NDArray[Any]) -> None:
    problems = []
    if encoded.dtype != np.uint8 or offsets.dtype.kind not in "iu":
        problems.append(f"'jpeg' and 'offset' are {encoded.dtype} and {offsets.dtype}, not uint8 and whole numbers")
    if len(offsets) != len(labels) + 1:
        problems.append(f"'offset' has {len(offsets)} entries for {len(labels)} labels, not one more")
    if len(offsets) and (offsets[0] < 0 or offsets[-1] > len(encoded) or np.any(np.diff(offsets) < 0)):
        problems.append(f"'offset' does not rise within the {len(encoded)} bytes of 'jpeg'")
    if problems:
        raise DataError(f"{path} does not fit together: {'; '.join(problems)}. Write it anew.")


def _packed_part(path: Path, archive: Mapping[str, Any], split: str, count: int) -> NDArray[np.int64]:
    codes = archive["split"] if "split" in archive else np.zeros(count, dtype=np.int64)
    if len(codes) != count:
        raise DataError(f"{path} does not fit together: 'split' has {len(codes)} entries for {count} labels.")
    wanted = _PACKED_SPLITS.index(split) if split in _PACKED_SPLITS else -1
    chosen = np.flatnonzero(codes == wanted)
    if len(chosen) == 0:
        counts = ", ".join(f"{int((codes == code).sum())} {name}" for code, name in enumerate(_PACKED_SPLITS))
        raise DataError(f"{path} has no {split} pictures ({counts}). Read 'train' and hold some out with .split(0.2).")
    return chosen


def _check_labels(path: Path, labels: NDArray[Any], num_classes: int) -> None:
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise DataError(
            f"{path} has labels of shape {list(labels.shape)} and type {labels.dtype}. "
            "Save one whole number per picture, its class's position in 'classes'."
        )
    outside = np.unique(labels[(labels < 0) | (labels >= num_classes)])
    if len(outside):
        raise DataError(
            f"{path} has labels outside the range 0 to {num_classes - 1} of its {num_classes} classes: "
            f"{', '.join(map(str, outside[:3]))}. Correct them, or give all the classes."
        )


def _present(archive: Mapping[str, Any], split: str, which: int) -> str | None:
    """The key under which pictures (0) or labels (1) of a split are found."""
    return next((key for key in _ARRAY_KEYS[split][which] if key in archive), None)


def _read_pixels(path: Path, archive: Mapping[str, Any], picture: PictureFormat, split: str) -> LabelledData:
    pixels_key, labels_key = _present(archive, split, 0), _present(archive, split, 1)
    if pixels_key is None or labels_key is None:
        raise DataError(
            f"{path} has no {split} pictures with labels. It has: {', '.join(archive)}. "
            "Read 'train' and hold some out with .split(0.2)."
        )
    pixels, names = archive[pixels_key], _flat_labels(path, archive, labels_key)
    if len(pixels) != len(names) or len(pixels) == 0:
        raise DataError(
            f"{path} has {len(pixels)} pictures in {pixels_key!r} and {len(names)} labels in {labels_key!r}."
        )
    items = PixelArrays(_channels_last(path, pixels, pixels_key), picture)
    labels, classes = _labels_and_classes(path, archive, names)
    return LabelledData(items, labels, classes, str(path), note=f"split {split!r} from {pixels_key!r}")


def _flat_labels(path: Path, archive: Mapping[str, Any], key: str) -> NDArray[Any]:
    labels = archive[key]
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.ndim != 1 or labels.dtype.kind not in "iuUS":
        raise DataError(
            f"{path} has labels {key!r} of shape {list(labels.shape)} and type {labels.dtype}. "
            "Save one whole number or one name per picture."
        )
    return np.asarray(labels)


def _labels_and_classes(path: Path, archive: Mapping[str, Any], names: NDArray[Any]) -> tuple[Tensor, Sequence[str]]:
    """Labels by position among the classes, which are ``classes`` if given, else the training labels sorted.

    Raises:
        DataError: A label is none of the training part.
    """
    if "classes" in archive and names.dtype.kind in "iu":
        classes = [_as_text(name) for name in archive["classes"].tolist()]
        _check_labels(path, names, len(classes))
        return torch.from_numpy(names.astype(np.int64)), classes
    known = np.unique(_flat_labels(path, archive, str(_present(archive, "train", 1))))
    outside = np.setdiff1d(names, known)
    if len(outside):
        raise DataError(
            f"{path} has labels outside those of its training pictures: {', '.join(map(_as_text, outside[:3]))}. "
            "Correct them, or give all the names in 'classes'."
        )
    return torch.from_numpy(np.searchsorted(known, names)), [_as_text(name) for name in known.tolist()]


def _channels_last(path: Path, pixels: NDArray[Any], key: str) -> NDArray[Any]:
    """Pixels as ``[N, H, W]`` or ``[N, H, W, C]``, uint8 or float32 in 0..1.

    Raises:
        DataError: The array is of another shape, type or range.
    """
    if pixels.ndim == 4 and pixels.shape[3] not in (1, 3, 4) and pixels.shape[1] in (1, 3, 4):
        pixels = pixels.transpose(0, 2, 3, 1)
    if pixels.ndim not in (3, 4) or (pixels.ndim == 4 and pixels.shape[3] not in (1, 3, 4)):
        raise DataError(
            f"{path} has pictures {key!r} of shape {list(pixels.shape)}. "
            "Save [N, H, W], [N, H, W, C] or [N, C, H, W] with 1, 3 or 4 channels."
        )
    if pixels.dtype == np.uint8:
        return pixels
    low, high = float(pixels.min()), float(pixels.max())
    top, target = (1, np.float32) if pixels.dtype.kind == "f" else (255, np.uint8)
    if not (low >= 0 and high <= top):
        raise DataError(
            f"{path} has pictures {key!r} of type {pixels.dtype} from {low:g} to {high:g}, not within 0 to {top}. "
            "Save uint8 pixels, or floats scaled to 0..1 and not normalised."
        )
    return pixels.astype(target)
