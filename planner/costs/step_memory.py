"""When a traced step releases its memory, and what its kernels work in: what a cost table needs for the peak.

Held by ``tests/integration/test_peak.py``.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch

from trady.planner.costs.workspaces import WorkspaceMeter, Workspaces, is_measured
from trady.planner.lean import lean_form
from trady.planner.tracing import CONVOLUTIONS, BackwardRun, GradientStorage, Lifetimes, Operation, Trace, factors_of


@dataclass(frozen=True)
class StepMemory:
    """What a cost table needs for the peak.

    Args:
        lifetimes: At the planned batch size.
        workspaces: What was measured of kernels so far; ``None`` where they cannot be run on this machine.
        meter: Measures more.
    """

    lifetimes: Lifetimes
    workspaces: Workspaces | None
    meter: WorkspaceMeter | None = field(repr=False, compare=False, default=None)

    @classmethod
    def of(cls, traced: Trace, *, measure: bool = True) -> "StepMemory":
        """Record lifetimes of a trace; kernels are run later, by need.

        Args:
            traced: The trace at the planned batch size.
            measure: Whether kernels may be run; not for models without memory for their weights.

        Returns:
            What is known of the step's memory.

        Error:
            TracingError: The backward pass cannot be followed.
        """
        recorded = traced.lifetimes(traced.batch_size)
        lifetimes = recorded[0] if len(recorded) == 1 else _between(recorded[0], recorded[1], traced.batch_size)
        if not measure or not _is_here(traced.options.device):
            return cls(lifetimes, None)
        meter = WorkspaceMeter(recorded, traced.batch_size, _lean_places(traced))
        return cls(lifetimes, meter.found, meter)

    def is_bounded(self, place: int) -> bool:
        """Whether a bound stands in for what an operation's kernel works in."""
        return self.meter is not None and is_measured(self.lifetimes.calls[place])

    def measured(self, places: Iterable[int]) -> "StepMemory":
        """The same with the kernels of these operations measured."""
        if self.meter is None:
            return self
        for place in places:
            if place not in self.meter.found.forward:
                self.meter.measure(place)
        return replace(self, workspaces=self.meter.found)


def _lean_places(traced: Trace) -> frozenset[int]:
    """Operations whose backward is the engine's own; a convolution whose weight always trains is PyTorch's."""

    def is_plain(operation: Operation) -> bool:
        factors = factors_of(operation) if operation.target in CONVOLUTIONS else None
        parameter = None if factors is None else traced.weights.parameter_of.get(factors[1].tensor.storage)
        return parameter is not None and traced.step.storages[parameter].name in traced.always_trained

    return frozenset(
        place
        for place, operation in enumerate(traced.step.operations)
        if not is_plain(operation)
        and lean_form(
            operation.target,
            operation.api,
            operation.attributes,
            frozenset(operand.name for operand in operation.operands if operand.upstream),
        )
    )


def _is_here(device: str) -> bool:
    kind = torch.device(device).type
    return kind == "cpu" or (kind == "cuda" and torch.cuda.is_available())


def _between(low: Lifetimes, high: Lifetimes, batch_size: int) -> Lifetimes:
    """Lifetimes at another batch size: the same order of events, sizes on the line through two recordings."""
    steps, span = batch_size - low.batch_size, high.batch_size - low.batch_size

    def line(first: int, second: int) -> int:
        return first + (second - first) * steps // span

    backwards = tuple(
        BackwardRun(first.operation, first.upstream, line(first.scratch_bytes, second.scratch_bytes))
        for first, second in zip(low.backwards, high.backwards, strict=True)
    )
    gradients = tuple(
        GradientStorage(line(first.num_bytes, second.num_bytes), first.born, first.uses)
        for first, second in zip(low.gradients, high.gradients, strict=True)
    )
    return replace(low, batch_size=batch_size, backwards=backwards, gradients=gradients)
