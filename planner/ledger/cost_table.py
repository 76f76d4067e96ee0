"""The ledger of a training step, computed from a cost table; no torch, so that a plan carries its own.

A cost table says what each channel costs and what each operation keeps, and for which layers. From it and the
number of channels drawn per layer follow all lines of the ledger, to the byte.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import Field, model_validator

from trady.planner.errors import PlanError
from trady.planner.ledger.cost_records import GradientBytes, InputGroup, LayerCosts, OperationCosts, Upstream
from trady.planner.options import Scope
from trady.planner.records import Count, Record

if TYPE_CHECKING:
    from trady.planner.ledger.batched_ledger import Bytes, LineModel
    from trady.planner.ledger.peak import PeakModel


class Lines(Record):
    """The ledger's lines, in bytes.

    ``workspace`` is what makes the lines add up to the peak. It is negative where some of them never live together
    (gradients come when activations are gone), and ``None`` where the step's lifetimes are not known.
    """

    gradients: Count
    saved_activations: Count
    optimizer_state: Count
    draw_index: Count
    active_weights: Count
    always_trained: Count
    residuals: Count
    weights: Count
    inputs: Count
    workspace: int | None = None


UPDATE_LINES: Final = ("gradients", "saved_activations", "optimizer_state", "draw_index")
TRAINING_LINES: Final = (*UPDATE_LINES, "active_weights", "always_trained", "residuals")
PEAK_LINES: Final = (*TRAINING_LINES, "weights", "inputs", "workspace")
SCOPE_LINES: Final = {Scope.UPDATE: UPDATE_LINES, Scope.TRAINING: TRAINING_LINES, Scope.PEAK: PEAK_LINES}


class Scopes(Record):
    """Sums of lines that a budget can hold, in bytes; the peak is ``None`` where the workspace is."""

    update: Count
    training: Count
    peak: Count | None = None

    def of(self, scope: Scope) -> int:
        """Bytes of a scope.

        Raises:
            PlanError: The peak is not known.
        """
        found: int | None = getattr(self, scope.value)
        if found is None:
            raise PlanError("The peak of this step is not known. Use scope 'training'.")
        return found


class Ledger(Record):
    """Lines and the scopes they add up to."""

    lines: Lines
    scopes: Scopes

    @classmethod
    def of(cls, lines: Lines) -> "Ledger":
        """Add the lines up."""
        update = sum(getattr(lines, name) for name in UPDATE_LINES)
        training = sum(getattr(lines, name) for name in TRAINING_LINES)
        peak = None if lines.workspace is None else sum(getattr(lines, name) for name in PEAK_LINES)
        return cls(lines=lines, scopes=Scopes(update=update, training=training, peak=peak))


class CostTable(Record):
    """Everything a step can cost, as a function of the channels drawn per layer.

    Args:
        batch_size: Samples in the step.
        layers: Eligible layers in order of first use.
        groups: Input groups.
        upstreams: Sets of layers that kept memory refers to.
        operations: The forward pass.
        storages: Bytes of every storage the forward pass allocates.
        always_trained_bytes: Gradients and optimizer state of what always trains.
        weight_bytes: Parameters and buffers.
        input_bytes: The batch and its targets.
        dense_saved_bytes: What autograd keeps when the whole model trains.
        dense_gradient_bytes: Gradients of the whole model.
        dense_optimizer_bytes: Optimizer state of the whole model.
        gradient_storages: Memory of gradients of activations; ``None`` where lifetimes are not known.
        optimizer_copies: Copies of the largest trained tensor that the optimizer's step works in.
        largest_always_trained_bytes: Largest of the always-trained parameters.
        always_trained_work_bytes: What the optimizer's step works in for the always-trained parameter that takes most;
            ``None`` for ``optimizer_copies`` of the largest.
        optimizer_norm_bytes: Bytes of the norm of a row or column that the step works in beside the copies; 0 for none.
    """

    batch_size: Annotated[int, Field(ge=1)]
    layers: tuple[LayerCosts, ...]
    groups: tuple[InputGroup, ...]
    upstreams: tuple[Upstream, ...]
    operations: tuple[OperationCosts, ...]
    storages: tuple[Count, ...]
    always_trained_bytes: Count
    weight_bytes: Count
    input_bytes: Count
    dense_saved_bytes: Count
    dense_gradient_bytes: Count
    dense_optimizer_bytes: Count
    gradient_storages: tuple[GradientBytes, ...] | None = None
    optimizer_copies: Count = 0
    largest_always_trained_bytes: Count = 0
    always_trained_work_bytes: Count | None = None
    optimizer_norm_bytes: Count = 0

    @model_validator(mode="after")
    def _consistent(self) -> "CostTable":
        """Every index must point into the table it belongs to."""
        operations, flows = self.operations, self.gradient_storages or ()
        kept = [entry for operation in operations for entry in operation.kept]
        used = {
            "input group": (
                [layer.group for layer in self.layers] + [group for found in operations for group, _ in found.stores],
                len(self.groups),
            ),
            "upstream": (
                [tensor.kept_by for group in self.groups for tensor in group.inputs if tensor.kept_by is not None]
                + [entry.upstream for entry in kept]
                + [upstream for found in operations for upstream in found.gradients]
                + [found.recorded_when for found in operations if found.recorded_when is not None]
                + [entry.upstream for found in operations for entry in found.backwards]
                + [upstream for flow in flows for _, upstream in flow.uses],
                len(self.upstreams),
            ),
            "storage": (
                [entry.storage for entry in kept if entry.storage is not None]
                + [storage for found in operations for storage in (*found.allocates, *found.frees)],
                len(self.storages),
            ),
            "operation": (
                [flow.born for flow in flows] + [until for flow in flows for until, _ in flow.uses],
                len(operations),
            ),
            "layer": (
                [last for found in self.upstreams for _, last in found.layers]
                + [entry.layer for found in operations for entry in found.slices],
                len(self.layers),
            ),
        }
        for what, (indices, number) in used.items():
            if max(indices, default=-1) >= number:
                raise ValueError(f"{what} {max(indices)} is outside the table of {number}")
        return self

    def ledger(
        self,
        counts: Sequence[int],
        stored: Mapping[int, int] | None = None,
        indexed: Mapping[int, int] | None = None,
    ) -> Ledger:
        """The ledger when ``counts[i]`` channels of layer ``i`` are drawn.

        Args:
            counts: Channels per layer.
            stored: Channels stored per input group; by default the draws are nested, so the most any member draws.
            indexed: Indices kept per input group; by default one for each stored channel.
        """
        row = self._row(counts)
        drawn = None if stored is None else self._group_row(stored)
        kept = None if indexed is None else self._group_row(indexed)
        lines = self.line_model.all_lines(row, drawn, kept)
        return Ledger.of(Lines(**{name: int(amounts[0]) for name, amounts in lines.items()}))

    def _row(self, counts: Sequence[int]) -> "Bytes":
        return self.line_model.one_run(counts)

    def _group_row(self, amounts: Mapping[int, int]) -> "Bytes":
        return self._row([amounts.get(group, 0) for group in range(len(self.groups))])

    def lasting_bytes(self, counts: Sequence[int]) -> int:
        """What lives all through the step: weights, the batch, slices, indices, optimizer state, trained biases."""
        return int(self.line_model.lasting_bytes(self._row(counts))[0])

    @property
    def lasting_always_bytes(self) -> int:
        """What lives all through a step that draws nothing."""
        state = self.always_trained_bytes - sum(operation.always_gradients for operation in self.operations)
        return self.weight_bytes + self.input_bytes + state

    @cached_property
    def line_model(self) -> "LineModel":
        """The lines of many counts at once."""
        from trady.planner.ledger.batched_ledger import LineModel  # numpy, which most readers of a table do not need

        return LineModel(self)

    @cached_property
    def peak_model(self) -> "PeakModel":
        """Every moment of the step.

        Raises:
            ValueError: Lifetimes are not known.
        """
        from trady.planner.ledger.peak import PeakModel  # numpy, which most readers of a plan do not need

        return PeakModel(self)

    def active_bits(self, counts: Sequence[int]) -> int:
        """Bit set of the layers with channels drawn."""
        return sum(1 << index for index, count in enumerate(counts) if count)

    def is_trained(self, upstream: int, active: int) -> bool:
        """Whether anything of an upstream trains when the ``active`` layers do."""
        found = self.upstreams[upstream]
        return found.always or bool(found.bits & active)

    def channel_bytes(self, group: int, active: int) -> int:
        """Bytes one drawn channel of an input group stores; nothing where the input is kept anyway."""
        return sum(
            tensor.channel_bytes
            for tensor in self.groups[group].inputs
            if tensor.kept_by is None or not self.is_trained(tensor.kept_by, active)
        )

    def group_counts(self, counts: Sequence[int]) -> dict[int, int]:
        """Channels stored per input group: the most any member draws."""
        most: dict[int, int] = {}
        for layer, count in zip(self.layers, counts, strict=True):
            if count:
                most[layer.group] = max(most.get(layer.group, 0), count)
        return most

    @cached_property
    def kept_terms(self) -> Mapping[tuple[str, int], int]:
        """Kept bytes by line and upstream."""
        terms: dict[tuple[str, int], int] = {}
        for operation in self.operations:
            for kept in operation.kept:
                key = (kept.line, kept.upstream)
                terms[key] = terms.get(key, 0) + kept.num_bytes
        return terms

    @cached_property
    def gradient_terms(self) -> Mapping[int, int]:
        """Multiply-adds of gradients towards earlier layers, by upstream."""
        terms: dict[int, int] = {}
        for operation in self.operations:
            for upstream in operation.gradients:
                terms[upstream] = terms.get(upstream, 0) + operation.macs
        return terms

    @property
    def forward_macs(self) -> int:
        """Multiply-adds of the forward pass."""
        return sum(operation.macs for operation in self.operations)

    def backward_macs(self, counts: Sequence[int]) -> int:
        """Multiply-adds of the backward pass: drawn weight gradients and the gradients that lead to them."""
        return int(self.line_model.backward_macs(self._row(counts))[0])

    def weight_grad_macs(self, counts: Sequence[int]) -> int:
        """Multiply-adds of the drawn weight gradients."""
        return int(self.line_model.weight_grad_macs(self._row(counts))[0])

    def scope_bytes(self, counts: Sequence[int], scope: Scope) -> int:
        """Bytes the budget of that scope is held against."""
        return self.ledger(counts).scopes.of(scope)

    def index_of(self, layer_name: str) -> int:
        """Position of a layer in the table."""
        return self._positions[layer_name]

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {layer.name: index for index, layer in enumerate(self.layers)}
