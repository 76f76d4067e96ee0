"""A cost table whose peak is measured where it matters: kernels are run only for moments that may be the worst.

Held by ``tests/integration/test_peak.py``.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol, TypeVar

from trady.planner.costs.step_memory import StepMemory
from trady.planner.errors import TracingError
from trady.planner.ledger import BatchedLedger, CostTable
from trady.planner.tracing import Trace

#: Operations measured between two looks at the table.
_AT_ONCE: Final = 4
#: Times that a choice is made anew after kernels were measured.
_MOST_ROUNDS: Final = 7
NOT_MEASURED: Final = "The peak leaves out what kernels work in: they cannot be run here for this model and device."


def memory_of_step(traced: Trace, *, measure: bool) -> tuple[StepMemory | None, str]:
    """What a cost table needs for the peak, or ``None``, and what the reader should know about it.

    Args:
        traced: The trace at the planned batch size.
        measure: Whether kernels may be run.

    Returns:
        The memory, or ``None`` and a note that says why it is not known.
    """
    try:
        memory = StepMemory.of(traced, measure=measure)
    except TracingError as error:
        return None, f"The peak is not predicted: {error}"
    return memory, NOT_MEASURED if memory.workspaces is None else ""


class HasCounts(Protocol):
    """What was chosen: channels per layer, and whatever else."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Channels per layer of the table."""


Chosen = TypeVar("Chosen", bound=HasCounts)


def settled(
    tables: "MeasuredTable", choose: Callable[["MeasuredTable"], Chosen], *, again: bool
) -> tuple[Chosen, "MeasuredTable"]:
    """Choose, measure what binds, and choose again until nothing at the choice's worst moment is a bound.

    Args:
        tables: What is known so far.
        choose: Chooses by a table.
        again: Whether another table may change the choice: whether the budget is of the peak.

    Returns:
        The choice, and the table it was made by, or one that is more exact where that cannot change it.
    """
    for _ in range(_MOST_ROUNDS):
        chosen = choose(tables)
        exact = tables.exact_at(chosen.counts)
        if exact is tables or not again:
            return chosen, exact
        tables = exact
    return choose(tables), tables


class MeasuredTable:
    """A cost table and the means to make its peak more exact; never changed, made anew instead.

    Bounds stand in for kernels that have not run: what is planned by the table is safe at any time.

    Args:
        build: Makes the table from what is known of the step's memory.
        memory: What is known of it.
        note: What the reader should know about the peak.
    """

    def __init__(self, build: Callable[[StepMemory | None], CostTable], memory: StepMemory | None, note: str) -> None:
        self._build, self._memory, self.note = build, memory, note
        self.table = build(memory)
        self.ledger = BatchedLedger(self.table)

    def exact_at(self, counts: Sequence[int]) -> "MeasuredTable":
        """The same where nothing at the worst moment of these counts is a bound, else one measured until it is so."""
        tables = self
        while places := tables._unmeasured(counts):
            tables = tables._with(places)
        return tables

    def exact_within(self, budget_bytes: int) -> "MeasuredTable":
        """The table with every moment measured that a budget of the peak can be exceeded at."""
        if self._memory is None:
            return self
        known = self._memory.workspaces.forward if self._memory.workspaces is not None else {}
        binding = {moment.operation for moment in self.ledger.peak_model.binding(budget_bytes)}
        places = [place for place in sorted(binding) if place >= 0 and place not in known]
        return self._with(place for place in places if self._is_bounded(place))

    def _with(self, places: Iterable[int]) -> "MeasuredTable":
        """The table with some kernels measured."""
        memory = None if self._memory is None else self._memory.measured(places)
        return MeasuredTable(self._build, memory, self.note)

    def _is_bounded(self, place: int) -> bool:
        return self._memory is not None and self._memory.is_bounded(place)

    def _unmeasured(self, counts: Sequence[int]) -> list[int]:
        """Operations with bounds at moments as bad as the worst measured one, the worst first; few at a time."""
        if self._memory is None or self._memory.workspaces is None:
            return []
        known = self._memory.workspaces.forward
        model = self.ledger.peak_model
        values = model.values(self.ledger.one_run(counts))[0]
        places: dict[int, None] = {}
        for row in values.argsort(kind="stable")[::-1][: 4 * _AT_ONCE].tolist():
            moment = model.moments[row]
            if moment.operation < 0 or moment.operation in known or not self._is_bounded(moment.operation):
                break
            places[moment.operation] = None
        return list(places)[:_AT_ONCE]
