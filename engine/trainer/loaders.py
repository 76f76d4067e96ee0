"""Batches of an epoch, from any point of it: what a batch holds follows from seed, epoch and position alone."""

import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from trady.engine.trainer.augmenting import augmented
from trady.engine.trainer.interrupts import ignore_interrupts
from trady.engine.trainer.processes import Processes
from trady.planner.data import (
    GeneratedBatches,
    Item,
    LabelledData,
    PictureFormat,
    PixelArrays,
    collate,
    skipped_in_words,
)
from trady.planner.errors import DataError
from trady.planner.models import Batch
from trady.planner.sampling import permutation, random_bits

# Streams of random bits beside those of the draws, which number from 0.
_ORDER_STREAM: Final = 2**32 - 2
_AUGMENT_STREAM: Final = 2**32 - 3
#: An unreadable item is stood in for by one of so many that follow it.
_STAND_INS: Final = 32


class Batches(Protocol):
    """The batches of a run, as one of its processes sees them."""

    @property
    def num_batches(self) -> int:
        """Batches of an epoch."""

    @property
    def skipped(self) -> Sequence[str]:
        """Names of the unreadable items met so far."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches ``start``, ``start + 1``... of an epoch."""


@dataclass
class ItemBatches:
    """Training batches of labelled items: each epoch another order, the processes taking turns in it.

    Args:
        data: The items.
        batch_size: Items of one process's batch.
        processes: Batch ``b`` of rank ``r`` is the ``r``-th part of the ``b``-th global batch.
        seed: Of the order and the augmentation.
        augment: See pictures a little differently each epoch.
        workers: Processes that decode; 0 decodes in this one.
        limit: Batches of an epoch at the most.

    Raises:
        DataError: The items do not fill one global batch.
    """

    data: LabelledData
    batch_size: int
    processes: Processes = field(default_factory=Processes)
    seed: int = 0
    augment: bool = False
    workers: int = 0
    limit: int | None = None
    _skipped: dict[str, None] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if self.num_batches == 0:
            raise DataError(
                f"{self.data.source} has {len(self.data)} {self.data.items.noun} to train on, fewer than one batch of "
                f"{self.batch_size} for each of {self.processes.size} processes. Give a smaller --batch-size."
            )

    @property
    def num_batches(self) -> int:
        """Whole global batches of an epoch; the items left over are others in each epoch."""
        whole = len(self.data) // (self.batch_size * self.processes.size)
        return whole if self.limit is None else min(whole, self.limit)

    @property
    def skipped(self) -> Sequence[str]:
        """Names of the unreadable items met so far."""
        return tuple(self._skipped)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches of an epoch from ``start`` on; those before are not decoded.

        Error:
            DataError: An item and all those that could stand in for it are unreadable.
        """
        order = permutation(self.seed, epoch, _ORDER_STREAM, len(self.data)).tolist()
        seeds = random_bits(self.seed, epoch, _AUGMENT_STREAM, len(self.data)).tolist()
        picture = getattr(self.data.items, "picture", None)
        if self.augment and isinstance(picture, PictureFormat):
            items = _EpochItems(_with_margin(self.data, picture), order, seeds, picture.size[1:])
        else:
            items = _EpochItems(self.data, order, seeds, None)
        for batch, skipped in _loader(items, list(self._parts(start)), self.workers):
            self._skipped.update(dict.fromkeys(skipped))
            yield batch

    def _parts(self, start: int) -> Iterator[list[int]]:
        size, turn, turns = self.batch_size, self.processes.rank, self.processes.size
        for number in range(start, self.num_batches):
            first = (number * turns + turn) * size
            yield list(range(first, first + size))


@dataclass
class EvaluationBatches:
    """Every item once, in order, dealt out to the processes; the last batch may be short.

    Args:
        data: The items.
        batch_size: Items of a batch.
        processes: Rank ``r`` of ``R`` takes items ``r``, ``r + R``...
        workers: Processes that decode.
    """

    data: LabelledData
    batch_size: int
    processes: Processes = field(default_factory=Processes)
    workers: int = 0
    _skipped: dict[str, None] = field(default_factory=dict, init=False)

    @property
    def num_batches(self) -> int:
        """Batches of this process."""
        return len(self._parts())

    @property
    def skipped(self) -> Sequence[str]:
        """Names of the unreadable items met so far; they are left out."""
        return tuple(self._skipped)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """Batches from ``start`` on, the same in every epoch."""
        for batch, skipped in _loader(_ReadableItems(self.data), self._parts()[start:], self.workers):
            self._skipped.update(dict.fromkeys(skipped))
            if batch is not None:
                yield batch

    def _parts(self) -> list[list[int]]:
        mine = range(self.processes.rank, len(self.data), self.processes.size)
        return [list(mine[first : first + self.batch_size]) for first in range(0, len(mine), self.batch_size)]


@dataclass
class FunctionBatches:
    """Batches of the user's own function, the processes taking turns; batches before ``start`` are made and dropped.

    Args:
        data: The function.
        processes: Rank ``r`` of ``R`` takes batches ``r``, ``r + R``...
        limit: Batches of an epoch at the most; a function without end needs one.
        num_batches: Batches of an epoch, counted by calling the function once.
    """

    data: GeneratedBatches
    processes: Processes = field(default_factory=Processes)
    limit: int | None = None
    num_batches: int = field(init=False)
    skipped: Sequence[str] = field(default=(), init=False)

    def __post_init__(self) -> None:
        turns = self.processes.size
        most = None if self.limit is None else self.limit * turns
        self.num_batches = sum(1 for _ in itertools.islice(self.data, most)) // turns
        if self.num_batches == 0:
            raise DataError(f"{self.data.source} yielded fewer batches than the {turns} processes. Start fewer.")

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches from ``start`` on; the function itself decides how epochs differ."""
        turn, turns = self.processes.rank, self.processes.size
        mine = itertools.islice(self.data, turn, self.num_batches * turns, turns)
        for _ in range(start):
            next(mine, None)
        return mine


