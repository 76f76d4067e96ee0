"""The moments of a step, as a cost table tells them: what lives while each operation runs, forward and back; no torch.

A moment is one operation forward, its recording for backward, its backward, the gradient of a drawn slice, or the
optimizer's step. What lives then is a fixed amount, what is kept because something upstream trains, and so much for
each drawn channel.

Held by ``tests/planner/ledger/test_peak.py``.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from trady.planner.ledger.cost_records import KeptBytes, SliceCosts
from trady.planner.ledger.cost_table import CostTable


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
        after: Of the first so many layers the last one drawn has copies of its gradient left.
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
    after: int = 0
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


class Sweep:
    """Goes through a step: the forward pass, back, and the optimizer.

    Args:
        table: Costs, with lifetimes.
    """

    def __init__(self, table: CostTable) -> None:
        self._table = table
        self._freed = {storage for operation in table.operations for storage in operation.frees}
        self._kept_storage: dict[int, tuple[int, int]] = {}

    def moments(self) -> Iterator[Moment]:
        """In the order of the step."""
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
        table, copies = self._table, self._table.optimizer_copies
        work_bytes, norm_bytes = table.always_trained_work_bytes, table.optimizer_norm_bytes
        largest = copies * table.largest_always_trained_bytes
        yield self._moment(MomentKind.OPTIMIZER, -1, live, largest if work_bytes is None else work_bytes)
        if not copies:
            return
        for index, layer in enumerate(table.layers):
            once, each = (norm_bytes * elements for elements in layer.norm_elements)
            work = SliceCosts(layer=index, base=once, channel=copies * layer.gradient_bytes + each, block=0)
            yield replace(self._moment(MomentKind.OPTIMIZER, -1, live, 0, None, work), after=self._left_after(index))
        if table.optimizer_held_copies and table.first_always_trained_bytes:
            first = self._moment(MomentKind.OPTIMIZER, -1, live, copies * table.first_always_trained_bytes)
            yield replace(first, after=len(table.layers))

    def _left_after(self, number: int) -> int:
        return number if self._table.optimizer_held_copies else 0

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
        return Moment(kind, place, when, live.fixed, workspace, kept, stored, gradients, work, 0, always, lines)


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
