"""What a batch holds follows from seed, epoch and position, whoever asks and whenever."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from trady.engine.trainer.augmenting import augmented
from trady.engine.trainer.loaders import EvaluationBatches, FunctionBatches, ItemBatches
from trady.engine.trainer.processes import Processes
from trady.planner.data.datasets import LabelledData
from trady.planner.data.images import PictureFormat
from trady.planner.data.opening import GeneratedBatches, open_data
from trady.planner.errors import DataError

PICTURE = PictureFormat((3, 16, 16), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Numbers:
    """Items that are their own index; some cannot be read."""

    noun = "numbers"

    def __init__(self, count: int, broken: Sequence[int] = ()) -> None:
        self.count, self.broken = count, broken
        self.loaded: list[int] = []

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"number {index}"

    def load(self, index: int) -> Tensor:
        self.loaded.append(index)
        if index in self.broken:
            raise DataError(f"Number {index} is broken.")
        return torch.tensor([float(index)])


def numbers(count: int = 20, broken: Sequence[int] = ()) -> LabelledData:
    return LabelledData(Numbers(count, broken), torch.arange(count) % 2, ("even", "odd"), "numbers")


def values(batches: Iterator[object]) -> list[list[float]]:
    return [batch.inputs.flatten().tolist() for batch in batches]  # type: ignore[attr-defined]


def test_each_epoch_has_an_order_of_its_own_and_each_seed() -> None:
    batches = ItemBatches(numbers(), 4, seed=3)
    first = values(batches.epoch(0))
    assert first == values(ItemBatches(numbers(), 4, seed=3).epoch(0))
    assert first != values(batches.epoch(1))
    assert first != values(ItemBatches(numbers(), 4, seed=4).epoch(0))
    assert sorted(itertools.chain(*first)) == list(range(20))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_goes_on_where_it_stopped_without_reading_what_came_before(workers: int) -> None:
    data = numbers(22)
    batches = ItemBatches(data, 4, workers=workers)
    whole = values(batches.epoch(2))
    assert len(whole) == batches.num_batches == 5
    data.items.loaded.clear()  # type: ignore[attr-defined]
    assert values(batches.epoch(2, start=3)) == whole[3:]
    assert len(data.items.loaded) == (0 if workers else 8)  # type: ignore[attr-defined]


def test_nothing_is_drawn_from_the_global_generators() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    values(ItemBatches(numbers(), 4).epoch(0))
    values(EvaluationBatches(numbers(), 4).epoch(0))
    assert torch.equal(before, torch.get_rng_state())


def test_processes_share_the_global_batches_of_one() -> None:
    alone = values(ItemBatches(numbers(), 6).epoch(1))
    shares = [values(ItemBatches(numbers(), 3, Processes(rank, 2)).epoch(1)) for rank in range(2)]
    assert [left + right for left, right in zip(*shares, strict=True)] == alone


def test_an_unreadable_item_is_stood_in_for_and_told() -> None:
    batches = ItemBatches(numbers(20, broken=(7,)), 4)
    found = values(batches.epoch(0))
    assert [len(batch) for batch in found] == [4] * 5
    assert 7 not in itertools.chain(*found)
    assert batches.skipped == ("Number 7 is broken.",)
    evaluated = EvaluationBatches(numbers(20, broken=(7,)), 6)
    assert [len(batch) for batch in values(evaluated.epoch(0))] == [6, 5, 6, 2]
    assert evaluated.skipped == ("Number 7 is broken.",)


def test_mostly_unreadable_data_is_refused() -> None:
    with pytest.raises(DataError, match=r"mostly unreadable: 20 numbers one after the other"):
        values(ItemBatches(numbers(20, broken=range(20)), 4).epoch(0))


def test_too_few_items_are_refused_with_the_numbers() -> None:
    with pytest.raises(DataError, match=r"has 20 numbers to train on, fewer than one batch of 11 for each of 2"):
        ItemBatches(numbers(), 11, Processes(0, 2))


def test_evaluation_sees_every_item_once_over_all_processes() -> None:
    seen = [values(EvaluationBatches(numbers(), 3, Processes(rank, 3)).epoch(0)) for rank in range(3)]
    assert sorted(itertools.chain(*itertools.chain(*seen))) == list(range(20))


def test_a_limit_bounds_the_epoch() -> None:
    assert len(values(ItemBatches(numbers(), 4, limit=2).epoch(0))) == 2


def counting() -> Iterator[tuple[Tensor, Tensor]]:
    for number in itertools.count():
        yield torch.full((2, 1), float(number)), torch.zeros(2, dtype=torch.long)


def test_functions_are_dealt_out_and_gone_over_again() -> None:
    data = GeneratedBatches(lambda: itertools.islice(counting(), 7), "counting")
    batches = FunctionBatches(data, Processes(1, 2))
    assert batches.num_batches == 3
    assert [batch[0] for batch in values(batches.epoch(0))] == [1, 3, 5]
    assert [batch[0] for batch in values(batches.epoch(0, start=1))] == [3, 5]
    endless = FunctionBatches(GeneratedBatches(counting, "counting"), limit=4)
    assert [batch[0] for batch in values(endless.epoch(0))] == [0, 1, 2, 3]


def test_a_function_makes_what_came_before_when_asked_and_no_more() -> None:
    made: list[int] = []

    def noting() -> Iterator[tuple[Tensor, Tensor]]:
        for number in range(6):
            made.append(number)
            yield torch.full((1, 1), float(number)), torch.zeros(1, dtype=torch.long)

    batches = FunctionBatches(GeneratedBatches(noting, "noting"))
    made.clear()
    batches.epoch(0)
    assert made == []
    batches.epoch(0, start=2)
    assert made == [0, 1]


@pytest.fixture
def photos(tmp_path: Path) -> LabelledData:
    colours = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (tmp_path / name).mkdir()
        for number in range(6):
            Image.fromarray(colours.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(
                tmp_path / name / f"{number}.png"
            )
    found = open_data(tmp_path, picture=PICTURE)
    assert isinstance(found, LabelledData)
    return found


def test_pictures_differ_by_epoch_and_come_again(photos: LabelledData) -> None:
    batches = ItemBatches(photos, 12, augment=True)
    (first,), (again,), (other,) = (list(batches.epoch(epoch)) for epoch in (0, 0, 1))
    assert first.inputs.shape == (12, 3, 16, 16)  # type: ignore[union-attr]
    assert torch.equal(first.inputs, again.inputs)  # type: ignore[arg-type]
    assert not torch.equal(first.inputs.sum((0, 2, 3)), other.inputs.sum((0, 2, 3)))  # type: ignore[union-attr]
    assert photos.items.picture == PICTURE  # type: ignore[attr-defined]


def test_augmentation_mirrors_half_and_keeps_the_range() -> None:
    slope = torch.linspace(-1, 1, 32).expand(3, 32, 32)
    seen = [augmented(slope, (16, 16), seed) for seed in range(200)]
    mirrored = sum(bool(picture[0, 0, 0] > picture[0, 0, -1]) for picture in seen)
    assert 70 < mirrored < 130
    assert all(picture.abs().max() <= 1 for picture in seen)
    assert torch.equal(seen[3], augmented(slope, (16, 16), 3))
