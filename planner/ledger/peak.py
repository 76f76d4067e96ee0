"""The peak of a step: what lives at each of its moments, as sums over what trains, and the largest one; no torch."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from trady.planner.ledger.batched_lines import BatchedLines, Bytes
from trady.planner.ledger.cost_records import SLICE_BLOCK
from trady.planner.ledger.cost_table import CostTable
from trady.planner.ledger.step_timeline import Moment, MomentKind, Sweep

#: What lives at a moment is taken for so many percent more: scalars, kernels of other threads, masks of odd sizes.
MARGIN_PERCENT: Final = 1
#: From so many runs on it pays to find out which moments may be the highest.
_MANY_RUNS: Final = 32

_Amount = TypeVar("_Amount", int, Bytes)


def with_margin(num_bytes: _Amount) -> _Amount:
    """Bytes of a moment, the margin added, rounded up."""
    return -(-num_bytes * (100 + MARGIN_PERCENT) // 100)


class _Slices:
    """The moments of slice gradients, and what those work in for any number of channels."""

    def __init__(self, moments: Sequence[Moment]) -> None:
        self.works = [(row, moment.slice) for row, moment in enumerate(moments) if moment.slice is not None]
        self.rows = np.array([row for row, _ in self.works], dtype=np.int64)
        self.layers = np.array([work.layer for _, work in self.works], dtype=np.int64)
        parts = [(work.base, work.channel, work.block) for _, work in self.works]
        self._base, self._channel, self._block = np.array(parts, dtype=np.int64).reshape(-1, 3).T
        self._highest = np.array([work.highest_base for _, work in self.works], dtype=np.int64)
        exact = [(place, *found) for place, (_, work) in enumerate(self.works) for found in work.exact]
        self._place, self._count, self._exact = np.array(exact, dtype=np.int64).reshape(-1, 3).T

    def num_bytes(self, counts: Bytes) -> Bytes:
        """``[runs, slice moments]`` from counts ``[runs, layers]``."""
        return self._of_drawn(counts[:, self.layers])

    def most(self, counts: Bytes) -> Bytes:
        """No less than any number of channels up to these works in, ``[runs, slice moments]``."""
        return np.where(counts[:, self.layers] > 0, self._highest + self._line(counts[:, self.layers]), 0)

    def _of_drawn(self, drawn: Bytes) -> Bytes:
        found = self._base + self._line(drawn)
        runs, hits = np.nonzero(drawn[:, self._place] == self._count)
        found[runs, self._place[hits]] = self._exact[hits]
        return np.where(drawn > 0, found, 0)

    def _line(self, drawn: Bytes) -> Bytes:
        line: Bytes = drawn * self._channel + -(-drawn // SLICE_BLOCK) * self._block
        return line


class _Held:
    """The moments at which copies of the last slice before are left, and what those take."""

    def __init__(self, table: CostTable, moments: Sequence[Moment]) -> None:
        self.rows = np.array([row for row, moment in enumerate(moments) if moment.after], dtype=np.int64)
        self._after = np.array([moments[row].after for row in self.rows], dtype=np.int64)
        copies = table.optimizer_held_copies
        self._channel = np.array([copies * layer.gradient_bytes for layer in table.layers], dtype=np.int64)

    def _last_drawn(self, counts: Bytes) -> Bytes:
        """The last layer drawn of those before each moment, ``[runs, held moments]``; -1 for none."""
        drawn = np.where(counts > 0, np.arange(counts.shape[1]), -1)
        return np.maximum.accumulate(drawn, axis=1)[:, self._after - 1]

    def num_bytes(self, counts: Bytes) -> Bytes:
        """``[runs, held moments]`` from counts ``[runs, layers]``."""
        last = self._last_drawn(counts)
        return np.where(last >= 0, np.take_along_axis(counts * self._channel, np.maximum(last, 0), axis=1), 0)

    def most(self, in_channels: Sequence[int], num_moments: int) -> Bytes:
        """What they take at most, ``[moments]``."""
        most = np.zeros(num_moments, dtype=np.int64)
        most[self.rows] = np.maximum.accumulate(self._channel * np.array(in_channels, dtype=np.int64))[self._after - 1]
        return most


class PeakModel:
    """All moments of a cost table as matrices, to evaluate many choices fast.

    Args:
        lines: Of a table with lifetimes.
        moments: Those to look at; all by default.
    """

    def __init__(self, lines: BatchedLines, moments: Sequence[Moment] | None = None) -> None:
        self.lines, self.table = lines, lines.table
        table = lines.table
        self.moments = tuple(Sweep(table).moments() if moments is None else moments)
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
        self._slices, self._held = _Slices(self.moments), _Held(table, self.moments)
        conditions = [(row, moment.when) for row, moment in enumerate(self.moments) if moment.when is not None]
        self._conditional, self._when = [row for row, _ in conditions], [when for _, when in conditions]
        self._group_of_store = [group for group, _ in self._stores]
        for row, moment in enumerate(self.moments):
            self._fill(row, moment, columns)
        self._recent: tuple[set[int], PeakModel] = set(), self
        self._exceeding: dict[int, PeakModel] = {}

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
        lines = self.lines
        trained = lines.trained(counts)
        drawn = lines.most_of_groups(counts) if stored is None else stored
        values = self._moving(trained, drawn, lines.is_stored(trained), counts)
        values[:, self._slices.rows] += self._slices.num_bytes(counts)
        if len(self._held.rows):
            values[:, self._held.rows] += self._held.num_bytes(counts)
        return np.where(self._comes(trained, counts), values, 0)

    def _moving(self, trained: NDArray[np.bool_], stored: Bytes, is_stored: NDArray[np.bool_], counts: Bytes) -> Bytes:
        """Bytes at each moment but what slice gradients work in, ``[runs, moments]``."""
        stores = stored[:, self._group_of_store] * is_stored
        parts = zip((trained, stores, counts), self._amounts, strict=True)
        moving = sum((amounts.astype(np.float64) @ of_moments for amounts, of_moments in parts), start=0.0)
        values: Bytes = self.fixed + np.rint(moving).astype(np.int64)
        return values

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

        Returns:
            Bytes, ``[runs]``.
        """
        drawn = self.lines.most_of_groups(counts) if stored is None else stored
        model = self if len(counts) < _MANY_RUNS else self._highest_in(counts, drawn)
        most = model.values(counts, drawn).max(axis=1, initial=0)
        peaks: Bytes = self.lines.lasting_bytes(counts, drawn, indexed) + with_margin(most)
        return peaks

    def _highest_in(self, counts: Bytes, stored: Bytes) -> "PeakModel":
        """The model of all moments that may be the highest of some run, and of those that were for others before.

        What the least and the most of all runs come to bounds every moment: few of hundreds are left.
        """
        lines = self.lines
        low, high = counts.min(axis=0, keepdims=True), counts.max(axis=0, keepdims=True)
        rarely, often = lines.trained(low), lines.trained(high)
        least = self._moving(rarely, stored.min(axis=0, keepdims=True), lines.is_stored(often), low)
        most = self._moving(often, stored.max(axis=0, keepdims=True), lines.is_stored(rarely), high)
        most[:, self._slices.rows] += self._slices.most(high)
        most += self._held.most(high[0].tolist(), len(self.moments))
        floor = np.where(self._comes(rarely, low), least, 0).max(initial=0)
        rows = set(np.flatnonzero(most[0] >= floor).tolist())
        if not rows <= self._recent[0]:
            rows |= self._recent[0]
            self._recent = rows, PeakModel(self.lines, [self.moments[row] for row in sorted(rows)])
        return self._recent[1]

    def exceeding(self, budget_bytes: int) -> "PeakModel":
        """The model of those moments that some draw brings above a budget, nested or not."""
        if budget_bytes not in self._exceeding:
            lines = self.lines
            everything = np.array([[layer.in_channels for layer in self.table.layers]], dtype=np.int64)
            stored = lines.most_of_groups(everything)
            no_input_is_whole = np.ones((1, len(self._stores)), dtype=bool)
            most = self._moving(lines.trained(everything), stored, no_input_is_whole, everything)
            most[:, self._slices.rows] += self._slices.most(everything)
            most += self._held.most(everything[0].tolist(), len(self.moments))
            lasting = lines.lasting_bytes(everything, stored, lines.sums_of_groups(everything))
            rows = np.flatnonzero(with_margin(most[0]) + lasting > budget_bytes)
            self._exceeding[budget_bytes] = PeakModel(self.lines, [self.moments[row] for row in rows.tolist()])
        return self._exceeding[budget_bytes]

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
        held = self._held.most(everything, len(self.moments))
        most = with_margin(most + held) + int(self.lines.lasting_bytes(self.lines.one_run(everything))[0])
        rows = [row for row in range(len(self.moments)) if most[row] > budget_bytes]
        kept = _undominated(rows, self._comparable(0 * held), self._comparable(held), self._conditions())
        return [self.moments[row] for row in kept]

    def _comparable(self, held: Bytes) -> Bytes:
        """Columns such that a row which is nowhere larger is never larger, whatever trains.

        Along nested upstreams what trains is a last part of the chain: the sums over such parts are compared, so
        that what is kept because of many layers may stand for what is kept because of few. Copies left of a slice
        depend on what is drawn: ``held``, ``[moments]``, counts all of them for a row to be left out, and none for
        one that stands for it.
        """
        table = self.table
        always = [index for index, found in enumerate(table.upstreams) if found.always]
        fixed = self.fixed + held + self.kept[:, always].sum(axis=1)
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


def _undominated(rows: Sequence[int], least: Bytes, most: Bytes, conditions: Sequence[int | None]) -> list[int]:
    """Rows whose most is not everywhere within the least of another row, which comes whenever they do."""
    left = sorted(rows, key=lambda row: -int(most[row].sum()))
    kept: list[int] = []
    for row in left:
        larger = [other for other in kept if (least[other] >= most[row]).all()]
        if not any(_implies(conditions[row], conditions[other]) for other in larger):
            kept.append(row)
    return sorted(kept)


def _implies(condition: int | None, other: int | None) -> bool:
    return other is None or (condition is not None and not condition & ~other)
