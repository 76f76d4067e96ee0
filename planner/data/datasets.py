"""Labelled items: what every readable source becomes, cut into batches and split by label."""

from collections.abc import Iterator, Sequence
from typing import Any, Final, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Dataset

from trady.planner.errors import DataError
from trady.planner.models import Batch, Inputs

Item: TypeAlias = tuple[Inputs, int]

_NAMES_SHOWN: Final = 3
_TRIED_BEFORE_JUDGING: Final = 32


class Items(Protocol):
    """The undecoded items of one source, in a fixed order."""

    @property
    def noun(self) -> str:
        """What the items are called in messages, in the plural."""

    def __len__(self) -> int:
        """Items in the source."""

    def name(self, index: int) -> str:
        """Where the user finds this item: a file name, or a line number."""

    def load(self, index: int) -> Inputs:
        """Decode one item.

        Raises:
            DataError: It cannot be read.
        """


class LabelledData(Dataset[Item]):
    """Labelled inputs, decoded one at a time; all its randomness comes from the seeds it is given.

    ``data[i]`` is ``(input, label)`` and raises DataError for an unreadable item; ``batches``
    skips such items and records them.

    Args:
        items: What is decoded.
        labels: Class index of each chosen item, int64 ``[N]``, in ``0 .. len(classes) - 1``.
        classes: Class names, the position being the label.
        source: Where the data came from, for reports.
        chosen: Positions in ``items`` of the chosen ones, int64 ``[N]``; by default all of them, in order.
        note: What was decided on opening (which part of the data this is), in words; may be empty.
        malformed: Names of items that were already found unreadable on opening and are not in ``items``.
    """

    def __init__(
        self,
        items: Items,
        labels: Tensor,
        classes: Sequence[str],
        source: str,
        *,
        chosen: Tensor | None = None,
        note: str = "",
        malformed: Sequence[str] = (),
    ) -> None:
        self.items = items
        self.labels = labels
        self.classes = tuple(classes)
        self.source = source
        self.note = note
        self._chosen = torch.arange(len(items)) if chosen is None else chosen
        self._malformed = tuple(malformed)
        self._unreadable: dict[int, str] = {}

    @property
    def skipped(self) -> tuple[str, ...]:
        """Names of the unreadable items met so far."""
        return (*self._malformed, *self._unreadable.values())

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Item:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.source}: item {index} of {len(self)}")
        return self.items.load(int(self._chosen[index])), int(self.labels[index])

    def batches(self, batch_size: int, *, seed: int = 0, limit: int | None = None) -> Iterator[Batch]:
        """Read the data once, in an order set by the seed; items short of a whole batch are left out.

        Without a limit the order is a plain shuffle. With one, the classes are spread evenly over the
        order, each by its share of the data, so that a few batches already look like the whole.

        Args:
            batch_size: Items in each batch, from 1 to ``len(self)``.
            seed: Of the order; pass another for each epoch.
            limit: Batches at the most; by default all.

        Returns:
            Batches of tensors ``[B, ...]`` (or dicts of them) and int64 targets ``[B]``.

        Raises:
            DataError: The batch size or the limit does not fit, more than half of the items tried
                (at least 32, or all) are unreadable, or the readable ones do not fill one batch.
        """
        if not 1 <= batch_size <= len(self):
            raise DataError(
                f"Batch size {batch_size} does not fit {self.source}, which has {len(self)} {self.items.noun}. "
                f"Give a batch size from 1 to {len(self)}."
            )
        if limit is not None and limit < 1:
            raise DataError(f"Number of batches must be at least 1, got {limit}. Leave it out to read all.")
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self), generator=generator) if limit is None else self._spread_order(generator)
        return self._batched(order, batch_size, limit)

    def split(self, validation_fraction: float, *, seed: int = 0) -> tuple["LabelledData", "LabelledData"]:
        """Divide into training and validation data, class by class.

        A class with two items or more has at least one in each part; a single item goes to training.

        Args:
            validation_fraction: Share of each class held out, above 0 and below 1.
            seed: Of the choice.

        Returns:
            The larger part, and the part held out.

        Raises:
            DataError: The fraction is outside its range, or no class has two items.
        """
        if not 0.0 < validation_fraction < 1.0:
            raise DataError(f"Validation fraction must lie between 0 and 1, got {validation_fraction}.")
        held_out = self._held_out(validation_fraction, torch.Generator().manual_seed(seed))
        if not held_out.any():
            raise DataError(f"{self.source} has no class with two {self.items.noun}, so nothing can be held out.")
        share = f"{validation_fraction:.0%} held out with seed {seed}"
        return self._part(~held_out, f"training part, {share}"), self._part(held_out, f"validation part, {share}")

    def _spread_order(self, generator: torch.Generator) -> Tensor:
        """A shuffle in which item k of a class of n lies in the k-th of n equal stretches."""
        place = torch.empty(len(self), dtype=torch.float64)
        for label in sorted(set(self.labels.tolist())):
            members = self._shuffled_members(label, generator)
            offsets = torch.rand(len(members), generator=generator, dtype=torch.float64)
            place[members] = (torch.arange(len(members)) + offsets) / len(members)
        return place.argsort()

    def _held_out(self, fraction: float, generator: torch.Generator) -> Tensor:
        held_out = torch.zeros(len(self), dtype=torch.bool)
        for label in sorted(set(self.labels.tolist())):
            members = self._shuffled_members(label, generator)
            held_out[members[: min(max(round(len(members) * fraction), 1), len(members) - 1)]] = True
        return held_out

    def _shuffled_members(self, label: int, generator: torch.Generator) -> Tensor:
        members = (self.labels == label).nonzero().flatten()
        return members[torch.randperm(len(members), generator=generator)]

    def _part(self, mask: Tensor, note: str) -> "LabelledData":
        full_note = f"{self.note}; {note}" if self.note else note
        return LabelledData(
            self.items, self.labels[mask], self.classes, self.source, chosen=self._chosen[mask], note=full_note
        )

    def _batched(self, order: Tensor, batch_size: int, limit: int | None) -> Iterator[Batch]:
        num_batches = 0
        waiting: list[Item] = []
        for item in self._readable(order):
            waiting.append(item)
            if len(waiting) == batch_size:
                yield collate(waiting)
                num_batches += 1
                if num_batches == limit:
                    return
                waiting = []
        if num_batches == 0:
            raise DataError(
                f"{self.source} fills no batch of {batch_size}: {len(waiting)} of {len(self)} {self.items.noun} "
                f"could be read ({skipped_in_words(self.skipped)}). Give a smaller batch size or more data."
            )

    def _readable(self, order: Tensor) -> Iterator[Item]:
        num_unreadable = 0
        for num_tried, index in enumerate(order.tolist(), start=1):
            item = self._load_or_record(index)
            if item is not None:
                yield item
                continue
            num_unreadable += 1
            if 2 * num_unreadable > max(num_tried, min(len(self), _TRIED_BEFORE_JUDGING)):
                raise DataError(
                    f"{self.source} is mostly unreadable: {num_unreadable} of the first {num_tried} "
                    f"{self.items.noun} tried, of {len(self)} ({skipped_in_words(self.skipped)}). "
                    "Check that the files are whole and are what their names say."
                )

    def _load_or_record(self, index: int) -> Item | None:
        if index in self._unreadable:
            return None
        try:
            return self[index]
        except DataError:
            self._unreadable[index] = self.items.name(int(self._chosen[index]))
            return None


def collate(items: Sequence[Item]) -> Batch:
    """Stack inputs (tensors, or dicts of tensors) and labels along a new batch dimension."""
    labels = torch.tensor([label for _, label in items])
    inputs: list[Any] = [item_input for item_input, _ in items]
    if isinstance(inputs[0], Tensor):
        return Batch(torch.stack(inputs), labels)
    return Batch({name: torch.stack([each[name] for each in inputs]) for name in inputs[0]}, labels)


def skipped_in_words(names: Sequence[str]) -> str:
    """Count the unreadable items and name the first few: ``"skipped 4: a.png, b.png, c.png, ..."``."""
    shown = ", ".join(names[:_NAMES_SHOWN])
    return f"skipped {len(names)}: {shown}{', ...' if len(names) > _NAMES_SHOWN else ''}" if names else "skipped none"
