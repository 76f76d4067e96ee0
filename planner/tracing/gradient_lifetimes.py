"""How long each gradient lives in backward: from what each node took and passed on; no torch.

Autograd runs nodes in the reverse order of the forward pass. A gradient waits in the buffer of the node it is for;
a second one for the same place is added to it, in place where nobody else holds the first.

Source:
    ``torch/csrc/autograd/engine.cpp`` (``evaluate_function``) and ``input_buffer.cpp`` (``accumulate``).

Held by ``tests/integration/test_peak.py``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Passed:
    """A gradient that a node hands on.

    Args:
        node: The node it is for.
        slot: Which of that node's outputs it is the gradient of.
        storage: Identity of its storage.
        num_bytes: Size of the storage.
        own_bytes: Size of its elements: less for a part of a storage, more for an expanded one.
    """

    node: int
    slot: int
    storage: int
    num_bytes: int
    own_bytes: int

    @property
    def is_dense(self) -> bool:
        """Whether another gradient can be added to it in place."""
        return self.num_bytes == self.own_bytes


@dataclass(frozen=True)
class NodeRun:
    """The run of one node of autograd's graph.

    Args:
        node: The node.
        operation: Place of its forward operation.
        upstream: Bit set of trained parameters: it runs when any of them trains.
        taken: Storage of the gradient of each of its outputs, by slot.
        passed: What it hands on, gradients of parameters left out.
    """

    node: int
    operation: int
    upstream: int
    taken: Mapping[int, int]
    passed: tuple[Passed, ...]


@dataclass(frozen=True)
class GradientStorage:
    """Memory of gradients.

    Args:
        num_bytes: Its size.
        born: Place of the forward operation whose backward makes it.
        uses: ``(operation, upstream)``: it is needed until that operation's backward has run, if any of the
            parameters upstream trains.
    """

    num_bytes: int
    born: int
    uses: tuple[tuple[int, int], ...]


@dataclass
class _Growing:
    num_bytes: int
    born: int
    uses: list[tuple[int, int]] = field(default_factory=list)


class _Flow:
    def __init__(self, runs: Sequence[NodeRun]) -> None:
        self.storages: list[_Growing] = []
        self._runs = {run.node: run for run in runs}
        self._known: dict[int, int] = {}
        self._waiting: dict[tuple[int, int], tuple[int, Passed]] = {}

    def run(self, run: NodeRun) -> None:
        for slot, seen in run.taken.items():
            waiting = self._waiting.pop((run.node, slot), None)
            if waiting is not None:
                self._known[seen] = waiting[0]
                self._use(waiting[0], run)
        for position, passed in enumerate(run.passed):
            if passed.node in self._runs:
                self._arrive(run, passed, run.passed[position + 1 :])

    def _arrive(self, run: NodeRun, passed: Passed, following: Sequence[Passed]) -> None:
        place = (passed.node, passed.slot)
        storage = self._known.setdefault(passed.storage, len(self.storages))
        if storage == len(self.storages):
            self.storages.append(_Growing(passed.num_bytes, run.operation))
        before = self._waiting.get(place)
        if before is None:
            self._waiting[place] = (storage, passed)
            return
        first, first_passed = before
        self._use(storage, run, upstream=self._runs[passed.node].upstream)
        shared = storage == first or any(held == first for at, (held, _) in self._waiting.items() if at != place)
        shared = shared or any(self._known.get(later.storage) == first for later in following)
        if first_passed.is_dense and not shared:
            return
        self._use(first, run, upstream=self._runs[passed.node].upstream)
        self.storages.append(_Growing(passed.own_bytes, run.operation))
        whole = Passed(passed.node, passed.slot, -len(self.storages), passed.own_bytes, passed.own_bytes)
        self._waiting[place] = (len(self.storages) - 1, whole)

    def _use(self, storage: int, run: NodeRun, upstream: int | None = None) -> None:
        self.storages[storage].uses.append((run.operation, run.upstream if upstream is None else upstream))


def follow_gradients(runs: Sequence[NodeRun]) -> tuple[GradientStorage, ...]:
    """Every storage that gradients of activations lie on, and until when it is needed.

    Args:
        runs: Nodes in the order they ran.
    """
    flow = _Flow(runs)
    for run in runs:
        flow.run(run)
    return tuple(GradientStorage(found.num_bytes, found.born, tuple(found.uses)) for found in flow.storages)
