"""Which layers to train and how many channels of each: a knapsack solved by OR-Tools CP-SAT.

The only room that imports ortools.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import ortools
from ortools.sat.python import cp_model

from trady.planner.ledger import INDEX_BYTES, MARGIN_PERCENT, SLICE_BLOCK, BatchedLedger, Moment, active_bits
from trady.planner.options import Scope
from trady.planner.solver.depths import Depths
from trady.planner.solver.problem import PROOF_GAP, Limits, Selection, SolverStatus
from trady.planner.solver.top_up import spend_leftovers
from trady.planner.solver.value_curves import Segment, fill_segments, units_of, value_segments, weighted_segments

#: Total value in objective units: large enough that floored marginals lose nothing that matters.
_VALUE_UNITS: Final = 10**12
#: The best value is looked for within half of it.
_SEARCH_GAP: Final = PROOF_GAP / 2
#: CP-SAT counts in 64 bits; no machine has as much memory.
_MOST_BYTES: Final = 2**52


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


@dataclass
class _Variables:
    counts: list[cp_model.LinearExpr] = field(default_factory=list)
    drawn: list[cp_model.IntVar] = field(default_factory=list)
    segments: list[list[cp_model.IntVar]] = field(default_factory=list)


class Program:
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
        table = ledger.table
        self._ledger, self._table, self._values, self._limits = ledger, table, values, limits
        self._total = max(sum(values), 1e-300)
        self._curves = self._value_curves(norms)
        self._depths = Depths(ledger, counts_work=limits.tolerance > 0)
        self._bounds = self._depths.value_bounds(self._curves)
        self._model = cp_model.CpModel()
        self._variables = _Variables()
        self._trained: dict[int, cp_model.IntVar] = {}
        self._members: list[list[int]] = [[] for _ in table.groups]
        for index, layer in enumerate(table.layers):
            self._members[layer.group].append(index)
        self._add_layers()
        self._value = sum(
            segment.units * variable
            for curve, variables in zip(self._curves, self._variables.segments, strict=True)
            for segment, variable in zip(curve, variables, strict=True)
        )
        self._stored: dict[int, cp_model.LinearExpr | int] = {}
        self._paid: dict[tuple[int, int], cp_model.IntVar] = {}
        self._begun: dict[int, cp_model.IntVar] = {}
        self._left: list[cp_model.IntVar | int] = [0]
        self._add_backward_limit()
        if limits.scope is not Scope.PEAK:
            limit = self._model.add(self._spent_expression() <= 0)
            # Where the budget is nothing: what is spent in any case has been moved over to this side.
            self._limit, self._limit_at_zero = limit.index, int(limit.proto.linear.domain[1])
            self._add_objectives()

    def _value_curves(self, norms: Sequence[Sequence[float]] | None) -> list[list[Segment]]:
        units, horizon = [_VALUE_UNITS * value / self._total for value in self._values], self._limits.horizon
        if norms is not None:
            return [weighted_segments(found, whole, horizon) for found, whole in zip(norms, units, strict=True)]
        sizes = [layer.in_channels for layer in self._table.layers]
        return [value_segments(size, whole, horizon) for size, whole in zip(sizes, units, strict=True)]

    def solve(self, budget_bytes: int) -> Selection:
        """The least backward work within the tolerance of the best value.

        What is left of the budget goes to the same layers.
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
        budget = min(budget_bytes, _MOST_BYTES)
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
                return self._richest(leaner, self._depths.closed(active_bits(leaner)))
        return counts

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

    def _add_layers(self) -> None:
        for layer, curve in zip(self._table.layers, self._curves, strict=True):
            variables = [self._model.new_int_var(0, segment.channels, "") for segment in curve]
            drawn = self._model.new_bool_var(layer.name)
            count = sum(variables)
            least = min(self._limits.min_channels, layer.in_channels)
            self._model.add(count >= least * drawn)
            self._model.add(count <= layer.in_channels * drawn)
            self._variables.segments.append(variables)
            self._variables.counts.append(count)
            self._variables.drawn.append(drawn)

    def _spent_expression(self) -> cp_model.LinearExpr | int:
        """Bytes of scope ``update`` or ``training``."""
        table, limits = self._table, self._limits
        spent = sum(
            count * self._weight_bytes(index) + self._fixed_bytes(index) * drawn
            for index, (count, drawn) in enumerate(zip(self._variables.counts, self._variables.drawn, strict=True))
        )
        spent = spent + sum(self._stored_bytes(group) for group in range(len(table.groups)))
        if limits.scope is Scope.TRAINING:
            spent = spent + table.always_trained_bytes + self._kept_expression(("residuals", "always_trained"))
        return spent

    def _add_moments(self, budget: int) -> None:
        """At each moment of the step what lives stays within the budget."""
        table = self._table
        lasting = self._ledger.lasting_always_bytes + sum(
            count * (table.layers[index].active_weight_bytes + table.layers[index].optimizer_bytes)
            + self._fixed_bytes(index) * drawn
            for index, (count, drawn) in enumerate(zip(self._variables.counts, self._variables.drawn, strict=True))
        )
        lasting = lasting + INDEX_BYTES * sum(self._stored_channels(group) for group in range(len(table.groups)))
        self._model.add(lasting <= budget)
        for moment in self._ledger.peak_model.binding(budget):
            share = 100 + MARGIN_PERCENT
            constraint = self._model.add(100 * lasting + share * self._living_at(moment) <= 100 * budget - share)
            if moment.slice is not None:
                constraint.only_enforce_if(self._variables.drawn[moment.slice.layer])
            elif moment.when is not None:
                constraint.only_enforce_if(self._trained_by(moment.when))

    def _living_at(self, moment: Moment) -> cp_model.LinearExpr | int:
        """Bytes at a moment beside what always lives."""
        table, counts = self._table, self._variables.counts
        total: cp_model.LinearExpr | int = moment.fixed + moment.workspace
        for upstream, num_bytes in moment.kept.items():
            total = total + num_bytes * self._trained_by(upstream)
        for group, position in sorted(moment.stored):
            total = total + table.groups[group].inputs[position].channel_bytes * self._paid_channels(group, position)
        for index in sorted(moment.gradients):
            total = total + table.layers[index].gradient_bytes * counts[index]
        if moment.slice is not None:
            work = moment.slice
            total = (
                total + work.highest_base + work.channel * counts[work.layer] + work.block * self._blocks(work.layer)
            )
        return total + self._left_of(moment.after)

    def _left_of(self, number: int) -> cp_model.LinearExpr | int:
        """Copies left of the last slice drawn of the first so many layers."""
        for index in range(len(self._left) - 1, number):
            channel = self._table.optimizer_held_copies * self._table.layers[index].gradient_bytes
            drawn, left = self._variables.drawn[index], self._model.new_int_var(0, _MOST_BYTES, "")
            self._model.add(left >= channel * self._variables.counts[index]).only_enforce_if(drawn)
            self._model.add(left >= self._left[index]).only_enforce_if(~drawn)
            self._left.append(left)
        return self._left[number]

    def _blocks(self, index: int) -> cp_model.IntVar:
        """Blocks of channels that a layer's draw begins."""
        if index not in self._begun:
            most = -(-self._table.layers[index].in_channels // SLICE_BLOCK)
            self._begun[index] = self._model.new_int_var(0, most, "")
            self._model.add(SLICE_BLOCK * self._begun[index] >= self._variables.counts[index])
        return self._begun[index]

    def _weight_bytes(self, index: int) -> int:
        layer = self._table.layers[index]
        update = layer.gradient_bytes + layer.optimizer_bytes
        return update + (layer.active_weight_bytes if self._limits.scope is not Scope.UPDATE else 0)

    def _fixed_bytes(self, index: int) -> int:
        layer = self._table.layers[index]
        return layer.optimizer_tensor_bytes + (layer.bias_bytes if self._limits.scope is not Scope.UPDATE else 0)

    def _stored_bytes(self, group: int) -> cp_model.LinearExpr | int:
        """Stored inputs and indices of an input group: its members' draws are nested."""
        spent = INDEX_BYTES * self._stored_channels(group)
        for position, tensor in enumerate(self._table.groups[group].inputs):
            spent = spent + tensor.channel_bytes * self._paid_channels(group, position)
        return spent

    def _stored_channels(self, group: int) -> cp_model.LinearExpr | int:
        """The most that any member draws."""
        if group not in self._stored:
            members = [self._variables.counts[index] for index in self._members[group]]
            self._stored[group] = members[0]
            if len(members) > 1:
                stored = self._model.new_int_var(0, self._most_of(group), "")
                for count in members:
                    self._model.add(stored >= count)
                self._stored[group] = stored
        return self._stored[group]

    def _paid_channels(self, group: int, position: int) -> cp_model.LinearExpr | int:
        """Channels of one input that are stored for the group: none where the input is kept anyway."""
        kept_by = self._table.groups[group].inputs[position].kept_by
        if kept_by is None:
            return self._stored_channels(group)
        if self._table.upstreams[kept_by].always:
            return 0
        if (group, position) not in self._paid:
            paid = self._model.new_int_var(0, self._most_of(group), "")
            stored = self._stored_channels(group)
            self._model.add(paid >= stored).only_enforce_if(~self._trained_by(kept_by))
            self._paid[group, position] = paid
        return self._paid[group, position]

    def _most_of(self, group: int) -> int:
        return max(self._table.layers[index].in_channels for index in self._members[group])

    def _kept_expression(self, lines: tuple[str, ...]) -> cp_model.LinearExpr | int:
        total: cp_model.LinearExpr | int = 0
        for (line, upstream), num_bytes in self._ledger.kept_terms.items():
            if line in lines:
                total = total + num_bytes * self._trained_by(upstream)
        return total

    def _add_backward_limit(self) -> None:
        if self._limits.max_backward_macs is None:
            return
        towards = sum(macs * self._trained_by(upstream) for upstream, macs in self._ledger.gradient_terms.items())
        weights = sum(
            layer.weight_grad_macs * count
            for layer, count in zip(self._table.layers, self._variables.counts, strict=True)
        )
        self._model.add(towards + weights <= self._limits.max_backward_macs)

    def _trained_by(self, upstream: int) -> cp_model.IntVar:
        """Whether anything of an upstream trains; each is implied by the largest one inside it and the rest."""
        if upstream in self._trained:
            return self._trained[upstream]
        bits = self._table.upstreams[upstream].bits
        if self._table.upstreams[upstream].always:
            variable = self._model.new_constant(1)
        else:
            variable = self._model.new_bool_var("")
            sources = self._sources(bits)
            self._model.add_bool_or([*sources, ~variable])
            for source in sources:
                self._model.add_implication(source, variable)
        self._trained[upstream] = variable
        return variable

    def _sources(self, bits: int) -> list[cp_model.IntVar]:
        """Variables whose disjunction is "any of these layers is drawn", through the largest set already known."""
        inside = {
            known: found.bits
            for known in self._trained
            if not (found := self._table.upstreams[known]).always and not found.bits & ~bits
        }
        sources = []
        if inside:
            largest = max(inside, key=lambda known: inside[known].bit_count())
            sources.append(self._trained[largest])
            bits &= ~inside[largest]
        return sources + [drawn for index, drawn in enumerate(self._variables.drawn) if bits >> index & 1]

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