class _EpochItems(Dataset[tuple[Item, tuple[str, ...]]]):
    """The items of one epoch by their place in its order; augmented to ``size`` where one is given."""

    def __init__(
        self, data: LabelledData, order: Sequence[int], seeds: Sequence[int], size: tuple[int, int] | None
    ) -> None:
        self._data, self._order, self._seeds, self._size = data, order, seeds, size

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, place: int) -> tuple[Item, tuple[str, ...]]:
        """The item at a place, or the next one that can be read; and the names of those that could not.

        Raises:
            DataError: Too many items one after the other cannot be read.
        """
        skipped: list[str] = []
        for shift in range(min(_STAND_INS, len(self._order))):
            index = self._order[(place + shift) % len(self._order)]
            try:
                return self._augmented(self._data[index], index), tuple(skipped)
            except DataError as error:
                skipped.append(str(error))
        raise DataError(
            f"{self._data.source} is mostly unreadable: {len(skipped)} {self._data.items.noun} one after the other "
            f"({skipped_in_words(skipped)}). Check that the files are whole and are what their names say."
        )

    def _augmented(self, item: Item, index: int) -> Item:
        inputs, label = item
        if self._size is None or not isinstance(inputs, Tensor):
            return item
        return augmented(inputs, self._size, self._seeds[index]), label


class _ReadableItems(Dataset[tuple[Item | None, tuple[str, ...]]]):
    """Items in their own order, ``None`` where one cannot be read."""

    def __init__(self, data: LabelledData) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> tuple[Item | None, tuple[str, ...]]:
        try:
            return self._data[index], ()
        except DataError as error:
            return None, (str(error),)


def _loader(items: Dataset[Any], parts: list[list[int]], workers: int) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """Batches of given items, with the names of the unreadable; draws nothing from the global generator."""
    return iter(
        DataLoader(
            items,
            batch_sampler=parts,
            num_workers=workers,
            collate_fn=_collated,
            worker_init_fn=ignore_interrupts,
            generator=torch.Generator(),
        )
    )


def _collated(found: Sequence[tuple[Item | None, tuple[str, ...]]]) -> tuple[Batch | None, tuple[str, ...]]:
    items = [item for item, _ in found if item is not None]
    skipped = tuple(name for _, names in found for name in names)
    return collate(items) if items else None, skipped


def _with_margin(data: LabelledData, picture: PictureFormat) -> LabelledData:
    """The same data with pictures decoded whole and as large as before the centre crop, for random crops to cut."""
    items: Any = data.items
    if isinstance(items, PixelArrays) and items.pixels.shape[1:3] == picture.size[1:]:
        return data
    height, width = (round(side / picture.crop_fraction) for side in picture.size[1:])
    widened = copy.copy(data)
    widened.items = replace(items, picture=replace(picture, size=(picture.size[0], height, width), crop_fraction=1.0))
    return widened
