"""Which layers to train and how many channels of each: a knapsack solved by OR-Tools CP-SAT.

This shelf alone imports ortools.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import ortools
from ortools.sat.python import cp_model

from trady.planner.ledger import BatchedLedger, active_bits
from trady.planner.options import Scope
from trady.planner.solver.cost_expressions import MOST_BYTES, CostExpressions
from trady.planner.solver.depths import Depths
from trady.planner.solver.problem import PROOF_GAP, Limits, Selection, SolverStatus
from trady.planner.solver.top_up import spend_leftovers
from trady.planner.solver.value_curves import Segment, fill_segments, units_of, value_segments, weighted_segments

#: Total value in objective units: large enough that floored marginals lose nothing that matters.
_VALUE_UNITS: Final = 10**12
#: The best value is looked for within half of it.
_SEARCH_GAP: Final = PROOF_GAP / 2


@dataclass(frozen=True)
class _Effort:
    """How CP-SAT goes about a search.

    Args:
        linearization: Its linearization level.
        share: Part of the limits' deterministic time.
        presolve: Whether to simplify the program at length first, which most searches take less time than.
    """

    linearization: int
    share: float
    presolve: bool


#: Ways to look for the best value, one after the other, and the way to look for the least depth. Where layers are
#: alike a light relaxation proves what a full one does not, and the other way round.
_ATTEMPTS: Final = (_Effort(2, 0.1, presolve=False), _Effort(1, 0.6, presolve=True))
_DEPTH_EFFORT: Final = _Effort(1, 1.0, presolve=False)


def solver_version() -> str:
    """Version of OR-Tools: part of what makes a plan's bytes."""
    return str(ortools.__version__)


def solve(
    ledger: BatchedLedger, values: Sequence[float], limits: Limits, norms: Sequence[Sequence[float]] | None = None
) -> Selection:
    """Choose channel counts of the greatest value within the limits.

    Args:
        ledger: Costs of the eligible layers.
        values: Gradient norm of each layer, summed over its channels.
        limits: Budget and other bounds.
        norms: Gradient norm of each channel, layer by layer, where the larger ones are drawn more often.

    Returns:
        Among the selections within the tolerance of the best value, the one of the least backward work, then of the
        fewest residual bytes, then of the greatest value.
    """
    return Program(ledger, values, limits, norms).solve(limits.budget_bytes)


