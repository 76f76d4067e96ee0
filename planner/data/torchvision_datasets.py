"""torchvision's labelled picture datasets by name, from the folder they were downloaded to."""

import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from trady.planner.data.datasets import LabelledData
from trady.planner.data.images import PictureFormat, picture_tensor
from trady.planner.errors import DataError

PREFIX: Final = "torchvision:"
#: Where datasets lie unless said: this environment variable, else this folder.
_ROOT_VARIABLE: Final = "TRADY_DATA"
_ROOT: Final = "data"
_SPLIT_VALUES: Final = {
    "train": ("train", "trainval", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
_LABEL_NAMES: Final = ("targets", "labels", "_labels")
_SAMPLE_NAMES: Final = ("samples", "_samples", "imgs")


def read_torchvision(
    source: str, picture: PictureFormat, split: str, *, root: Path | None = None, download: bool = False
) -> LabelledData:
    """Open a dataset of ``torchvision.datasets`` that has one class per picture.

    Args:
        source: ``torchvision:NAME``, for instance ``torchvision:CIFAR10``.
        picture: The model's format.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        root: Folder it lies in; by default ``$TRADY_DATA``, else ``data``.
        download: Fetch it where it is missing.

    Error:
        DataError: torchvision is not installed, has no such dataset, or the dataset is missing or of another kind.
    """
    kind = _dataset_class(source)
    folder = root or Path(os.environ.get(_ROOT_VARIABLE, _ROOT))
    dataset = _opened(source, kind, folder, split, download)
    labels = _labels(source, dataset)
    classes = getattr(dataset, "classes", None) or [str(label) for label in range(max(labels, default=0) + 1)]
    items = TorchvisionPictures(dataset, source, picture)
    return LabelledData(items, torch.tensor(labels), [str(name) for name in classes], source, note=f"split {split!r}")


@dataclass(frozen=True)
class TorchvisionPictures:
    """Pictures of a torchvision dataset, decoded when asked for."""

    dataset: Any
    source: str
    picture: PictureFormat
    noun: str = "pictures"

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, index: int) -> str:
        """The picture's position in the dataset."""
        return f"picture {index}"

    def load(self, index: int) -> Tensor:
        """float32 ``[C, H, W]``; DataError if the picture cannot be decoded.

        Raises:
            DataError: The picture cannot be decoded.
        """
        try:
            return picture_tensor(self.dataset[index][0], self.picture)
        except Exception as error:  # datasets and decoders raise what they like
            raise DataError(f"{self.source}: {self.name(index)} cannot be read: {error}.") from error


def _dataset_class(source: str) -> type[Any]:
    try:
        from torchvision import datasets
    except ImportError as error:
        raise DataError(f'{source} needs torchvision, which is not installed. pip install "trady[vision]"') from error
    name = source.removeprefix(PREFIX)
    kind = getattr(datasets, name, None)
    if not isinstance(kind, type):
        close = [known for known in datasets.__all__ if known.lower().startswith(name.lower()[:3])]
        raise DataError(f"torchvision has no dataset {name!r}. Close by name: {', '.join(close) or 'none'}.")
    return kind


def _opened(source: str, kind: Callable[..., Any], root: Path, split: str, download: bool) -> Any:
    """The dataset's part; datasets say their parts by ``train=`` or by ``split=``.

    Raises:
        DataError: There is no such part, or the dataset is not there.
    """
    known = inspect.signature(kind).parameters
    options: dict[str, Any] = {"download": download} if "download" in known else {}
    problem: Exception | None = None
    for choice in _part_options(source, set(known), split):
        try:
            return kind(root, **options, **choice)
        except ValueError as error:  # not a part of this dataset: another name may be
            problem = error
        except Exception as error:  # missing, damaged, no network: datasets raise what they like
            raise DataError(
                f"{source} cannot be opened in {str(root)!r}: {error} "
                "Say where it lies with --data-root, or fetch it with --download."
            ) from error
    raise DataError(f"{source} has no part {split!r}: {problem}. Read 'train' and hold some out with .split(0.2).")


def _part_options(source: str, known: set[str], split: str) -> Sequence[dict[str, Any]]:
    if "train" in known and split in ("train", "test"):
        return [{"train": split == "train"}]
    if "split" in known and "train" not in known:
        return [{"split": value} for value in _SPLIT_VALUES[split]]
    if split == "train":
        return [{}]
    raise DataError(f"{source} has no part {split!r}. Read 'train' and hold some out with .split(0.2).")


def _labels(source: str, dataset: Any) -> list[int]:
    """The class of each picture, without decoding any where the dataset lists them.

    Raises:
        DataError: A picture has no single class.
    """
    found = next((getattr(dataset, name) for name in _LABEL_NAMES if hasattr(dataset, name)), None)
    if found is None:
        samples = next((getattr(dataset, name) for name in _SAMPLE_NAMES if hasattr(dataset, name)), None)
        found = [sample[1] for sample in samples] if samples else [dataset[index][1] for index in range(len(dataset))]
    labels = torch.as_tensor(found)
    if labels.dim() != 1 or labels.is_floating_point():
        raise DataError(f"{source} has no single class per picture, so a classifier cannot be trained on it.")
    return [int(label) for label in labels.tolist()]
