"""What a training step can cost, as data: a plan carries its own. No torch.

A cost table says what each channel costs and what each operation keeps, and for which layers. From it and the
number of channels drawn per layer follow all lines of the ledger, to the byte.

Held by ``tests/planner/costs/test_table_builder.py``.
"""

from functools import cached_property
from typing import Annotated

from pydantic import Field, model_validator

from trady.planner.ledger.cost_records import GradientBytes, InputGroup, LayerCosts, OperationCosts, Upstream
from trady.planner.records import Count, Record


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
        optimizer_held_copies: Copies of the tensor before that still live while a tensor is stepped.
        first_always_trained_bytes: The always-trained parameter that is stepped after the slices.
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
    optimizer_held_copies: Count = 0
    first_always_trained_bytes: Count = 0

    @model_validator(mode="after")
    def _consistent(self) -> "CostTable":
        """Every index must point into the table it belongs to.

        Raises:
            ValueError: One points outside.
        """
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

    def index_of(self, layer_name: str) -> int:
        """Position of a layer in the table."""
        return self._positions[layer_name]

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {layer.name: index for index, layer in enumerate(self.layers)}
