"""The door: every kind of source, functions that yield batches, and the assets."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trady.planner.data.datasets import LabelledData
from trady.planner.data.images import PictureFormat
from trady.planner.data.opening import GeneratedBatches, open_data
from trady.planner.data.texts import TextFormat
from trady.planner.errors import DataError
from trady.planner.models.training_step import Batch, call_model, step_loss

PICTURE = PictureFormat((3, 32, 32), (0.5,) * 3, (0.5,) * 3)
ASSETS = Path(__file__).parents[3] / os.environ.get("TRADY_ASSETS", "../shared/assets")


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write a module of the user's into the working directory, and forget it afterwards."""
    monkeypatch.chdir(tmp_path)

    def write(body: str, name: str = "users_batches_of_trady_tests") -> str:
        sys.modules.pop(name, None)
        (tmp_path / f"{name}.py").write_text(f"import torch\n{body}")
        return name

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield write
    sys.modules.pop("users_batches_of_trady_tests", None)


def generated(source: str) -> GeneratedBatches:
    data = open_data(source)
    assert isinstance(data, GeneratedBatches)
    return data


def test_a_function_yields_pairs_dicts_and_batches(write_module: Any) -> None:
    name = write_module(
        "from trady.planner.models.training_step import Batch\n"
        "def batches():\n"
        "    yield torch.zeros(2, 3), torch.tensor([0, 1])\n"
        "    yield {'input_ids': torch.ones(2, 5), 'labels': torch.tensor([1, 0])}\n"
        "    yield [torch.zeros(2, 3), torch.zeros(2, 4)], None\n"
        "    yield Batch(torch.zeros(2, 3))\n"
    )
    pair, mapping, several, ready = list(generated(f"{name}:batches"))
    assert isinstance(pair, Batch) and isinstance(pair.inputs, Tensor)
    assert pair.inputs.shape == (2, 3) and pair.targets.tolist() == [0, 1]
    assert list(mapping.inputs) == ["input_ids"] and mapping.targets.tolist() == [1, 0]
    assert isinstance(several.inputs, tuple) and several.targets is None and ready.targets is None


def test_the_function_is_called_each_time_and_the_path_restored(write_module: Any) -> None:
    name = write_module(
        "calls = []\ndef batches():\n    calls.append(1)\n    yield torch.zeros(2, 3), torch.tensor([len(calls)] * 2)\n"
    )
    before = list(sys.path)
    data = generated(f"{name}:batches")
    assert [int(next(iter(data)).targets[0]) for _ in range(3)] == [1, 2, 3]
    assert sys.path == before and data.source == f"{name}:batches"


def test_a_data_loader_is_taken_too(write_module: Any) -> None:
    name = write_module(
        "from torch.utils.data import DataLoader, TensorDataset\n"
        "def loader():\n"
        "    return DataLoader(TensorDataset(torch.zeros(6, 3), torch.arange(6)), batch_size=3)\n"
    )
    assert [batch.targets.tolist() for batch in generated(f"{name}:loader")] == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def batches():\n    yield torch.zeros(2, 3)\n", "batch 0 is a Tensor. Yield"),
        ("def batches():\n    yield 1, 2, 3\n", "batch 0 is a tuple of 3"),
        ("def batches():\n    yield {'x': torch.zeros(2)}\n", "a dict with 'x' and no 'labels'"),
        ("def batches():\n    yield torch.zeros(2, 3), torch.zeros(3)\n", "has 2 inputs and 3 targets"),
        ("def batches():\n    yield [[0.0], [1.0]], [0, 1]\n", "no input tensor"),
        ("def batches():\n    return 3\n", "returned int. It must yield batches"),
        ("def batches():\n    return iter(())\n", "yielded no batches"),
        ("def others():\n    pass\n", "has no function 'batches'"),
        ("raise RuntimeError('no luck')\n", "cannot be imported .RuntimeError: no luck."),
    ],
)
def test_functions_that_yield_no_batches(write_module: Any, body: str, message: str) -> None:
    before = list(sys.path)
    with pytest.raises(DataError, match=message):
        list(generated(f"{write_module(body)}:batches"))
    assert sys.path == before


def test_a_module_that_is_not_there() -> None:
    with pytest.raises(
        DataError,
        match=r"'no_such_module_at_all:batches': the module 'no_such_module_at_all' cannot be imported .ModuleNotFound",
    ):
        open_data("no_such_module_at_all:batches")


@pytest.mark.parametrize("source", ["missing/folder", "missing.npz", "missing.tsv", Path("a_module:function")])
def test_a_path_that_is_not_there(source: str | Path) -> None:
    with pytest.raises(DataError, match=r"does not exist\. Give a folder of class folders"):
        open_data(source, picture=PICTURE)


def test_a_kind_of_file_that_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text("{}")
    with pytest.raises(DataError, match=r"of a kind that is not read\. Give a folder"):
        open_data(tmp_path / "data.json", picture=PICTURE)


def test_each_kind_of_data_asks_for_its_format(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("label,text\n0,a\n1,b\n")
    with pytest.raises(DataError, match=r"tokenizer. Give text=TextFormat.from_file\('tokenizer.json'"):
        open_data(tmp_path / "data.csv", picture=PICTURE)
    with pytest.raises(DataError, match=r"need the model's input format. Give picture=PictureFormat"):
        open_data(tmp_path)


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DataError, match=r"cannot be read: .*Permission denied.* Check its permissions"):
        open_data(tmp_path, picture=PICTURE)


def test_an_unknown_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Split 'tset' is unknown\. Known: train, val"):
        open_data(tmp_path, picture=PICTURE, split="tset")


@pytest.mark.assets
def test_the_assets_feed_a_model() -> None:
    if not ASSETS.is_dir():
        pytest.skip(f"no asset folder at {ASSETS} (TRADY_ASSETS)")
    food = open_data(ASSETS / "data" / "food10.npz", picture=PICTURE)
    assert isinstance(food, LabelledData) and len(food) == 3_750 and len(food.classes) == 10
    assert food.labels.bincount().tolist() == [375] * 10
    held_out = open_data(ASSETS / "data" / "food10.npz", picture=PICTURE, split="test")
    assert isinstance(held_out, LabelledData) and len(held_out) == 1_250
    batch = next(food.batches(20, limit=1))
    assert isinstance(batch.inputs, Tensor) and batch.inputs.shape == (20, 3, 32, 32)
    assert batch.targets.bincount(minlength=10).tolist() == [2] * 10
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    assert torch.isfinite(step_loss(call_model(model, batch.inputs), batch.targets, None))

    text = TextFormat.from_file(ASSETS / "weights" / "minilm-l6-h384.tokenizer.json", max_tokens=24)
    trec = open_data(ASSETS / "data" / "trec6.tsv", text=text)
    assert isinstance(trec, LabelledData) and (len(trec), len(trec.classes), trec.skipped) == (5_452, 6, ())
    question = trec[0][0]
    assert isinstance(question, dict) and text.tokenizer.decode(question["input_ids"].tolist()).startswith(
        "how did serfdom develop in and then leave russia?"
    )
    assert len(list(trec.batches(64))) == 5_452 // 64
