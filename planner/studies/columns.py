"""One column of a study: everything but the budget, as a cost table; and the rows that budgets make of it. No torch.

Held by ``tests/planner/studies/test_runs.py``.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from trady.planner.errors import PlanError
from trady.planner.ledger import BatchedLedger, CostTable
from trady.planner.planning import NOTHING_FOUND, NOTHING_OF_WORTH, ChoiceOptions, cheapest_layer, refuse_budget
from trady.planner.reports import step_figures
from trady.planner.sampling import covered_shares
from trady.planner.solver import Program, Selection, SolverStatus, rounded_figure
from trady.planner.studies.grids import default_budgets
from trady.planner.studies.rows import Bought, Remedy, Setting, StudyRow

#: A budget that reaches a target is searched for until it is known so closely.
_CLOSE: Final = 1.01
_KILOBYTE: Final = 1000
#: Rows that are planned together: reading a table costs as much as two of them.
_MOST_ROWS: Final = 28


@dataclass(frozen=True)
class Column:
    """Rows that differ by their budgets alone.

    Args:
        setting: What the rows have in common; its budget says nothing.
        request: The same for the solver.
        table: What everything costs, its kernels measured.
        norm_sums: Gradient norms of each layer's channels, added up.
        norm_squares: Their squares, added up.
        remedies: Changes that make a smaller budget train something, the one that alters training least first.
    """

    setting: Setting
    request: ChoiceOptions
    table: CostTable
    norm_sums: tuple[float, ...]
    norm_squares: tuple[float, ...]
    remedies: tuple[Remedy, ...] = ()

    @cached_property
    def ledger(self) -> BatchedLedger:
        """The same for any channel counts."""
        return BatchedLedger(self.table)

    @cached_property
    def least_budget(self) -> int:
        """The smallest budget that trains anything."""
        return cheapest_layer(self.ledger, self.request)[1]

    @cached_property
    def full_budget(self) -> int:
        """What training every channel takes."""
        everything = [layer.in_channels for layer in self.table.layers]
        return self.ledger.of(everything).scopes.of(self.request.scope)

    @property
    def own_budgets(self) -> tuple[int, ...]:
        """Budgets from the one to the other."""
        return default_budgets(self.least_budget, self.full_budget)


@dataclass(frozen=True)
class Piece:
    """Work for one process: rows of a column.

    Args:
        column: The column.
        budgets: Bytes of each row.
        target: Instead of budgets: share of the RGN to reach with the smallest budget.
    """

    column: Column
    budgets: tuple[int, ...]
    target: float | None = None


def plan_rows(piece: Piece) -> list[StudyRow]:
    """The rows of a piece of work, in the order of its budgets."""
    planner = _Planner(piece.column)
    if piece.target is not None:
        return [planner.smallest_row(piece.target)]
    return [planner.row(budget) for budget in piece.budgets]


class _Planner:
    """Makes the rows of one column."""

    def __init__(self, column: Column) -> None:
        self._column = column
        limits = column.request.limits()
        self._horizon = limits.horizon
        self._program = Program(column.ledger, column.norm_sums, limits)
        self._rgn = [
            value / layer.sample_cost for value, layer in zip(column.norm_sums, column.table.layers, strict=True)
        ]

    def row(self, budget_bytes: int) -> StudyRow:
        column = self._column
        setting = column.setting.model_copy(update={"budget_bytes": budget_bytes})
        if not any(column.norm_sums):
            return StudyRow(setting=setting, bought=None, why=NOTHING_OF_WORTH)
        if budget_bytes < column.least_budget:
            return self._infeasible(setting)
        found = self._program.solve(budget_bytes)
        if found.status is SolverStatus.UNKNOWN:
            return StudyRow(setting=setting, bought=None, why=NOTHING_FOUND)
        if found.status is SolverStatus.INFEASIBLE:  # by the backward pass: the budget would hold a layer
            return StudyRow(setting=setting, bought=None, why=self._refusal(budget_bytes))
        return StudyRow(setting=setting, bought=self._bought(found))

    def smallest_row(self, target: float) -> StudyRow:
        """The row of the smallest budget that reaches a share of the RGN; else that of all channels.

        The solver maximises gradient norm, so what is reached of the RGN may fall from one budget to the next: budgets
        are looked at from the smallest upwards, and between the first that reaches and the one before it to 1 %.
        """
        low = 0
        for high in (*self._column.own_budgets, max(self._column.least_budget, self._column.full_budget)):
            best = self.row(high)
            if _reaches(best, target):
                break
            low = high
        else:
            return best
        while low and high > low * _CLOSE and high - low > 1:
            middle = round(math.sqrt(low * high))
            tried = self.row(middle)
            if _reaches(tried, target):
                high, best = middle, tried
            else:
                low = middle
        return best

    def _infeasible(self, setting: Setting) -> StudyRow:
        column, budget = self._column, setting.budget_bytes
        remedies = tuple(remedy for remedy in column.remedies if remedy.needed_bytes <= budget)
        why, needed = self._refusal(budget), column.least_budget
        return StudyRow(setting=setting, bought=None, why=why, needed_bytes=needed, remedies=remedies)

    def _refusal(self, budget_bytes: int) -> str:
        """What ``make_plan`` says to a budget that trains nothing."""
        column = self._column
        try:
            refuse_budget(column.ledger, column.request.model_copy(update={"budget_bytes": budget_bytes}))
        except PlanError as error:
            return str(error)

    def _bought(self, found: Selection) -> Bought:
        column, table = self._column, self._column.table
        ledger = column.ledger.of(found.counts)
        shares = covered_shares(column.norm_sums, table, found.counts, self._horizon)
        figures = step_figures(column.ledger, found.counts, shares)
        reached = covered_shares(self._rgn, table, found.counts, column.request.epochs)
        captured = covered_shares(column.norm_squares, table, found.counts, 1.0)
        return Bought(
            status="optimal" if found.status is SolverStatus.OPTIMAL else "feasible",
            value=rounded_figure(found.value),
            gap=rounded_figure(found.gap),
            rgn_reached=rounded_figure(math.fsum(reached)),
            captured_share=rounded_figure(math.fsum(captured)),
            next_kilobyte=rounded_figure(self._next_kilobyte(found.counts)),
            used_bytes=ledger.scopes.of(column.request.scope),
            lines=ledger.lines.model_dump(),
            scopes=ledger.scopes.model_dump(),
            layers=figures.layers,
            num_layers=len(table.layers),
            num_channels=figures.channels.drawn,
            all_channels=figures.channels.full,
            activation_sparsity=rounded_figure(figures.activation_elements.saved_share),
            weight_derivative_sparsity=rounded_figure(figures.weight_grad_elements.saved_share),
            weight_grad_macs=figures.weight_grad_macs.drawn,
            backward_macs=figures.backward_macs.drawn,
        )

    def _next_kilobyte(self, counts: Sequence[int]) -> float:
        """Value of the best next channel for each 1,000 bytes that it costs: the price of the budget.

        A channel that costs nothing more says nothing about the budget and is left out.
        """
        table = self._column.table
        sizes = np.array([layer.in_channels for layer in table.layers])
        now = np.array(counts, dtype=np.int64)
        open_to_more = np.nonzero(now < sizes)[0]
        if not len(open_to_more):
            return 0.0
        more = np.repeat(now[None, :], len(open_to_more) + 1, axis=0)
        more[np.arange(len(open_to_more)), open_to_more] += 1
        cost = self._column.ledger.scope_bytes(more, self._column.request.scope)
        cost = cost[:-1] - cost[-1]
        gained = np.array(self._column.norm_sums) * (1 - now / sizes) ** self._horizon
        after = np.array(self._column.norm_sums) * (1 - (now + 1) / sizes).clip(0) ** self._horizon
        value = (gained - after)[open_to_more] / math.fsum(self._column.norm_sums)
        dear = cost > 0
        return float((value[dear] / cost[dear]).max(initial=0.0) * _KILOBYTE)


def pieces_of(column: Column, budgets: Sequence[int], *, target: float | None = None) -> Iterator[Piece]:
    """A column's work in pieces small enough to be shared out, and large enough to be worth sending.

    Args:
        column: The column.
        budgets: Bytes of each row.
        target: Instead of budgets: share of the RGN to reach.
    """
    if target is not None:
        yield Piece(column, (), target)
        return
    number = -(-len(budgets) // _MOST_ROWS)
    for start in range(number):
        yield Piece(column, tuple(budgets[start::number]))


def _reaches(row: StudyRow, target: float) -> bool:
    return row.bought is not None and row.bought.rgn_reached >= target
