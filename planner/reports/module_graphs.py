"""The graph of modules that the data passes through, and where to draw each of them. No torch, no matplotlib.

Held by ``tests/planner/reports/test_plan_figures.py``.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Final

import networkx as nx

#: Node of what runs in no submodule: the model's own forward, and the loss.
MODEL: Final = "(model)"

if TYPE_CHECKING:
    from trady.planner.tracing import Capture, Operation, TensorRecord, Trace


def module_graph(trace: "Trace") -> nx.DiGraph:
    """The dense step with one node per module that runs operations; edges follow the data.

    A module that works again on what depends on its own result (ResNet's shared ReLU, a block's addition) would close
    a cycle: such a later use is a node of its own, so that the graph has none. Each saved storage is counted once,
    where it is first saved: the nodes' ``kept_bytes`` add up to ``trace.saved_bytes``.

    Returns:
        Nodes in order of first use, with ``module`` (path; empty for the model's own forward and the loss), ``use``
        (from 1), ``operations`` (their names, joined) and ``kept_bytes``.
    """
    step = trace.dense_step
    merger = _Merger()
    runs = groupby(range(len(step.operations)), key=lambda index: step.operations[index].module)
    sources = list(_sources(step))
    for module, run in runs:
        merger.add(module, list(run), sources)
    return _labelled(step, merger)


def _sources(step: "Capture") -> Iterator[tuple[int, ...]]:
    """For each operation, the operations that wrote what it reads."""
    writers = _Writers()
    for index, operation in enumerate(step.operations):
        tensors = (operand.tensor for operand in operation.operands)
        yield tuple(sorted({writer for tensor in tensors if (writer := writers.of(tensor)) is not None}))
        writers.note(index, operation)


class _Writers:
    """Which operation last wrote a tensor; views are told apart until something is written in place."""

    def __init__(self) -> None:
        self._of_tensor: dict[TensorRecord, int] = {}
        self._of_storage: dict[int, int] = {}
        self._views: dict[int, list[TensorRecord]] = defaultdict(list)

    def of(self, tensor: "TensorRecord") -> int | None:
        return self._of_tensor.get(tensor, self._of_storage.get(tensor.storage))

    def note(self, index: int, operation: "Operation") -> None:
        for output in operation.outputs:
            if operation.target.endswith("_"):
                for view in self._views.pop(output.storage, []):
                    self._of_tensor.pop(view, None)
                self._of_storage[output.storage] = index
            self._of_storage.setdefault(output.storage, index)
            self._of_tensor[output] = index
            self._views[output.storage].append(output)


@dataclass
class _Merger:
    """Puts consecutive operations of a module into its latest node, unless that closes a cycle."""

    members: list[list[int]] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    uses: list[int] = field(default_factory=list)
    edges: set[tuple[int, int]] = field(default_factory=set)
    _ancestors: list[int] = field(default_factory=list)
    _latest: dict[str, int] = field(default_factory=dict)
    _node_of: dict[int, int] = field(default_factory=dict)

    def add(self, module: str, run: list[int], sources: list[tuple[int, ...]]) -> None:
        own = set(run)
        before = {self._node_of[source] for index in run for source in sources[index] if source not in own}
        node = self._latest.get(module)
        if node is None or any(self._ancestors[other] >> node & 1 for other in before):
            node = self._new_node(module)
        before.discard(node)
        self.members[node] += run
        self._node_of.update(dict.fromkeys(run, node))
        self.edges.update((other, node) for other in before)
        self._inherit(node, before)

    def _new_node(self, module: str) -> int:
        latest = self._latest.get(module)
        self.members.append([])
        self.modules.append(module)
        self.uses.append(1 if latest is None else self.uses[latest] + 1)
        self._ancestors.append(0)
        self._latest[module] = len(self.members) - 1
        return len(self.members) - 1

    def _inherit(self, node: int, before: set[int]) -> None:
        """Whatever comes after the node now also comes after what it reads."""
        gained = 0
        for other in before:
            gained |= self._ancestors[other] | 1 << other
        self._ancestors[node] |= gained
        for later, ancestors in enumerate(self._ancestors):
            if ancestors >> node & 1:
                self._ancestors[later] |= gained


def _labelled(step: "Capture", merger: _Merger) -> nx.DiGraph:
    kept = _kept_bytes(step)
    graph = nx.DiGraph()
    paths = [module or MODEL for module in merger.modules]
    names = [path if use == 1 else f"{path} ({use})" for path, use in zip(paths, merger.uses, strict=True)]
    for name, module, use, members in zip(names, merger.modules, merger.uses, merger.members, strict=True):
        targets = dict.fromkeys(step.operations[index].target.removeprefix("aten::") for index in members)
        graph.add_node(
            name,
            module=module,
            use=use,
            operations=", ".join(targets),
            kept_bytes=sum(kept.get(index, 0) for index in members),
        )
    graph.add_edges_from((names[start], names[end]) for start, end in sorted(merger.edges))
    return graph


def _kept_bytes(step: "Capture") -> Mapping[int, int]:
    """Operation -> bytes of the storages that it is the first to save."""
    kept: dict[int, int] = defaultdict(int)
    seen: set[int] = set()
    for index, operation in enumerate(step.operations):
        for storage in operation.saved:
            if storage in step.saved and storage not in seen:
                seen.add(storage)
                kept[index] += step.storages[storage].num_bytes
    return kept


@dataclass(frozen=True)
class Place:
    """Where a node is drawn: row from the top, column from the left."""

    row: int
    column: int


def layered_places(graph: nx.DiGraph) -> dict[str, Place]:
    """A row for each topological generation; a chain stays in the column it began in."""
    order = {node: index for index, node in enumerate(graph)}
    places: dict[str, Place] = {}
    for row, generation in enumerate(nx.topological_generations(graph)):
        taken: set[int] = set()
        wishes = sorted((_wished_column(graph, places, node), order[node], node) for node in generation)
        for column, _, node in wishes:
            while column in taken:
                column += 1
            taken.add(column)
            places[node] = Place(row, column)
    return places


def _wished_column(graph: nx.DiGraph, places: Mapping[str, Place], node: str) -> int:
    """The leftmost column of what it reads, so that branches meet again where they parted."""
    return min((places[other].column for other in graph.predecessors(node)), default=0)