class Program(CostExpressions):
    """The integer program of a table and its values, for one budget after the other.

    What budgets have in common is built once; a budget gives the same counts whichever were solved before it.

    Args:
        ledger: Costs of the eligible layers.
        values: Gradient norm of each layer, summed over its channels.
        limits: Bounds beside the budget.
        norms: Gradient norm of each channel, layer by layer, where the larger ones are drawn more often.
    """

    def __init__(
        self,
        ledger: BatchedLedger,
        values: Sequence[float],
        limits: Limits,
        norms: Sequence[Sequence[float]] | None = None,
    ) -> None:
        self._values, self._total = values, max(sum(values), 1e-300)
        sizes = [layer.in_channels for layer in ledger.table.layers]
        super().__init__(ledger, limits, self._value_curves(sizes, limits.horizon, norms))
        self._depths = Depths(ledger, counts_work=limits.tolerance > 0)
        self._bounds = self._depths.value_bounds(self._curves)
        self._value = sum(
            segment.units * variable
            for curve, variables in zip(self._curves, self._variables.segments, strict=True)
            for segment, variable in zip(curve, variables, strict=True)
        )
        self._add_backward_limit()
        if limits.scope is not Scope.PEAK:
            limit = self._model.add(self._spent_expression() <= 0)
            # Where the budget is nothing: what is spent in any case has been moved over to this side.
            self._limit, self._limit_at_zero = limit.index, int(limit.proto.linear.domain[1])
            self._add_objectives()

    def _value_curves(
        self, sizes: Sequence[int], horizon: float, norms: Sequence[Sequence[float]] | None
    ) -> list[list[Segment]]:
        units = [_VALUE_UNITS * value / self._total for value in self._values]
        if norms is not None:
            return [weighted_segments(of_layer, whole, horizon) for of_layer, whole in zip(norms, units, strict=True)]
        return [value_segments(size, whole, horizon) for size, whole in zip(sizes, units, strict=True)]

    def solve(self, budget_bytes: int) -> Selection:
        """The least backward work within the tolerance of the best value.

        What is left of the budget goes to the same layers.

        Returns:
            The counts found, and how the search ended.
        """
        program = self._with_budget(budget_bytes)
        best = program._maximise()
        if not any(best.counts):
            nothing = SolverStatus.UNKNOWN if best.status is SolverStatus.UNKNOWN else SolverStatus.INFEASIBLE
            return replace(best, status=nothing)
        limits = replace(self._limits, budget_bytes=budget_bytes)
        best = self._selection(spend_leftovers(self._ledger, best.counts, self._values, limits), best.bound)
        counts = program._shallowest(best, budget_bytes)
        if counts == best.counts:
            return best
        return self._selection(spend_leftovers(self._ledger, counts, self._values, limits), best.bound, best.counts)

    def _with_budget(self, budget_bytes: int) -> "Program":
        """This program with the budget in its place, or a copy where other moments of the step become critical."""
        budget = min(budget_bytes, MOST_BYTES)
        if self._limits.scope is not Scope.PEAK:
            for model in (self._model, self._leanest):
                model.proto.constraints[self._limit].linear.domain[1] = self._limit_at_zero + budget
            return self
        program = copy.copy(self)
        program._model = self._model.clone()
        program._trained, program._stored = dict(self._trained), dict(self._stored)
        program._paid, program._begun, program._left = dict(self._paid), dict(self._begun), list(self._left)
        program._add_moments(budget)
        program._add_objectives()
        return program

    def _add_objectives(self) -> None:
        """The most value; and, in a program of its own, the least depth for a value to be said."""
        self._model.maximize(self._value)
        lean = copy.copy(self)
        lean._model, lean._trained = self._model.clone(), dict(self._trained)
        self._leanest = lean._model
        self._floor = self._leanest.add(self._value >= 0).index
        self._leanest.minimize(
            sum(price * lean._trained_by(upstream) for upstream, price in self._depths.terms.items())
        )

    def _maximise(self) -> Selection:
        """The best value; no counts where the limits allow nothing, or the search found nothing in time."""
        self._model.clear_hints()
        best: Selection | None = None
        bound = math.inf
        for effort in _ATTEMPTS:
            if best is not None:
                self._hint(self._model, best.counts)
            solver = self._solver(_SEARCH_GAP, effort)
            status = solver.solve(self._model)
            if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
                if status == cp_model.INFEASIBLE:
                    return self._nothing(SolverStatus.INFEASIBLE)
                continue
            bound = min(bound, solver.best_objective_bound / _VALUE_UNITS)
            found = self._selection(self._counts(solver), bound)
            best = found if best is None or found.value >= best.value else self._selection(best.counts, bound)
            if best.status is SolverStatus.OPTIMAL:
                break
        return self._nothing(SolverStatus.UNKNOWN) if best is None else best

    def _nothing(self, status: SolverStatus) -> Selection:
        nothing = (0,) * len(self._table.layers)
        return Selection(nothing, status, 0.0, 0.0, nothing, 0.0)

    def _shallowest(self, best: Selection, budget_bytes: int) -> tuple[int, ...]:
        """Counts of the least depth whose value the tolerance allows; those of the best where it saves nothing.

        No choice is shallower than the deepest of its layers by itself, so the first level whose layers are worth
        enough bounds the depth. In most networks one layer after the other comes closer to the input, and a choice that
        goes no deeper is found with it; where branches add up, CP-SAT looks for the least sum.
        """
        floor = int(min(best.value * (1 - self._limits.tolerance), best.bound * (1 - PROOF_GAP)) * _VALUE_UNITS)
        levels, counts = self._depths.levels, best.counts
        low, high = 0, self._level(counts)
        if self._limits.scope is not Scope.PEAK:
            low = min(self._bounds.first_level(floor, budget_bytes), high)
            guesses = [high - 1, low]  # the bound is tight, or the best cannot be matched: else halve what is between
            while low < high:
                level = max(low, min(guesses.pop(), high - 1)) if guesses else (low + high) // 2
                found = self._richest(counts, self._depths.beyond(levels[level]))
                if self._units_of(found) >= floor:
                    counts, high = found, self._level(found)
                else:
                    low = level + 1
        if self._depth(counts) > levels[low]:
            leaner = self._leanest_counts(counts, floor)
            if self._depth(leaner) < self._depth(counts):
                counts = self._richest(leaner, self._depths.closed(active_bits(leaner)))
        # Where branches add up, fewer levels need not be less depth.
        return min(best.counts, counts, key=lambda counts: (self._depth(counts), -self._units_of(counts)))

    def _level(self, counts: Sequence[int]) -> int:
        deepest = max(self._depths.of_layers[index] for index, count in enumerate(counts) if count)
        return self._depths.levels.index(deepest)

    def _depth(self, counts: Sequence[int]) -> int:
        return self._depths.of(active_bits(counts))

    def _leanest_counts(self, counts: tuple[int, ...], floor: int) -> tuple[int, ...]:
        """Counts of the least depth that are worth so many units; the given ones where none is found in time."""
        self._leanest.proto.constraints[self._floor].linear.domain[0] = floor
        self._hint(self._leanest, counts)
        solver = self._solver(0.0, _DEPTH_EFFORT)
        is_solved = solver.solve(self._leanest) in (cp_model.OPTIMAL, cp_model.FEASIBLE)
        return self._counts(solver) if is_solved else counts

    def _richest(self, counts: tuple[int, ...], closed: int) -> tuple[int, ...]:
        """Counts of the greatest value with none of the closed layers, a bit set; nothing where none is found."""
        ends = [self._model.proto.variables[drawn.index].domain for drawn in self._variables.drawn]
        for index, end in enumerate(ends):
            end[1] = 0 if closed >> index & 1 else 1
        self._hint(self._model, [0 if closed >> index & 1 else count for index, count in enumerate(counts)])
        solver = self._solver(_SEARCH_GAP, _ATTEMPTS[0])
        is_solved = solver.solve(self._model) in (cp_model.OPTIMAL, cp_model.FEASIBLE)
        for end in ends:
            end[1] = 1
        return self._counts(solver) if is_solved else (0,) * len(counts)

    def _solver(self, gap: float, effort: _Effort) -> cp_model.CpSolver:
        """One worker, a fixed seed and deterministic time: the same problem gives the same counts."""
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 1
        solver.parameters.random_seed = self._limits.seed
        solver.parameters.max_deterministic_time = self._limits.deterministic_time * effort.share
        solver.parameters.relative_gap_limit = gap
        solver.parameters.linearization_level = effort.linearization
        if not effort.presolve:
            solver.parameters.cp_model_probing_level = 0
            solver.parameters.symmetry_level = 0
            solver.parameters.max_presolve_iterations = 1
        return solver

    def _counts(self, solver: cp_model.CpSolver) -> tuple[int, ...]:
        found = list(solver.response_proto.solution)
        return tuple(sum(found[variable.index] for variable in variables) for variables in self._variables.segments)

    def _selection(
        self, counts: tuple[int, ...], bound: float, best_counts: tuple[int, ...] | None = None
    ) -> Selection:
        best = counts if best_counts is None else best_counts
        value = self._units_of(counts) / _VALUE_UNITS
        best_value = max(value, self._units_of(best) / _VALUE_UNITS)
        bound = max(bound, best_value)
        proven = bound - best_value <= PROOF_GAP * bound * (1 + 1e-9)
        status = SolverStatus.OPTIMAL if proven else SolverStatus.FEASIBLE
        return Selection(counts, status, value, bound, best, best_value)

    def _units_of(self, counts: Sequence[int]) -> int:
        return sum(units_of(curve, count) for curve, count in zip(self._curves, counts, strict=True))

    def _hint(self, model: cp_model.CpModel, counts: Sequence[int]) -> None:
        model.clear_hints()
        hint = model.proto.solution_hint
        for curve, count, variables in zip(self._curves, counts, self._variables.segments, strict=True):
            hint.vars.extend([variable.index for variable in variables])
            hint.values.extend(fill_segments(curve, count))
