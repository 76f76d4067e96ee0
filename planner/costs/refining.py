"""A cost table whose peak is measured where it matters: kernels are run only for moments that may be the worst."""

from collections.abc import Callable, Sequence
from typing import Final

from trady.planner.costs.step_memory import StepMemory
from trady.planner.errors import TracingError
from trady.planner.ledger import BatchedLedger, CostTable
from trady.planner.tracing import Trace

#: Operations measured between two looks at the table.
_AT_ONCE: Final = 4
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


class RefinedTable:
    """A cost table and the means to make its peak exact.

    Bounds stand in for kernels that have not run: what is planned by the table is safe at any time.

    Args:
        traced: The trace at the planned batch size.
        build: Makes the table from what is known of the step's memory.
        measure: Whether kernels may be run.
    """

    def __init__(self, traced: Trace, build: Callable[[StepMemory | None], CostTable], *, measure: bool) -> None:
        self._build = build
        self._memory, self.note = memory_of_step(traced, measure=measure)
        self._rebuild()

    def _rebuild(self) -> None:
        self.table = self._build(self._memory)
        self.ledger = BatchedLedger(self.table)

    def refine(self, counts: Sequence[int]) -> bool:
        """Measure until nothing at the worst moment of these counts is a bound; whether anything was measured."""
        changed = False
        while places := self._unmeasured(counts):
            assert self._memory is not None
            self._memory = self._memory.measured(places)
            self._rebuild()
            changed = True
        return changed

    def refine_within(self, budget_bytes: int) -> None:
        """Measure every moment that a budget of the peak can be exceeded at."""
        if self._memory is None:
            return
        known = self._memory.workspaces.forward if self._memory.workspaces is not None else {}
        binding = {moment.operation for moment in self.ledger.peak_model.binding(budget_bytes)}
        places = [place for place in sorted(binding) if place >= 0 and place not in known]
        self._memory = self._memory.measured(place for place in places if self._memory.is_bounded(place))
        self._rebuild()

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
            if moment.operation < 0 or moment.operation in known or not self._memory.is_bounded(moment.operation):
                break
            places[moment.operation] = None
        return list(places)[:_AT_ONCE]
