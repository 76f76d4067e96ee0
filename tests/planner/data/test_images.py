"""Pictures against torchvision's transforms; folders and archives against what was written into them."""

import pickle
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import v2 as transforms

from trady.planner.data.datasets import LabelledData
from trady.planner.data.images import PictureFormat, PixelArrays, picture_tensor
from trady.planner.data.opening import open_data
from trady.planner.errors import DataError

SMALL = PictureFormat((3, 16, 16), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PLAIN = PictureFormat((3, 16, 16), (0.0,) * 3, (1.0,) * 3)
COLOURS = {"cats": (200, 40, 40), "dogs": (40, 200, 40), "owls": (40, 40, 200)}


def noise_picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Any:
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, *channels), dtype=np.uint8))


def write_classes(root: Path, per_class: int, suffix: str = ".png", classes: tuple[str, ...] = tuple(COLOURS)) -> Path:
    for name in classes:
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            Image.new("RGB", (20, 24), COLOURS[name]).save(root / name / f"{number}{suffix}")
    return root


def opened(source: Path, picture: PictureFormat = PLAIN, split: str = "train") -> LabelledData:
    data = open_data(source, picture=picture, split=split)
    assert isinstance(data, LabelledData)
    return data


def picture_of(data: LabelledData, index: int) -> Tensor:
    picture, _ = data[index]
    assert isinstance(picture, Tensor)
    return picture


def by_torchvision(image: Any, picture: PictureFormat) -> Tensor:
    side = picture.size[1]
    pipeline = transforms.Compose(
        [
            transforms.Resize(round(side / picture.crop_fraction), InterpolationMode(picture.interpolation)),
            transforms.CenterCrop(side),
            transforms.PILToTensor(),
            transforms.ToDtype(torch.float32, scale=True),
            transforms.Normalize(picture.mean, picture.std),
        ]
    )
    result: Tensor = pipeline(image)
    return result


