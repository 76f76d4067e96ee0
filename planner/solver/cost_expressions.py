"""What choices cost, as expressions of CP-SAT: bytes of a scope, of each moment, and work of the backward pass.

Held by ``tests/planner/solver/test_cp_sat.py``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from ortools.sat.python import cp_model

from trady.planner.ledger import INDEX_BYTES, MARGIN_PERCENT, SLICE_BLOCK, BatchedLedger, Moment
from trady.planner.options import Scope
from trady.planner.solver.problem import Limits
from trady.planner.solver.value_curves import Segment

#: CP-SAT counts in 64 bits; no machine has as much memory.
MOST_BYTES: Final = 2**52


@dataclass
class Variables:
    """Of each layer: the number of its channels, whether there are any, and how many of each segment."""

    counts: list[cp_model.LinearExpr] = field(default_factory=list)
    drawn: list[cp_model.IntVar] = field(default_factory=list)
    segments: list[list[cp_model.IntVar]] = field(default_factory=list)


class CostExpressions:
    """Variables of a choice and what it costs.

    How many channels a layer draws is an integer for each segment of its value; whether anything of an upstream trains
    is implied by its layers, through the largest set that is known already. What is stored, kept or begun becomes a
    variable when it is first asked for.

    Args:
        ledger: Costs of the eligible layers.
        limits: Bounds beside the budget.
        curves: Value of each layer's channels, in segments.
    """

    def __init__(self, ledger: BatchedLedger, limits: Limits, curves: Sequence[Sequence[Segment]]) -> None:
        table = ledger.table
        self._ledger, self._table, self._limits, self._curves = ledger, table, limits, curves
        self._model = cp_model.CpModel()
        self._variables = Variables()
        self._trained: dict[int, cp_model.IntVar] = {}
        self._stored: dict[int, cp_model.LinearExpr | int] = {}
        self._paid: dict[tuple[int, int], cp_model.IntVar] = {}
        self._begun: dict[int, cp_model.IntVar] = {}
        self._left: list[cp_model.IntVar | int] = [0]
        self._members: list[list[int]] = [[] for _ in table.groups]
        for index, layer in enumerate(table.layers):
            self._members[layer.group].append(index)
        self._add_layers()

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
            drawn, left = self._variables.drawn[index], self._model.new_int_var(0, MOST_BYTES, "")
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
