"""Batches, order and split of labelled data, on items that are only numbers."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from trady.planner.data.datasets import LabelledData
from trady.planner.errors import DataError
from trady.planner.models.training_step import Batch


class Numbers:
    """Item i is the tensor ``[i]``; the broken ones cannot be read."""

    noun = "numbers"

    def __init__(self, count: int, broken: frozenset[int] = frozenset()) -> None:
        self.count, self.broken = count, broken
        self.loaded: list[int] = []

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"number {index}"

    def load(self, index: int) -> Tensor:
        self.loaded.append(index)
        if index in self.broken:
            raise DataError(f"{self.name(index)} is broken")
        return torch.tensor([index])


def numbers(counts: tuple[int, ...], broken: tuple[int, ...] = ()) -> LabelledData:
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    return LabelledData(
        Numbers(len(labels), frozenset(broken)), labels, [f"c{i}" for i in range(len(counts))], "numbers"
    )


def order_of(data: LabelledData, batch_size: int = 1, seed: int = 0, limit: int | None = None) -> list[int]:
    return [int(x) for batch in data.batches(batch_size, seed=seed, limit=limit) for x in batch.inputs]


def tensor_of(batch: Batch) -> Tensor:
    assert isinstance(batch.inputs, Tensor)
    return batch.inputs


def loaded_by(data: LabelledData) -> list[int]:
    assert isinstance(data.items, Numbers)
    return data.items.loaded


def test_an_epoch_reads_every_item_once_but_for_the_last_short_batch() -> None:
    batches = list(numbers((13, 10)).batches(4))
    assert [tuple(tensor_of(batch).shape) for batch in batches] == [(4, 1)] * 5
    assert all(batch.targets.dtype == torch.int64 and batch.targets.shape == (4,) for batch in batches)
    assert len({int(x) for batch in batches for x in batch.inputs}) == 20
    assert all((tensor_of(batch).flatten() >= 13).long().equal(batch.targets) for batch in batches)


def test_the_seed_sets_the_order_and_torch_is_left_alone() -> None:
    data, before = numbers((20, 20)), torch.get_rng_state()
    assert order_of(data, seed=3) == order_of(data, seed=3) != order_of(data, seed=4)
    assert order_of(data, seed=3, limit=9) == order_of(data, seed=3, limit=9) != order_of(data, seed=4, limit=9)
    assert torch.equal(torch.get_rng_state(), before)


def test_another_process_reads_the_same_order() -> None:
    program = (
        "import importlib.util, sys; "
        f"spec = importlib.util.spec_from_file_location('cases', {__file__!r}); "
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module); "
        "print(module.order_of(module.numbers((9, 9)), seed=5))"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == str(order_of(numbers((9, 9)), seed=5))


def test_items_are_decoded_only_when_their_batch_is_asked_for() -> None:
    data = numbers((50, 50))
    batches = data.batches(4)
    assert loaded_by(data) == []
    next(batches)
    assert len(loaded_by(data)) == 4


@pytest.mark.parametrize("seed", range(5))
def test_a_few_batches_hold_every_class_by_its_share(seed: int) -> None:
    data = numbers((400, 200, 200))
    targets = torch.cat([batch.targets for batch in data.batches(8, seed=seed, limit=2)])
    assert targets.bincount(minlength=3).tolist() == pytest.approx([8, 4, 4], abs=1)


def test_the_limit_counts_batches() -> None:
    assert len(list(numbers((40, 40)).batches(8, limit=3))) == 3
    assert len(list(numbers((10, 10)).batches(8, limit=3))) == 2


def test_unreadable_items_are_skipped_and_named() -> None:
    data = numbers((10, 10), broken=(3, 15))
    for _ in range(2):
        assert sorted(order_of(data)) == [i for i in range(20) if i not in (3, 15)]
        assert sorted(data.skipped) == ["number 15", "number 3"]
    with pytest.raises(DataError, match="number 3 is broken"):
        data[3]


def test_what_was_skipped_before_does_not_change_the_order() -> None:
    data = numbers((10, 10), broken=(3, 15))
    first = order_of(data, seed=1)
    order_of(data, seed=2)
    assert order_of(data, seed=1) == first


def test_more_than_half_unreadable_is_refused() -> None:
    data = numbers((10, 10), broken=tuple(range(11)))
    with pytest.raises(DataError, match=r"mostly unreadable: 11 of the first \d+ numbers tried, of 20 \(skipped 11: "):
        order_of(data)


def test_exactly_half_unreadable_is_read() -> None:
    assert len(order_of(numbers((10, 10), broken=tuple(range(10))))) == 10


def test_large_mostly_unreadable_data_is_refused_without_reading_it_all() -> None:
    data = numbers((5_000, 5_000), broken=tuple(range(9_000)))
    with pytest.raises(DataError, match=r"mostly unreadable: 17 of the first \d+ numbers tried, of 10000"):
        order_of(data)
    assert len(loaded_by(data)) < 100


def test_readable_items_short_of_one_batch_are_refused() -> None:
    data = numbers((4, 4), broken=(0, 1))
    with pytest.raises(DataError, match=r"fills no batch of 8: 6 of 8 numbers could be read \(skipped 2: number"):
        list(data.batches(8))


@pytest.mark.parametrize("batch_size", [0, -1, 9])
def test_a_batch_size_that_does_not_fit_is_refused_at_once(batch_size: int) -> None:
    with pytest.raises(DataError, match=f"Batch size {batch_size} does not fit numbers, which has 8 numbers"):
        numbers((4, 4)).batches(batch_size)


def test_no_batches_at_all_cannot_be_asked_for() -> None:
    with pytest.raises(DataError, match="at least 1, got 0"):
        numbers((4, 4)).batches(2, limit=0)


def test_the_split_is_by_class_complete_and_repeatable() -> None:
    data = numbers((40, 20, 2, 1))
    training, validation = data.split(0.25, seed=1)
    assert validation.labels.bincount(minlength=4).tolist() == [10, 5, 1, 0]
    kept, held_out = order_of(training), order_of(validation)
    assert sorted(kept + held_out) == list(range(63))
    assert sorted(order_of(data.split(0.25, seed=1)[1])) == sorted(held_out)
    assert sorted(order_of(data.split(0.25, seed=2)[1])) != sorted(held_out)
    assert validation.note == "validation part, 25% held out with seed 1"


def test_parts_of_parts_keep_labels_and_items_together() -> None:
    training = numbers((40, 20)).split(0.25)[0].split(0.5)[1]
    items = [training[i] for i in range(len(training))]
    assert all(isinstance(x, Tensor) and (int(x) >= 40) == label for x, label in items)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 20.0])
def test_a_fraction_outside_its_range_is_refused(fraction: float) -> None:
    with pytest.raises(DataError, match=f"between 0 and 1, got {fraction}"):
        numbers((4, 4)).split(fraction)


def test_single_items_cannot_be_split() -> None:
    with pytest.raises(DataError, match="no class with two numbers"):
        numbers((1, 1)).split(0.5)


def test_it_is_a_dataset_for_torch() -> None:
    loader = torch.utils.data.DataLoader(numbers((4, 4)), batch_size=3)
    inputs, labels = next(iter(loader))
    assert inputs.tolist() == [[0], [1], [2]] and labels.tolist() == [0, 0, 0]
    by_index: Any = numbers((4, 4))  # iterated as a sequence: types want __iter__
    assert len(list(by_index)) == 8
    assert numbers((4, 4))[-1][1] == 1
    with pytest.raises(IndexError, match="item 8 of 8"):
        numbers((4, 4))[8]
