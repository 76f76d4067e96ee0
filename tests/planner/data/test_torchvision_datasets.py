"""torchvision's datasets by name, from a folder that a test made."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from trady.planner.data.datasets import LabelledData
from trady.planner.data.images import PictureFormat
from trady.planner.data.opening import open_data
from trady.planner.errors import DataError

pytest.importorskip("torchvision")

PICTURE = PictureFormat((3, 28, 28), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), crop_fraction=1.0)


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """MNIST's four files with a few pictures: picture i is all of brightness i."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 20), ("t10k", 10)):
        pixels = np.repeat(np.arange(count, dtype=np.uint8), 28 * 28)
        images = struct.pack(">IIII", 0x803, count, 28, 28) + pixels.tobytes()
        labels = struct.pack(">II", 0x801, count) + bytes(index % 10 for index in range(count))
        for name, content in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            (raw / name).write_bytes(content)
            (raw / f"{name}.gz").write_bytes(gzip.compress(content))
    return tmp_path


def test_parts_labels_and_pictures_are_the_datasets(mnist: Path) -> None:
    training = open_data("torchvision:MNIST", picture=PICTURE, root=mnist)
    testing = open_data("torchvision:MNIST", picture=PICTURE, root=mnist, split="test")
    assert isinstance(training, LabelledData) and isinstance(testing, LabelledData)
    assert (len(training), len(testing), len(training.classes)) == (20, 10, 10)
    picture, label = training[13]
    assert label == 3
    assert isinstance(picture, Tensor) and picture.shape == (3, 28, 28)
    assert (picture * 255).round().unique().tolist() == [13]
    with pytest.raises(DataError, match=r"has no part 'validation'"):
        open_data("torchvision:MNIST", picture=PICTURE, root=mnist, split="val")


def test_the_root_may_come_from_the_environment(mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRADY_DATA", str(mnist))
    assert len(open_data("torchvision:MNIST", picture=PICTURE)) == 20  # type: ignore[arg-type]


def test_parts_by_name(tmp_path: Path) -> None:
    """A dataset with ``split=``: EuroSAT-like folders have none, so Imagenette's layout stands in."""
    for part in ("train", "val"):
        for wnid in ("n01440764", "n02102040"):
            folder = tmp_path / "imagenette2" / part / wnid
            folder.mkdir(parents=True)
            Image.new("RGB", (30, 30), (9, 9, 9)).save(folder / "a.JPEG")
    found = open_data("torchvision:Imagenette", picture=PICTURE, root=tmp_path, split="val")
    assert isinstance(found, LabelledData)
    assert found.labels.tolist() == [0, 1]


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be opened in .*--data-root, or fetch it with --download"):
        open_data("torchvision:CIFAR10", picture=PICTURE, root=tmp_path)
    with pytest.raises(DataError, match=r"no dataset 'CIFAR11'. Close by name: CIFAR10, CIFAR100"):
        open_data("torchvision:CIFAR11", picture=PICTURE, root=tmp_path)
    with pytest.raises(DataError, match="need the model's input format"):
        open_data("torchvision:CIFAR10", root=tmp_path)
