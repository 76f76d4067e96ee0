"""The door to labelled data: a folder, an .npz, a .csv or .tsv, a torchvision dataset, or a function of batches."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Unpack

from torch import Tensor

from trady.planner.data.datasets import LabelledData
from trady.planner.data.images import PictureFormat
from trady.planner.data.picture_sets import read_archive, read_folder
from trady.planner.data.texts import TableFormat, TableKeywords, TextFormat, read_table
from trady.planner.data.torchvision_datasets import PREFIX as TORCHVISION_PREFIX
from trady.planner.data.torchvision_datasets import read_torchvision
from trady.planner.errors import DataError, LoadingError
from trady.planner.models import Batch, batch_size_of, input_tensors, load_factory

__all__ = ["GeneratedBatches", "LabelledData", "PictureFormat", "TextFormat", "open_data"]

_FUNCTION_NAME: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_SPLIT_NAMES: Final = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
}
_TABLES: Final = (".csv", ".tsv")
_KINDS: Final = "a folder of class folders, an .npz, a .csv or .tsv with texts"
_ACCEPTED: Final = f"{_KINDS}, torchvision:NAME, or module:function yielding batches"


class GeneratedBatches:
    """Batches of the user's own function, which is called anew each time they are asked for.

    Args:
        function: Takes nothing and yields ``(inputs, targets)`` pairs, dicts with ``"labels"``, or Batch objects.
        source: The function's name, for reports.
    """

    def __init__(self, function: Callable[[], Iterable[Any]], source: str) -> None:
        self.function = function
        self.source = source

    def __iter__(self) -> Iterator[Batch]:
        """Call the function and read its batches.

        Raises:
            DataError: It returns nothing to iterate over, nothing at all, or something that is no batch.
        """
        produced = self.function()
        if not isinstance(produced, Iterable):
            raise DataError(f"{self.source} returned {type(produced).__name__}. It must yield batches.")
        number = -1
        for number, value in enumerate(produced):
            yield _as_batch(value, f"{self.source}, batch {number}")
        if number < 0:
            raise DataError(f"{self.source} yielded no batches. It must yield at least one each time it is called.")


def open_data(
    source: str | Path,
    *,
    picture: PictureFormat | None = None,
    text: TextFormat | None = None,
    split: str = "train",
    root: Path | None = None,
    download: bool = False,
    **table: Unpack[TableKeywords],
) -> LabelledData | GeneratedBatches:
    """Open labelled data; items are decoded later, one at a time.

    Args:
        source: A folder of class folders, an ``.npz``, a ``.csv`` or ``.tsv`` of texts, ``torchvision:NAME``, or
            ``module:function`` (the working directory is on the path while it is imported).
        picture: How pictures become inputs; needed for folders, ``.npz`` and torchvision.
        text: How texts become inputs; needed for ``.csv`` and ``.tsv``.
        split: Part of the data: ``"train"``, ``"val"`` (or ``"valid"``, ``"validation"``, ``"dev"``) or ``"test"``.
            Data that is not divided is all ``"train"``. A function has no parts.
        root: Folder of torchvision's datasets; by default ``$TRADY_DATA``, else ``data``.
        download: Fetch a torchvision dataset that is missing.
        **table: ``delimiter`` between the fields of a table, by default a tab for ``.tsv``, else a comma;
            ``text_column`` and ``label_column``, by default ``"text"`` and ``"label"``.

    Returns:
        LabelledData with at least two classes, or the function's batches.

    Raises:
        DataError: The source is missing, unreadable, of an unknown kind, lacks a format, or has one class.

    Example:
        >>> import numpy as np
        >>> from trady.planner.data import PictureFormat
        >>> pixels = np.zeros((4, 8, 8, 3), dtype=np.uint8)
        >>> np.savez("data.npz", x=pixels, y=np.array(["dark", "light"] * 2))
        >>> data = open_data("data.npz", picture=PictureFormat((3, 8, 8), mean=(0.5,) * 3, std=(0.5,) * 3))
        >>> len(data), list(data.classes)
        (4, ['dark', 'light'])
    """
    name = str(source)
    if name.startswith(TORCHVISION_PREFIX):
        dataset = read_torchvision(
            name, _needed_picture_format(picture, name), _split_name(split), root=root, download=download
        )
        _check_several_classes(dataset)
        return dataset
    if isinstance(source, str) and _FUNCTION_NAME.fullmatch(name) and not Path(name).exists():
        return GeneratedBatches(_import_function(name), name)
    part = _split_name(split)
    path = Path(source)
    if not path.exists():
        raise DataError(f"Data {name!r} does not exist. Give {_ACCEPTED}.")
    if path.suffix.lower() in _TABLES and path.is_file():
        data = read_table(path, _needed_text_format(text, path), part, TableFormat(**table))
    else:
        data = _open_pictures(path, picture, part)
    _check_several_classes(data)
    return data


def _split_name(split: str) -> str:
    if split not in _SPLIT_NAMES:
        raise DataError(f"Split {split!r} is unknown. Known: {', '.join(_SPLIT_NAMES)}.")
    return _SPLIT_NAMES[split]


def _open_pictures(path: Path, picture: PictureFormat | None, split: str) -> LabelledData:
    read = read_folder if path.is_dir() else read_archive
    if path.is_file() and path.suffix.lower() != ".npz":
        raise DataError(f"Data {str(path)!r} is of a kind that is not read. Give {_ACCEPTED}.")
    try:
        return read(path, _needed_picture_format(picture, path), split)
    except OSError as error:
        raise DataError(f"Data {str(path)!r} cannot be read: {error}. Check its permissions.") from error


def _needed_picture_format(picture: PictureFormat | None, source: str | Path) -> PictureFormat:
    if picture is None:
        raise DataError(
            f"Pictures in {source} need the model's input format. Give picture=PictureFormat((3, 224, 224), mean, std)."
        )
    return picture


def _needed_text_format(text: TextFormat | None, path: Path) -> TextFormat:
    if text is None:
        raise DataError(
            f"Texts in {path} need the model's tokenizer. "
            "Give text=TextFormat.from_file('tokenizer.json', max_tokens=128) with the file that came with its weights."
        )
    return text


def _check_several_classes(data: LabelledData) -> None:
    present = sorted(set(data.labels.tolist()))
    if len(present) < 2:
        raise DataError(
            f"{data.source} has one class, {data.classes[present[0]]!r} ({len(data)} {data.items.noun}): there is "
            "nothing to tell apart. Add items of at least a second class."
        )


def _import_function(name: str) -> Callable[[], Iterable[Any]]:
    """Import ``module:function`` with the working directory on the path.

    Raises:
        DataError: The module cannot be imported, or has no such function.
    """
    try:
        return load_factory(name, "Data")
    except LoadingError as error:
        raise DataError(str(error)) from error


def _as_batch(value: Any, subject: str) -> Batch:
    """Read a yielded value as a batch; ``(inputs, None)`` leaves the loss to the model.

    Raises:
        DataError: It is no pair, no dict with labels, or inputs and targets differ in length.
    """
    if isinstance(value, Batch):
        return value
    if isinstance(value, Mapping) and "labels" in value:
        inputs: Any = {name: entry for name, entry in value.items() if name != "labels"}
        targets = value["labels"]
    elif isinstance(value, tuple | list) and len(value) == 2:
        inputs, targets = value
    else:
        raise DataError(f"{subject} is {_in_words(value)}. Yield (inputs, targets), or a dict with 'labels'.")
    _check_lengths(inputs, targets, subject)
    return Batch(tuple(inputs) if isinstance(inputs, list) else inputs, targets)


def _in_words(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a dict with {', '.join(map(repr, value))} and no 'labels'"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


def _check_lengths(inputs: Any, targets: Any, subject: str) -> None:
    if not any(tensor.dim() > 0 for tensor in input_tensors(inputs)):
        raise DataError(f"{subject} has no input tensor [B, ...]. Yield tensors, or dicts or tuples of them.")
    if isinstance(targets, Tensor) and targets.dim() > 0 and len(targets) != batch_size_of(inputs):
        raise DataError(f"{subject} has {batch_size_of(inputs)} inputs and {len(targets)} targets. Yield as many.")
