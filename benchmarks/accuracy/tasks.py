"""Networks and data of the accuracy benchmark: pictures and texts decoded once, batches cut from them."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.accuracy.norms import put_norms_back
from benchmarks.engine.models import paper_network
from trady.planner.data import LabelledData, PictureFormat, TextFormat, open_data
from trady.planner.errors import DataError
from trady.planner.models import Batch, Inputs, map_tensors

ROOT: Final = Path(__file__).resolve().parents[2]
ASSETS: Final = Path(os.environ.get("TRADY_ASSETS", ROOT.parent / "shared" / "assets")).resolve()
#: Where the data sets of torchvision and the folders of CUB and VWW lie on a machine that has them.
DATASETS: Final = Path(os.environ.get("TRADY_DATASETS", ROOT.parent / "datasets"))
#: What is decoded and fitted once is kept here.
CACHE: Final = ROOT / "out" / "accuracy"
_TOKENIZER: Final = ASSETS / "weights" / "minilm-l6-h384.tokenizer.json"
_CROP_FRACTION: Final = 0.875
_VALIDATION_SHARE: Final = 0.2
#: What batch norms are put back on.
_NORM_PIXELS: Final = 96
_NORM_PICTURES: Final = 256


@dataclass(frozen=True)
class Network:
    """A pre-trained network.

    Args:
        name: As the tables show it.
        factory: Function of ``examples/paper_networks.py``.
        budgets: Budgets in elements of weights and of one sample's activations, as the papers count them.
        mean: Of the pictures it expects, on values scaled to 0..1.
        std: Likewise; texts have neither.
        schemes: MIT's scheme for each of the budgets and how many of the last convolutions train their bias under it;
            empty where there is none.
        with_norms: Whether batch norms are put back behind its convolutions, as the identity on some of ``food10``.
    """

    name: str
    factory: str
    budgets: tuple[int, ...]
    mean: float | None = None
    std: float | None = None
    schemes: tuple[tuple[str, int], ...] = ()
    with_norms: bool = False

    @property
    def reads_pictures(self) -> bool:
        """Whether its inputs are pictures; texts otherwise."""
        return self.mean is not None

    def build(self) -> nn.Module:
        """The module with its own head."""
        model = paper_network(self.factory)
        if self.with_norms:
            task = open_task(self, "food10", _NORM_PIXELS)
            pictures = task.batch(task.train, torch.arange(_NORM_PICTURES)).inputs
            assert isinstance(pictures, Tensor)
            put_norms_back(model, pictures)
        return model.to(memory_format=torch.channels_last) if self.reads_pictures else model


NETWORKS: Final[Mapping[str, Network]] = {
    network.name: network
    for network in (
        Network(
            "mbv2-w0.35",
            "mbv2_w035",
            (27_946, 66_592, 93_696),
            0.5,
            0.5,
            (("mbv2-49kb", 16), ("mbv2-99kb", 25), ("mbv2-138kb", 34)),
        ),
        Network(
            "mcunet-5fps",
            "mcunet_5fps",
            (15_936, 64_832, 112_640),
            0.5,
            0.5,
            (("mcunet-49kb", 20), ("mcunet-99kb", 22), ("mcunet-148kb", 23)),
        ),
        Network(
            "proxyless-w0.3",
            "proxyless_w03",
            (25_984, 72_960, 101_376),
            0.5,
            0.5,
            (("proxyless-49kb", 21), ("proxyless-98kb", 25), ("proxyless-148kb", 45)),
        ),
        Network("mbv2-w0.35 with norms", "mbv2_w035", (27_946, 66_592, 93_696), 0.5, 0.5, with_norms=True),
        Network("efficientnet-lite0", "efficientnet_lite0", (112_640, 633_859), 127 / 255, 128 / 255),
        Network("minilm-l6", "minilm_classifier", (27_946, 112_640, 633_859)),
    )
}

#: Data by name: what ``open_data`` takes, and whether the machine may lack it.
SOURCES: Final[Mapping[str, str]] = {
    "food10": str(ASSETS / "data" / "food10.npz"),
    "catdog": str(ASSETS / "data" / "catdog.npz"),
    "cifar10-sub": str(ASSETS / "data" / "cifar10_sub.npz"),
    "sst2": str(ASSETS / "data" / "sst2_sentences.tsv"),
    "trec": str(ASSETS / "data" / "trec6.tsv"),
    "cifar10": "torchvision:CIFAR10",
    "cifar100": "torchvision:CIFAR100",
    "flowers102": "torchvision:Flowers102",
    "pets": "torchvision:OxfordIIITPet",
    "food101": "torchvision:Food101",
    "cub": str(DATASETS / "CUB_200_2011"),
    "vww": str(DATASETS / "vww"),
}


@dataclass(frozen=True)
class Part:
    """Items of a task.

    Args:
        inputs: Pictures uint8 ``[N, 3, H, W]`` with a margin for random crops, or ids and mask, both ``[N, T]``.
        labels: ``[N]``.
    """

    inputs: Inputs
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def chosen(self, index: Tensor) -> "Part":
        """Some of the items."""
        return Part(map_tensors(lambda tensor: tensor[index], self.inputs), self.labels[index])


@dataclass(frozen=True)
class Task:
    """One network's view of a data set, whole in memory or mapped from disk."""

    network: Network
    size: int
    classes: int
    train: Part
    test: Part

    def held_out(self) -> "Task":
        """The same task with a part of its training data as test data: for choosing, never for judging."""
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(0))
        cut = int(len(order) * _VALIDATION_SHARE)
        return Task(
            self.network, self.size, self.classes, self.train.chosen(order[cut:]), self.train.chosen(order[:cut])
        )

    def batch(self, part: Part, index: Tensor, generator: torch.Generator | None = None) -> Batch:
        """Items as the network takes them: cropped and mirrored at random with a generator, in the centre without."""
        chosen = part.chosen(index)
        if isinstance(chosen.inputs, Tensor):
            return Batch(self._pictures(chosen.inputs, generator), chosen.labels)
        return Batch(chosen.inputs, chosen.labels)

    def batches(self, part: Part, size: int) -> Iterator[Batch]:
        """All items in order, the last batch the smaller one."""
        for index in torch.arange(len(part)).split(size):
            yield self.batch(part, index)

    def _pictures(self, pixels: Tensor, generator: torch.Generator | None) -> Tensor:
        margin = pixels.shape[2] - self.size
        if generator is None:
            cut = pixels[:, :, margin // 2 :, margin // 2 :][:, :, : self.size, : self.size]
        else:
            corners = torch.randint(margin + 1, (len(pixels), 2), generator=generator).tolist()
            mirrored = (torch.rand(len(pixels), generator=generator) < 0.5).tolist()
            found = [
                picture[:, top : top + self.size, left : left + self.size]
                for picture, (top, left) in zip(pixels, corners, strict=True)
            ]
            cut = torch.stack([part.flip(2) if flip else part for part, flip in zip(found, mirrored, strict=True)])
        assert self.network.mean is not None and self.network.std is not None
        return (
            cut.float().div_(255).sub_(self.network.mean).div_(self.network.std).to(memory_format=torch.channels_last)
        )


@cache
def open_task(network: Network, data: str, size: int) -> Task:
    """A data set as a network takes it.

    Args:
        network: The network.
        data: A name of :data:`SOURCES`.
        size: Pixels of a side, or tokens of a text.

    Raises:
        DataError: This machine does not have the data.
    """
    train, test = (_part(network, data, size, split) for split in ("train", "test"))
    return Task(network, size, int(train.labels.max()) + 1, train, test)


@cache
def is_here(data: str) -> bool:
    """Whether this machine has a data set: torchvision knows best whether one of its own is whole."""
    source = SOURCES[data]
    if not source.startswith("torchvision:"):
        return Path(source).exists()
    try:
        open_data(source, picture=_as_it_lies(32), root=DATASETS)
    except DataError:
        return False
    return True


def _part(network: Network, data: str, size: int, split: str) -> Part:
    side = round(size / _CROP_FRACTION) if network.reads_pictures else size
    key = hashlib.sha256(f"{SOURCES[data]} {side} {split} {network.reads_pictures}".encode()).hexdigest()[:12]
    folder = CACHE / "data" / f"{data}-{split}-{side}-{key}"
    if not folder.exists():
        _decode(_opened(network, data, side, split), folder)
    arrays = {
        path.stem: torch.from_numpy(np.load(path, mmap_mode="c"))  # copy on write: torch wants writable memory
        for path in sorted(folder.glob("*.npy"))
    }
    labels = arrays.pop("labels")
    return Part(arrays.pop("pictures") if "pictures" in arrays else arrays, labels)


def _as_it_lies(side: int) -> PictureFormat:
    """Pictures scaled to 0..1, whole: crops and normalisation come with each batch."""
    return PictureFormat((3, side, side), (0.0,) * 3, (1.0,) * 3, crop_fraction=1.0)


def _opened(network: Network, data: str, side: int, split: str) -> LabelledData:
    text = None if network.reads_pictures else TextFormat.from_file(_TOKENIZER, side)
    try:
        found = open_data(
            SOURCES[data],
            picture=_as_it_lies(side) if network.reads_pictures else None,
            text=text,
            split=split,
            root=DATASETS,
        )
    except DataError as error:
        raise DataError(f"Task {data!r} cannot be opened: {error} Set TRADY_ASSETS or TRADY_DATASETS.") from error
    if not isinstance(found, LabelledData):
        raise DataError(f"Task {data!r} is no labelled data.")
    return found


def _decode(data: LabelledData, folder: Path) -> None:
    """Write every readable item beside the folder, which then takes its name whole: two processes may do it at once."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent))
    first, _ = data[0]
    named = {"pictures": first} if isinstance(first, Tensor) else dict(first)
    arrays = {
        name: np.lib.format.open_memmap(
            partial / f"{name}.npy", "w+", np.uint8 if name == "pictures" else np.int64, (len(data), *tensor.shape)
        )
        for name, tensor in named.items()
    }
    for place in range(len(data)):
        inputs, _ = data[place]
        for name, tensor in ({"pictures": inputs} if isinstance(inputs, Tensor) else dict(inputs)).items():
            arrays[name][place] = (tensor * 255).round() if name == "pictures" else tensor
    for array in arrays.values():
        array.flush()
    np.save(partial / "labels.npy", data.labels.numpy())
    try:
        partial.rename(folder)
    except OSError:  # another process was first
        shutil.rmtree(partial)
