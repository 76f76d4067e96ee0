"""A step of a cost table played through block by block: the judge of peaks and timelines."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from trady.planner.ledger import active_bits
from trady.planner.ledger.cost_table import CostTable


class Play:
    """One step with these counts, every block of memory by name.

    ``most`` is the most that lives at once; ``moments`` tells by line of the ledger what lives at each moment but the
    optimizer's, beside what always lives.
    """

    def __init__(self, table: CostTable, counts: Sequence[int]) -> None:
        self.table, self.counts, self.live = table, counts, dict[Any, int]()
        self.active = active_bits(counts)
        self.most = 0
        self.moments: list[Counter[str]] = []
        self.kept: dict[int, str] = {}

    def trains(self, upstream: int) -> bool:
        return self.table.upstreams[upstream].is_trained(self.active)

    def moment(self, workspace: int = 0) -> None:
        lines = Counter({"workspace": workspace})
        for key, num_bytes in self.live.items():
            lines[self.line_of(*key)] += num_bytes
        self.moments.append(lines)
        self.most = max(self.most, lines.total())

    def line_of(self, block: str, place: int, number: int = 0) -> str:
        """Whatever autograd keeps is of its line, also while something else holds it."""
        if block == "storage":
            return self.kept.get(place, "workspace")
        if block == "mask":
            return self.table.operations[place].kept[number].line
        return {"stored": "saved_activations", "gradient": "gradients", "always": "always_trained"}[block]

    def run(self) -> int:
        for place in range(len(self.table.operations)):
            self.forward(place)
        for place in reversed(range(len(self.table.operations))):
            self.backward(place)
        self.optimizer()
        return self.most

    def forward(self, place: int) -> None:
        operation = self.table.operations[place]
        for storage in operation.allocates:
            self.live["storage", storage] = self.table.storages[storage]
        for number, kept in enumerate(operation.kept):
            if self.trains(kept.upstream):
                if kept.storage is None:
                    self.live["mask", place, number] = kept.num_bytes
                else:
                    self.kept[kept.storage] = kept.line
        for group, position in operation.stores:
            tensor = self.table.groups[group].inputs[position]
            if tensor.kept_by is None or not self.trains(tensor.kept_by):
                most = max(n for layer, n in zip(self.table.layers, self.counts, strict=True) if layer.group == group)
                self.live["stored", group, position] = most * tensor.channel_bytes
        self.moment(operation.workspace)
        is_recorded = operation.recorded_when is not None and self.trains(operation.recorded_when)
        if is_recorded and operation.recording > operation.workspace:
            self.moment(operation.recording)
        for storage in operation.frees:
            if not self.is_kept(storage, place):
                del self.live["storage", storage]

    def is_kept(self, storage: int, place: int) -> bool:
        entries = (kept for found in self.table.operations[: place + 1] for kept in found.kept)
        return any(kept.storage == storage and self.trains(kept.upstream) for kept in entries)

    def backward(self, place: int) -> None:
        operation = self.table.operations[place]
        self.live["always", place] = operation.always_gradients
        for work in operation.slices:
            count = self.counts[work.layer]
            self.live["gradient", work.layer] = count * self.table.layers[work.layer].gradient_bytes
            if count:
                self.moment(self.waiting(place, made=False) + work.num_bytes(count))
        for found in operation.backwards:
            if self.trains(found.upstream):
                self.moment(self.waiting(place, made=True) + found.workspace)
        for number, kept in enumerate(operation.kept):
            self.live.pop(("mask", place, number), None)
            if kept.storage is not None:
                self.kept.pop(kept.storage, None)
            if any(kept.storage in found.frees for found in self.table.operations):
                self.live.pop(("storage", kept.storage), None)
        for pair in operation.stores:
            self.live.pop(("stored", *pair), None)

    def waiting(self, place: int, made: bool) -> int:
        total = 0
        for flow in self.table.gradient_storages or ():
            is_born = flow.born > place or (made and flow.born == place)
            needed = [upstream for until, upstream in flow.uses if until <= place]
            total += flow.num_bytes if is_born and needed and self.trains(needed[0]) else 0
        return total

    def optimizer(self) -> None:
        copies, norm_bytes = self.table.optimizer_copies, self.table.optimizer_norm_bytes
        always = self.table.always_trained_work_bytes
        work = copies * self.table.largest_always_trained_bytes if always is None else always
        left = 0
        for layer, count in zip(self.table.layers, self.counts, strict=True):
            if count and copies:
                norms = norm_bytes * (layer.norm_elements[0] + layer.norm_elements[1] * count)
                work = max(work, left + copies * layer.gradient_bytes * count + norms)
                left = self.table.optimizer_held_copies * layer.gradient_bytes * count
        if self.table.optimizer_held_copies and self.table.first_always_trained_bytes and copies:
            work = max(work, left + copies * self.table.first_always_trained_bytes)
        self.most = max(self.most, sum(self.live.values()) + work)
