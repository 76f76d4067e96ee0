"""The peak of a step from a cost table: what is live at each moment, as sums over what trains; no torch.

A moment is one operation forward, its recording for backward, its backward, the gradient of a drawn slice, or the
optimizer's step. What lives then is a fixed amount, what is kept because something upstream trains, and so much for
each drawn channel. The peak is the largest of these sums and what always lives.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from trady.planner.cost_records import SLICE_BLOCK, KeptBytes, SliceCosts
from trady.planner.ledger import CostTable

Bytes = NDArray[np.int64]

#: What lives at a moment is taken for so many percent more: scalars, kernels of other threads, masks of odd sizes.
MARGIN_PERCENT: Final = 1


_Amount = TypeVar("_Amount", int, Bytes)


def with_margin(num_bytes: _Amount) -> _Amount:
    """Bytes of a moment, the margin added, rounded up."""
    return -(-num_bytes * (100 + MARGIN_PERCENT) // 100)


class MomentKind(StrEnum):
    """What runs at a moment."""

    FORWARD = "forward"
    RECORDING = "recording"
    BACKWARD = "backward"
    SLICE = "slice gradient"
    OPTIMIZER = "optimizer"


@dataclass(frozen=True)
class Moment:
    """What lives while something runs, beside what always lives.

    Args:
        kind: What runs.
        operation: Place of the operation; -1 for the optimizer.
        when: Index of the upstream without which it does not run; ``None`` where it always does, or where
            ``slice`` names the layer.
        fixed: Bytes whatever trains, the workspace left out.
        workspace: Bytes the operation works in.
        kept: Upstream -> bytes that live when anything of it trains.
        stored: ``(group, input)`` pairs whose drawn channels are stored.
        gradients: Layers whose slices have their gradients.
        slice: Workspace of the slice gradient that runs.
        always_gradients: Of ``fixed``, the gradients of always-trained parameters.
        lines: ``(ledger line, upstream)`` -> of ``fixed`` and ``kept``, the bytes that are kept for backward when
            anything of the upstream trains, whether or not something else holds them too.
    """

    kind: MomentKind
    operation: int
    when: int | None
    fixed: int
    workspace: int
    kept: Mapping[int, int]
    stored: frozenset[tuple[int, int]]
    gradients: frozenset[int]
    slice: SliceCosts | None = None
    always_gradients: int = 0
    lines: Mapping[tuple[str, int], int] = field(default_factory=dict)


@dataclass
class _Live:
    """What lives as a sweep passes through the step."""

    fixed: int = 0
    kept: dict[int, int] = field(default_factory=dict)
    stored: set[tuple[int, int]] = field(default_factory=set)
    gradients: set[int] = field(default_factory=set)
    always_gradients: int = 0
    lines: dict[tuple[str, int], int] = field(default_factory=dict)

    def keep(self, upstream: int, num_bytes: int) -> None:
        self.kept[upstream] = self.kept.get(upstream, 0) + num_bytes

    def enter(self, kept: KeptBytes, num_bytes: int) -> None:
        self.lines[kept.line, kept.upstream] = self.lines.get((kept.line, kept.upstream), 0) + num_bytes


class _Sweep:
    """Goes through the forward pass and back."""

    def __init__(self, table: CostTable) -> None:
        self._table = table
        self._freed = {storage for operation in table.operations for storage in operation.frees}
        self._kept_storage: dict[int, tuple[int, int]] = {}

    def moments(self) -> Iterator[Moment]:
        live = _Live()
        yield from self._forward(live)
        yield from self._backward(live)
        yield from self._optimizer(live)

    def _forward(self, live: _Live) -> Iterator[Moment]:
        for place, operation in enumerate(self._table.operations):
            live.fixed += sum(self._table.storages[storage] for storage in operation.allocates)
            for kept in operation.kept:
                live.enter(kept, kept.num_bytes)
                if kept.storage is None:
                    live.keep(kept.upstream, kept.num_bytes)
                else:
                    self._kept_storage[kept.storage] = (kept.upstream, kept.num_bytes)
            live.stored.update(operation.stores)
            yield self._moment(MomentKind.FORWARD, place, live, operation.workspace)
            if operation.recording > operation.workspace:
                when = operation.recorded_when
                yield self._moment(MomentKind.RECORDING, place, live, operation.recording, when)
            for storage in operation.frees:
                live.fixed -= self._table.storages[storage]
                if storage in self._kept_storage:
                    live.keep(*self._kept_storage[storage])

    def _backward(self, live: _Live) -> Iterator[Moment]:
        waiting = _Gradients(self._table)
        for place in range(len(self._table.operations) - 1, -1, -1):
            operation = self._table.operations[place]
            live.fixed += operation.always_gradients
            live.always_gradients += operation.always_gradients
            live.gradients.update(found.layer for found in operation.slices if found.completes)
            for found in operation.slices:
                running = self._with(live, waiting.at(place, before=True))
                yield self._moment(MomentKind.SLICE, place, running, 0, None, found)
            for backward in operation.backwards:
                running = self._with(live, waiting.at(place))
                yield self._moment(MomentKind.BACKWARD, place, running, backward.workspace, backward.upstream)
            waiting.at(place)
            self._release(place, live)

    def _release(self, place: int, live: _Live) -> None:
        """What an operation kept is gone once its backward has run."""
        operation = self._table.operations[place]
        for kept in operation.kept:
            live.enter(kept, -kept.num_bytes)
            if kept.storage is None or kept.storage in self._freed:
                live.keep(kept.upstream, -kept.num_bytes)
        live.stored.difference_update(operation.stores)

    def _optimizer(self, live: _Live) -> Iterator[Moment]:
        copies, largest = self._table.optimizer_copies, self._table.largest_always_trained_bytes
        yield self._moment(MomentKind.OPTIMIZER, -1, live, copies * largest)
        if copies:
            for index, layer in enumerate(self._table.layers):
                work = SliceCosts(layer=index, base=0, channel=copies * layer.gradient_bytes, block=0)
                yield self._moment(MomentKind.OPTIMIZER, -1, live, 0, None, work)

    def _with(self, live: _Live, gradients: Iterable[tuple[int, int]]) -> _Live:
        running = replace(live, kept=dict(live.kept))
        for upstream, num_bytes in gradients:
            running.keep(upstream, num_bytes)
        return running

    def _moment(
        self,
        kind: MomentKind,
        place: int,
        live: _Live,
        workspace: int,
        when: int | None = None,
        work: SliceCosts | None = None,
    ) -> Moment:
        kept = {upstream: num_bytes for upstream, num_bytes in live.kept.items() if num_bytes}
        stored, gradients = frozenset(live.stored), frozenset(live.gradients)
        lines = {key: num_bytes for key, num_bytes in live.lines.items() if num_bytes}
        always = live.always_gradients
        return Moment(kind, place, when, live.fixed, workspace, kept, stored, gradients, work, always, lines)


class _Gradients:
    """Gradients that wait or pass at each place of the backward pass."""

    def __init__(self, table: CostTable) -> None:
        self._storages = table.gradient_storages or ()
        self._born: dict[int, list[int]] = {}
        for index, storage in enumerate(self._storages):
            self._born.setdefault(storage.born, []).append(index)
        self._alive: list[int] = []

    def at(self, place: int, *, before: bool = False) -> list[tuple[int, int]]:
        """Upstream and bytes of each; ``before`` the operation's own results are made."""
        if not before:
            self._alive += self._born.pop(place, [])
        storages = self._storages
        self._alive = [index for index in self._alive if storages[index].uses[-1][0] <= place]
        found = []
        for index in self._alive:
            upstream = next(upstream for until, upstream in storages[index].uses if until <= place)
            found.append((upstream, storages[index].num_bytes))
        return found