@pytest.mark.parametrize("size", [(50, 40), (40, 50), (300, 17), (16, 16), (97, 31)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize(("side", "fraction"), [(16, 0.875), (17, 0.9), (15, 1.0)])
def test_conversion_is_torchvisions(size: tuple[int, int], interpolation: str, side: int, fraction: float) -> None:
    picture = PictureFormat((3, side, side), SMALL.mean, SMALL.std, interpolation, fraction)
    image = noise_picture(*size)
    torch.testing.assert_close(picture_tensor(image, picture), by_torchvision(image, picture))


@pytest.mark.parametrize("size", [(50, 40), (10, 200), (200, 10)])
def test_oblong_inputs_are_covered(size: tuple[int, int]) -> None:
    picture = PictureFormat((3, 12, 20), (0.0,) * 3, (1.0,) * 3)
    assert picture_tensor(Image.new("RGB", size, (255, 255, 255)), picture).equal(torch.ones(3, 12, 20))


def test_grey_models_get_one_channel_and_colour_models_three() -> None:
    grey = PictureFormat((1, 16, 16), (0.5,), (0.5,))
    assert picture_tensor(noise_picture(30, 30), grey).shape == (1, 16, 16)
    for mode in ("L", "RGBA"):
        assert picture_tensor(noise_picture(30, 30, mode), SMALL).shape == (3, 16, 16)


def test_sixteen_bit_grey_keeps_its_range() -> None:
    ramp = np.linspace(0, 65535, 256, dtype=np.uint16).reshape(16, 16)
    picture = PictureFormat((1, 16, 16), (0.0,), (1.0,), crop_fraction=1.0)
    expected = torch.from_numpy(ramp.astype(np.float32) / 65535).unsqueeze(0)
    torch.testing.assert_close(picture_tensor(Image.fromarray(ramp), picture), expected, atol=1 / 255, rtol=0)


def test_thirty_two_bit_pictures_are_refused() -> None:
    with pytest.raises(DataError, match="32-bit pixels"):
        picture_tensor(Image.fromarray(np.zeros((9, 9), dtype=np.float32)), SMALL)


def test_a_format_lists_all_its_problems() -> None:
    with pytest.raises(DataError, match=r"C 1 or 3.*; mean and std need 2 values each, got 1 and 3; std must.*area"):
        PictureFormat((2, 16, 16), (0.5,), (1.0, 0.0, 1.0), "area")
    with pytest.raises(DataError, match=r"crop fraction must be above 0 and at most 1, got 1\.5"):
        PictureFormat((1, 16, 16), (0.5,), (1.0,), crop_fraction=1.5)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG", ".bmp", ".webp"])
def test_a_folder_of_class_folders(tmp_path: Path, suffix: str) -> None:
    data = opened(write_classes(tmp_path, 4, suffix))
    assert (data.classes, len(data), data.note, data.source) == (("cats", "dogs", "owls"), 12, "", str(tmp_path))
    for batch in data.batches(6):
        assert isinstance(batch.inputs, Tensor)
        means = batch.inputs.mean(dim=(2, 3))
        expected = torch.tensor([COLOURS[data.classes[label]] for label in batch.targets]) / 255
        torch.testing.assert_close(means, expected, atol=0.02, rtol=0)


def test_pictures_lie_at_any_depth_and_other_files_are_left_alone(tmp_path: Path) -> None:
    write_classes(tmp_path, 2)
    deep = tmp_path / "cats" / "indoors" / "night"
    deep.mkdir(parents=True)
    Image.new("RGB", (20, 20)).save(deep / "z.png")
    for name in ("cats/.hidden.png", "cats/notes.txt", ".cache/a.png", "readme.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"no picture")
    (tmp_path / "empty class").mkdir()
    data = opened(tmp_path)
    assert len(data) == 7 and len(list(data.batches(7))) == 1 and data.classes == ("cats", "dogs", "owls")
    assert data.items.name(2) == "cats/indoors/night/z.png"


@pytest.mark.parametrize("folder", ["val", "valid", "Validation"])
def test_train_and_validation_folders(tmp_path: Path, folder: str) -> None:
    write_classes(tmp_path / "train", 3)
    write_classes(tmp_path / folder, 2, classes=("cats", "owls"))
    training, validation = opened(tmp_path), opened(tmp_path, split="val")
    assert (len(training), training.note) == (9, "split 'train' from train/")
    assert (len(validation), validation.note) == (4, f"split 'validation' from {folder}/")
    assert validation.classes == training.classes and validation.labels.tolist() == [0, 0, 2, 2]
    with pytest.raises(DataError, match=rf"no part 'test': only train/, {folder}/"):
        opened(tmp_path, split="test")


def test_an_undivided_folder_is_all_training(tmp_path: Path) -> None:
    write_classes(tmp_path, 2)
    with pytest.raises(DataError, match=r"no part 'validation': no train/ and val/ folders.*\.split\(0\.2\)"):
        opened(tmp_path, split="validation")


def test_truncated_and_foreign_files_are_skipped_and_named(tmp_path: Path) -> None:
    write_classes(tmp_path, 5)
    whole = (tmp_path / "cats" / "0.png").read_bytes()
    (tmp_path / "cats" / "1.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "dogs" / "2.png").write_bytes(b"GIF89a and nothing more")
    (tmp_path / "owls" / "3.png").write_bytes(b"")
    data = opened(tmp_path)
    assert sum(len(batch.targets) for batch in data.batches(1)) == 12
    assert sorted(data.skipped) == ["cats/1.png", "dogs/2.png", "owls/3.png"]
    with pytest.raises(DataError, match=r"Picture 'cats/1\.png' cannot be read: .* Remove it"):
        data[1]


def test_mostly_broken_pictures_are_refused(tmp_path: Path) -> None:
    write_classes(tmp_path, 3)
    for path in [*(tmp_path / "cats").iterdir(), *(tmp_path / "dogs").iterdir()]:
        path.write_bytes(b"broken")
    with pytest.raises(
        DataError, match=r"mostly unreadable: 5 of .* pictures tried, of 9 \(skipped 5: .*\.png, \.\.\."
    ):
        list(opened(tmp_path).batches(1))


def test_data_can_be_sent_to_another_process(tmp_path: Path) -> None:
    for data in (opened(write_classes(tmp_path / "folder", 2)), opened(packed(tmp_path / "data.npz"))):
        assert pickle.loads(pickle.dumps(data))[1][0].equal(data[1][0])


def test_one_class_is_refused(tmp_path: Path) -> None:
    write_classes(tmp_path, 4, classes=("cats",))
    with pytest.raises(DataError, match=r"one class, 'cats' \(4 pictures\).*Add items of at least a second class"):
        opened(tmp_path)


def test_folders_without_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no pictures\. Make one folder per class"):
        opened(tmp_path)
    Image.new("RGB", (9, 9)).save(tmp_path / "loose.png")
    with pytest.raises(DataError, match="has 1 pictures, but no folders of them"):
        opened(tmp_path)


def test_without_pillow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_classes(tmp_path, 2)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match=r'pip install "trady\[vision\]"'):
        opened(tmp_path)


def packed(path: Path, **changes: Any) -> Path:
    """An archive in the asset format: six 20x20 pictures of two classes, the last two for testing."""
    files = []
    for number in range(6):
        target = path.with_suffix(".jpg")
        Image.new("RGB", (20, 20), (40 * number,) * 3).save(target)
        files.append(np.frombuffer(target.read_bytes(), dtype=np.uint8))
    arrays = {
        "jpeg": np.concatenate(files),
        "offset": np.cumsum([0, *map(len, files)]),
        "label": np.array([0, 1, 0, 1, 0, 1]),
        "split": np.array([0, 0, 0, 0, 1, 1]),
        "id": np.array([f"{number}.jpg".encode() for number in range(6)]),
        "classes": np.array(["dark", "light"]),
        **changes,
    }
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


def test_packed_pictures_by_split(tmp_path: Path) -> None:
    path = packed(tmp_path / "data.npz")
    training, testing = opened(path), opened(path, split="test")
    assert (len(training), training.classes, training.note) == (4, ("dark", "light"), "split 'train'")
    levels = [round(float(picture_of(testing, index).mean()) * 255) for index in range(2)]
    assert levels == pytest.approx([160, 200], abs=1) and [testing[index][1] for index in range(2)] == [0, 1]
    with pytest.raises(DataError, match=r"no validation pictures \(4 train, 2 test\)"):
        opened(path, split="val")


def test_a_broken_packed_picture_is_skipped_by_its_name(tmp_path: Path) -> None:
    path = packed(tmp_path / "data.npz")
    with np.load(path) as archive:
        jpeg, offset = archive["jpeg"], archive["offset"]
    jpeg[offset[2] : offset[3]] = 0
    data = opened(packed(path, jpeg=jpeg))
    assert len(list(data.batches(3))) == 1 and data.skipped == ("2.jpg",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": np.array([0, 1, 0, 1, 0, 2])}, r"outside the range 0 to 1 of its 2 classes: 2"),
        ({"label": np.array([0, -1, 0, 1, 0, 1])}, r"outside the range 0 to 1 .*: -1"),
        ({"label": np.zeros(6)}, "type float64"),
        ({"label": np.array([0, 1])}, "'offset' has 7 entries for 2 labels"),
        ({"offset": np.array([0, 1, 2, 3, 4, 5, 10**9])}, "does not rise within"),
        ({"offset": np.arange(7.0)}, "uint8 and float64"),
        ({"split": np.array([0, 1])}, "'split' has 2 entries for 6 labels"),
        ({"classes": None, "offset": None}, "'jpeg' but not offset, classes. It has: jpeg, label, split, id"),
        ({"classes": np.array(["dark", "light"], dtype=object)}, "pickled Python objects.*refused"),
        ({"label": np.array([1, 1, 1, 1, 0, 1])}, r"one class, 'light' \(4 pictures\)"),
    ],
)
def test_packed_archives_that_do_not_fit_together(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        opened(packed(tmp_path / "data.npz", **changes))


PIXELS = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("pixels", "keys"),
    [
        (PIXELS, ("x", "y")),
        (PIXELS.transpose(0, 3, 1, 2), ("images", "labels")),
        ((PIXELS / 255).astype(np.float32), ("x_train", "y_train")),
        (PIXELS / 255, ("train_images", "train_labels")),
        (PIXELS.astype(np.int64), ("x", "labels")),
    ],
)
def test_arrays_of_the_models_size_are_taken_as_they_are(tmp_path: Path, pixels: Any, keys: tuple[str, str]) -> None:
    np.savez(tmp_path / "a.npz", **{keys[0]: pixels, keys[1]: np.array([[3], [5]] * 3)})
    data = opened(tmp_path / "a.npz")
    expected = torch.from_numpy(PIXELS).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(torch.stack([picture_of(data, index) for index in range(6)]), expected)
    assert data.labels.tolist() == [0, 1] * 3 and data.classes == ("3", "5")


def test_arrays_of_another_size_are_treated_like_pictures() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 30, 3), dtype=np.uint8)
    expected = by_torchvision(Image.fromarray(pixels[1]), SMALL)
    torch.testing.assert_close(PixelArrays(pixels, SMALL).load(1), expected)


