"""What the rows of a study say together: the front, the knee, the smallest budget, the largest batch. No torch."""

import math
from collections.abc import Iterable, Sequence
from enum import StrEnum
from functools import cached_property
from itertools import groupby

from trady.planner.studies.names import Names
from trady.planner.studies.rows import Bought, Curve, StudyRow


class Measure(StrEnum):
    """What a budget is judged by; all are shares from 0 to 1, the larger the better."""

    RGN_REACHED = "rgn_reached"
    """RGN of the channels drawn at least once by the last epoch."""
    VALUE = "value"
    """Gradient norm that the solver's horizon of draws reaches: what it maximises."""
    CAPTURED_SHARE = "captured_share"
    """Squared gradient norm that one draw holds."""

    def of(self, row: StudyRow) -> float:
        """The measure of a row; 0 where nothing trains."""
        return 0.0 if row.bought is None else float(getattr(row.bought, self.value))


class Answers:
    """What the rows of a study say together.

    Args:
        rows: All rows.
        target: Share of the RGN that was to be reached, if any.
    """

    def __init__(self, rows: Sequence[StudyRow], target: float | None = None) -> None:
        self.rows, self.target = tuple(rows), target

    @cached_property
    def names(self) -> Names:
        """What the settings are called."""
        return Names(row.setting for row in self.rows)

    @cached_property
    def curves(self) -> dict[Curve, list[StudyRow]]:
        """Rows that train something, by all but their budget; budgets ascending."""
        found: dict[Curve, list[StudyRow]] = {}
        for row in self.rows:
            if row.bought is not None:
                found.setdefault(row.setting.curve, []).append(row)
        return {curve: sorted(rows, key=lambda row: row.setting.budget_bytes) for curve, rows in found.items()}

    def front(self, measure: Measure = Measure.RGN_REACHED) -> list[StudyRow]:
        """The Pareto front: rows that no other row reaches as much as within a smaller budget; budgets ascending."""
        best, front = 0.0, []
        for row in sorted(_bought(self.rows), key=lambda row: (row.setting.budget_bytes, -measure.of(row))):
            if measure.of(row) > best:
                best = measure.of(row)
                front.append(row)
        return front

    def knee(self, curve: Curve, measure: Measure = Measure.RGN_REACHED) -> StudyRow | None:
        """Where a curve bends from steep to flat over the logarithm of the budget; ``None`` below three points.

        Source:
            Kneedle (Satopää et al. 2011): the point farthest above the chord from the first to the last.
        """
        rows = self.curves.get(curve, [])
        if len(rows) < 3:
            return None
        first, last = rows[0], rows[-1]
        width = math.log(last.setting.budget_bytes / first.setting.budget_bytes)
        rise = measure.of(last) - measure.of(first)
        if width <= 0 or rise <= 0:
            return None

        def above_chord(row: StudyRow) -> float:
            across = math.log(row.setting.budget_bytes / first.setting.budget_bytes) / width
            return (measure.of(row) - measure.of(first)) / rise - across

        best = max(rows, key=above_chord)
        return best if above_chord(best) > 0 else None

    def smallest(self, target: float, curve: Curve, measure: Measure = Measure.RGN_REACHED) -> StudyRow | None:
        """The row of the smallest budget that reaches a share; ``None`` where none of the curve does."""
        return next((row for row in self.curves.get(curve, ()) if measure.of(row) >= target), None)

    def largest_batches(self) -> list[StudyRow]:
        """For everything but the batch size, the row of the largest one that trains something."""
        rows = sorted(_bought(self.rows), key=lambda row: (_beside_batch(row), row.setting.batch_size))
        return [list(group)[-1] for _, group in groupby(rows, key=_beside_batch)]

    @cached_property
    def infeasible(self) -> list[StudyRow]:
        """Rows whose budget trains nothing."""
        return [row for row in self.rows if row.status == "infeasible"]

    @cached_property
    def budgets(self) -> list[int]:
        """Every budget asked for, ascending."""
        return sorted({row.setting.budget_bytes for row in self.rows})


def bought(row: StudyRow) -> Bought:
    """What a row that trains something buys."""
    assert row.bought is not None
    return row.bought


def _bought(rows: Iterable[StudyRow]) -> list[StudyRow]:
    return [row for row in rows if row.bought is not None]


def _beside_batch(row: StudyRow) -> tuple[str, ...]:
    setting = row.setting
    model, input_shape, norm, dtype, _, optimizer = setting.curve
    return model, input_shape, norm, dtype, optimizer, f"{setting.budget_bytes:020}"