class _Slices:
    """The moments of slice gradients, and what those work in for any number of channels."""

    def __init__(self, moments: Sequence[Moment]) -> None:
        self.works = [(row, moment.slice) for row, moment in enumerate(moments) if moment.slice is not None]
        self.rows = np.array([row for row, _ in self.works], dtype=np.int64)
        self.layers = np.array([work.layer for _, work in self.works], dtype=np.int64)
        parts = [(work.base, work.channel, work.block) for _, work in self.works]
        self._base, self._channel, self._block = np.array(parts, dtype=np.int64).reshape(-1, 3).T
        exact = [(place, *found) for place, (_, work) in enumerate(self.works) for found in work.exact]
        self._place, self._count, self._exact = np.array(exact, dtype=np.int64).reshape(-1, 3).T

    def num_bytes(self, counts: Bytes) -> Bytes:
        """``[runs, slice moments]`` from counts ``[runs, layers]``."""
        return self._of_drawn(counts[:, self.layers])

    def growth(self, layers: Bytes, counts: Bytes, num_moments: int) -> Bytes:
        """What one more channel of a layer adds, ``[runs, moments]``, from a layer and its count in each run."""
        drawn = np.where(self.layers == layers[:, None], counts[:, None], 0)
        more = np.where(self.layers == layers[:, None], counts[:, None] + 1, 0)
        growth = np.zeros((len(layers), num_moments), dtype=np.int64)
        growth[:, self.rows] = self._of_drawn(more) - self._of_drawn(drawn)
        return growth

    def _of_drawn(self, drawn: Bytes) -> Bytes:
        found = self._base + drawn * self._channel + -(-drawn // SLICE_BLOCK) * self._block
        runs, hits = np.nonzero(drawn[:, self._place] == self._count)
        found[runs, self._place[hits]] = self._exact[hits]
        return np.where(drawn > 0, found, 0)


class PeakModel:
    """All moments of a cost table as matrices, to evaluate many choices fast.

    Args:
        table: A table with lifetimes.
    """

    def __init__(self, table: CostTable) -> None:
        self.table = table
        self.moments = tuple(_Sweep(table).moments())
        self._stores = [
            (group, position) for group, found in enumerate(table.groups) for position in range(len(found.inputs))
        ]
        self._widths = [0] * len(table.groups)
        for layer in table.layers:
            self._widths[layer.group] = layer.in_channels
        columns = {place: column for column, place in enumerate(self._stores)}
        number = len(self.moments)
        self.fixed: Bytes = np.array([moment.fixed + moment.workspace for moment in self.moments], dtype=np.int64)
        self.kept: Bytes = np.zeros((number, len(table.upstreams)), dtype=np.int64)
        self.stored: Bytes = np.zeros((number, len(self._stores)), dtype=np.int64)
        self.channels: Bytes = np.zeros((number, len(table.layers)), dtype=np.int64)
        self._slices = _Slices(self.moments)
        conditions = [(row, moment.when) for row, moment in enumerate(self.moments) if moment.when is not None]
        self._conditional, self._when = [row for row, _ in conditions], [when for _, when in conditions]
        self._group_of_store = [group for group, _ in self._stores]
        for row, moment in enumerate(self.moments):
            self._fill(row, moment, columns)

    def _fill(self, row: int, moment: Moment, columns: Mapping[tuple[int, int], int]) -> None:
        for upstream, num_bytes in moment.kept.items():
            self.kept[row, upstream] = num_bytes
        for group, position in moment.stored:
            self.stored[row, columns[group, position]] = self.table.groups[group].inputs[position].channel_bytes
        for layer in moment.gradients:
            self.channels[row, layer] = self.table.layers[layer].gradient_bytes

    def values(self, counts: Bytes, stored: Bytes | None = None) -> Bytes:
        """Bytes at each moment of many runs beside what always lives; 0 where it does not come.

        Args:
            counts: Channels drawn, ``[runs, layers]``.
            stored: Channels stored, ``[runs, groups]``; by default draws are nested.

        Returns:
            ``[runs, moments]``.
        """
        lines = self.table.line_model
        trained = lines.trained(counts)
        drawn = lines.most_of_groups(counts) if stored is None else stored
        stores = drawn[:, self._group_of_store] * lines.is_stored(trained)
        parts = zip((trained, stores, counts), self._amounts, strict=True)
        moving = sum((amounts.astype(np.float64) @ of_moments for amounts, of_moments in parts), start=0.0)
        values: Bytes = self.fixed + np.rint(moving).astype(np.int64)
        values[:, self._slices.rows] += self._slices.num_bytes(counts)
        return np.where(self._comes(trained, counts), values, 0)

    def grown(self, values: Bytes, layers: Bytes, counts: Bytes, groups: Bytes, is_stored: NDArray[np.bool_]) -> Bytes:
        """Bytes at each moment after one more channel of a layer that trains already, in each of many runs.

        Args:
            values: What :meth:`values` gave, ``[runs, moments]``.
            layers: Layer of each run.
            counts: Channels it had, ``[runs]``.
            groups: Input group that stores one more, ``[runs]``; -1 where none does.
            is_stored: What :meth:`LineModel.is_stored` says, ``[runs, inputs]``.
        """
        growth = self._channel_growth[layers] + self._slices.growth(layers, counts, len(self.moments))
        pays = np.pad(is_stored, ((0, 0), (0, 1)))
        for inputs in self._inputs_of_group[groups].T:
            growth += self._store_growth[inputs] * pays[np.arange(len(inputs)), inputs, None]
        return np.where(values > 0, values + growth, 0)

    @cached_property
    def _channel_growth(self) -> Bytes:
        """``[layers, moments]``."""
        return np.ascontiguousarray(self.channels.T)

    @cached_property
    def _store_growth(self) -> Bytes:
        """``[inputs + 1, moments]``; the last stands for no input."""
        return np.ascontiguousarray(np.pad(self.stored.T, ((0, 1), (0, 0))))

    @cached_property
    def _inputs_of_group(self) -> Bytes:
        """Inputs of each group, ``[groups + 1, most inputs]``, filled up with none; the last stands for no group."""
        most = max([1, *(len(found.inputs) for found in self.table.groups)])
        inputs: Bytes = np.full((len(self.table.groups) + 1, most), len(self._stores), dtype=np.int64)
        for column, (group, position) in enumerate(self._stores):
            inputs[group, position] = column
        return inputs

    def _comes(self, trained: NDArray[np.bool_], counts: Bytes) -> NDArray[np.bool_]:
        """Whether each moment comes, ``[runs, moments]``."""
        comes = np.ones((len(counts), len(self.moments)), dtype=bool)
        comes[:, self._conditional] = trained[:, self._when]
        comes[:, self._slices.rows] = counts[:, self._slices.layers] > 0
        return comes

    @cached_property
    def _amounts(self) -> tuple[NDArray[np.float64], ...]:
        """Bytes by upstream, input and layer, ``[things, moments]``: sums in float64 are exact up to 9 PB."""
        return tuple(found.T.astype(np.float64) for found in (self.kept, self.stored, self.channels))

    def peaks(self, counts: Bytes, stored: Bytes | None = None, indexed: Bytes | None = None) -> Bytes:
        """Bytes of scope ``peak`` of many runs, ``[runs]``.

        Args:
            counts: Channels drawn, ``[runs, layers]``.
            stored: Channels stored, ``[runs, groups]``; by default draws are nested.
            indexed: Indices kept, ``[runs, groups]``; by default one for each stored channel.
        """
        most = self.values(counts, stored).max(axis=1, initial=0)
        peaks: Bytes = self.table.line_model.lasting_bytes(counts, stored, indexed) + with_margin(most)
        return peaks

    def inference_bytes(self) -> int:
        """Peak of a forward pass that keeps nothing, weights and the batch included."""
        forward = [moment.fixed + moment.workspace for moment in self.moments if moment.kind is MomentKind.FORWARD]
        return self.table.weight_bytes + self.table.input_bytes + with_margin(max(forward, default=0))

    def binding(self, budget_bytes: int) -> list[Moment]:
        """Moments that a budget can be exceeded at and that no other moment always exceeds."""
        everything = [layer.in_channels for layer in self.table.layers]
        stored = self.stored @ np.array([self._widths[group] for group, _ in self._stores], dtype=np.int64)
        most = self.fixed + self.kept.sum(axis=1) + stored + self.channels @ np.array(everything, dtype=np.int64)
        for row, work in self._slices.works:
            most[row] += work.line(everything[work.layer]) + work.highest_base - work.base
        most = with_margin(most) + self.table.lasting_bytes(everything)
        rows = [row for row in range(len(self.moments)) if most[row] > budget_bytes]
        return [self.moments[row] for row in _undominated(rows, self._comparable(), self._conditions())]

    def _comparable(self) -> Bytes:
        """Columns such that a row which is nowhere larger is never larger, whatever trains.

        Along nested upstreams what trains is a last part of the chain: the sums over such parts are compared, so
        that what is kept because of many layers may stand for what is kept because of few.
        """
        table = self.table
        always = [index for index, found in enumerate(table.upstreams) if found.always]
        fixed = self.fixed + self.kept[:, always].sum(axis=1)
        chain: list[int] = []
        for index in sorted(range(len(table.upstreams)), key=lambda index: -table.upstreams[index].bits.bit_count()):
            inside = not chain or not table.upstreams[index].bits & ~table.upstreams[chain[-1]].bits
            if index not in always and inside:
                chain.append(index)
        rest = [index for index in range(len(table.upstreams)) if index not in always and index not in chain]
        parts = fixed[:, None] + np.cumsum(self.kept[:, chain], axis=1)
        slices: Bytes = np.zeros((len(self.moments), 3 * len(table.layers)), dtype=np.int64)
        for row, work in self._slices.works:
            slices[row, 3 * work.layer : 3 * work.layer + 3] = work.highest_base, work.channel, work.block
        return np.concatenate([fixed[:, None], parts, self.kept[:, rest], self.stored, self.channels, slices], axis=1)

    def _conditions(self) -> list[int | None]:
        """Layers that make each moment come, as bit sets; ``None`` where it always does."""
        conditions: list[int | None] = []
        for moment in self.moments:
            if moment.slice is not None:
                conditions.append(1 << moment.slice.layer)
            elif moment.when is None or self.table.upstreams[moment.when].always:
                conditions.append(None)
            else:
                conditions.append(self.table.upstreams[moment.when].bits)
        return conditions


def _undominated(rows: Sequence[int], columns: Bytes, conditions: Sequence[int | None]) -> list[int]:
    """Rows that no other row, which comes whenever they do, is at least as large as everywhere."""
    left = sorted(rows, key=lambda row: -int(columns[row].sum()))
    kept: list[int] = []
    for row in left:
        larger = [other for other in kept if (columns[other] >= columns[row]).all()]
        if not any(_implies(conditions[row], conditions[other]) for other in larger):
            kept.append(row)
    return sorted(kept)


def _implies(condition: int | None, other: int | None) -> bool:
    return other is None or (condition is not None and not condition & ~other)