@pytest.mark.parametrize("shape", [(6, 16, 16), (6, 16, 16, 1), (6, 1, 16, 16)])
def test_grey_arrays_feed_colour_models(tmp_path: Path, shape: tuple[int, ...]) -> None:
    grey = np.ascontiguousarray(PIXELS[..., 0])
    np.savez(tmp_path / "a.npz", x=grey.reshape(shape), y=np.array(["b", "a"] * 3))
    data = opened(tmp_path / "a.npz")
    assert picture_of(data, 0).equal((torch.from_numpy(grey[0]).float() / 255).expand(3, 16, 16))
    assert data.classes == ("a", "b") and data.labels.tolist() == [1, 0] * 3


def test_the_keras_and_medmnist_layouts_have_a_test_part(tmp_path: Path) -> None:
    labels = np.array([0, 1, 0, 1, 0, 1])
    np.savez(tmp_path / "a.npz", x_train=PIXELS, y_train=labels, x_test=PIXELS[:2], y_test=labels[:2])
    assert len(opened(tmp_path / "a.npz", split="test")) == 2
    with pytest.raises(
        DataError, match=r"no validation pictures with labels\. It has: x_train, y_train, x_test, y_test"
    ):
        opened(tmp_path / "a.npz", split="val")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": PIXELS, "y": np.arange(6)}, "none of the arrays .* It has: pictures, y"),
        ({"x": PIXELS}, "or no labels beside them .* It has: x"),
        ({"x": PIXELS, "y": np.arange(5)}, "6 pictures in 'x' and 5 labels in 'y'"),
        ({"x": PIXELS, "y": np.eye(6)}, r"labels 'y' of shape \[6, 6\] and type float64"),
        ({"x": PIXELS[..., :2], "y": np.arange(6)}, r"pictures 'x' of shape \[6, 16, 16, 2\]"),
        ({"x": PIXELS / 16, "y": np.arange(6)}, r"type float64 from 0 to 15\.9375, not within 0 to 1"),
        ({"x": PIXELS * np.nan, "y": np.arange(6)}, "from nan to nan"),
        ({"x": PIXELS.astype(int) * 9, "y": np.arange(6)}, "type int64 .* not within 0 to 255"),
        ({"x": PIXELS, "y": np.arange(6), "classes": np.array(["a", "b"])}, "outside the range 0 to 1 .*: 2, 3, 4"),
        ({"x": PIXELS, "y": np.array([None] * 6)}, "pickled Python objects"),
        ({}, "It has: nothing"),
    ],
)
def test_arrays_that_do_not_fit_together(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=message):
        opened(tmp_path / "a.npz")


def test_test_labels_unknown_to_training_are_refused(tmp_path: Path) -> None:
    labels = np.array([0, 1, 0, 1, 0, 1])
    np.savez(tmp_path / "a.npz", x_train=PIXELS, y_train=labels, x_test=PIXELS[:2], y_test=np.array([0, 7]))
    with pytest.raises(DataError, match="outside those of its training pictures: 7"):
        opened(tmp_path / "a.npz", split="test")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", zlib.compress(b"other"), b"\x80\x04K\x01."])
def test_files_that_are_no_archive(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"cannot be read as \.npz|pickled Python objects"):
        opened(tmp_path / "a.npz")


def test_a_truncated_archive(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.npz")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"cannot be read as \.npz"):
        opened(path)


def test_a_single_array_under_the_name_of_an_archive(tmp_path: Path) -> None:
    with (tmp_path / "a.npz").open("wb") as file:
        np.save(file, PIXELS)
    with pytest.raises(DataError, match="a single array"):
        opened(tmp_path / "a.npz")
