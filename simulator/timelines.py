"""One step moment by moment: what lives forward, backward and in the optimizer, by line of the ledger; no torch."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from trady.planner.errors import PlanError
from trady.planner.ledger import PEAK_LINES, BatchedLedger, CostTable, Moment, MomentKind, active_bits, with_margin
from trady.planner.plan import Plan
from trady.planner.sampling import ChannelDraws, draw_runs

#: The ledger's lines, and the margin that the peak is predicted with.
PARTS: Final = (*PEAK_LINES, "margin")


@dataclass(frozen=True)
class LiveMoment:
    """What lives while something runs.

    Args:
        kind: What runs.
        operation: Place of the operation in the plan's table; -1 for the optimizer.
        target: Operation name; ``optimizer`` for the optimizer.
        module: Module path; empty for what the model itself, the loss or the optimizer runs.
        num_bytes: Bytes of each of :data:`PARTS`.
    """

    kind: MomentKind
    operation: int
    target: str
    module: str
    num_bytes: Mapping[str, int]

    @cached_property
    def total_bytes(self) -> int:
        """All parts, the margin included."""
        return sum(self.num_bytes.values())

    def as_json(self) -> dict[str, object]:
        """Plain data."""
        return {
            "kind": self.kind.value,
            "operation": self.operation,
            "target": self.target,
            "module": self.module,
            "bytes": dict(self.num_bytes),
            "total_bytes": self.total_bytes,
        }


@dataclass(frozen=True)
class Timeline:
    """The moments of one step, in order.

    Args:
        plan: What is trained.
        epoch: Epoch whose channels are drawn.
        seed: Seed of the run.
        moments: Those that come with these channels.
    """

    plan: Plan = field(repr=False)
    epoch: int
    seed: int
    moments: tuple[LiveMoment, ...] = field(repr=False)

    @cached_property
    def peak_moment(self) -> LiveMoment:
        """The first moment at which the most lives."""
        return max(self.moments, key=lambda moment: moment.total_bytes)

    @property
    def peak_bytes(self) -> int:
        """The most that lives at any moment: scope ``peak`` of the draw's ledger."""
        return self.peak_moment.total_bytes

    def as_json(self) -> dict[str, object]:
        """Plain data: every moment, part by part."""
        return {
            "epoch": self.epoch,
            "seed": self.seed,
            "batch_size": self.plan.settings.batch_size,
            "peak_bytes": self.peak_bytes,
            "peak_moment": self.moments.index(self.peak_moment),
            "moments": [moment.as_json() for moment in self.moments],
        }


def timeline(plan: Plan, *, epoch: int = 0, seed: int = 0) -> Timeline:
    """Bytes that live at every moment of one training step, from the plan's table.

    Forward, recording for backward, backward, slice gradients and the optimizer; what does not run with the channels
    drawn is left out. ``workspace`` is all that is not of another line: activations that the forward pass still
    needs, gradients of activations on their way, what kernels work in.

    Args:
        plan: The plan.
        epoch: Epoch of the draw, from 0.
        seed: Seed of the run.

    Returns:
        What lives at each moment of a step, by line of the ledger.

    Raises:
        PlanError: The plan does not say when memory is released.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 4))
        >>> pictures = torch.randn(2, 3, 8, 8)
        >>> from trady.planner import make_plan
        >>> plan = make_plan(net, pictures, budget="4KB", optimizer="sgd")
        >>> timeline(plan).peak_bytes == plan.ledger.scopes.peak
        True

    Known limitations:
        Planning measures the kernels that can decide the peak: at lower moments a bound may stand for what a kernel
        works in, so that less lives there.
    """
    if plan.table.gradient_storages is None:
        raise PlanError(
            f"Plan of {plan.model.source}: its table does not say when a step releases memory, so there is no "
            "timeline. Its notes say why the peak is not predicted; make it anew with trady-plan once that is mended."
        )
    return Timeline(plan, epoch, seed, tuple(_Splitter(plan.table, draw_runs(plan, epoch, [seed])).moments()))


class _Splitter:
    """Tells by line what lives at each moment of a step with the channels drawn."""

    def __init__(self, table: CostTable, draws: ChannelDraws) -> None:
        self._table, self._draws, self._ledger = table, draws, BatchedLedger(table)
        self._counts, self._stored = draws.counts[0].tolist(), draws.stored[0].tolist()
        self._active = active_bits(self._counts)
        self._lasting = self._lasting_lines()

    def moments(self) -> Iterator[LiveMoment]:
        model = self._ledger.peak_model
        values = model.values(self._draws.counts, self._draws.stored)[0].tolist()
        for moment, num_bytes in zip(model.moments, values, strict=True):
            always_comes = moment.when is None and moment.slice is None
            if num_bytes or always_comes:
                yield LiveMoment(moment.kind, moment.operation, *self._place(moment), self._split(moment, num_bytes))

    def _place(self, moment: Moment) -> tuple[str, str]:
        """Target and module path of what runs."""
        if moment.operation < 0:
            return "optimizer", "" if moment.slice is None else self._table.layers[moment.slice.layer].name
        operation = self._table.operations[moment.operation]
        return operation.target, operation.module

    def _lasting_lines(self) -> dict[str, int]:
        """Lines that live all through the step; of what always trains the optimizer state and the drawn biases."""
        drawn = self._draws.counts, self._draws.stored, self._draws.indexed
        lines = self._ledger.lines(*drawn)
        names = ("weights", "inputs", "optimizer_state", "active_weights", "draw_index")
        found = {name: int(lines[name][0]) for name in names}
        found["always_trained"] = int(self._ledger.lasting_bytes(*drawn)[0]) - sum(found.values())
        return found

    def _split(self, moment: Moment, num_bytes: int) -> dict[str, int]:
        """Parts of a moment at which so many bytes live beside what always lives."""
        moving = {
            "gradients": sum(self._counts[i] * self._table.layers[i].gradient_bytes for i in moment.gradients),
            "saved_activations": sum(self._stored_bytes(*pair) for pair in moment.stored),
            "always_trained": moment.always_gradients + self._kept_bytes(moment, "always_trained"),
            "residuals": self._kept_bytes(moment, "residuals"),
        }
        moving["workspace"] = num_bytes - sum(moving.values())
        moving["margin"] = with_margin(num_bytes) - num_bytes
        return {name: self._lasting.get(name, 0) + moving.get(name, 0) for name in PARTS}

    def _kept_bytes(self, moment: Moment, line: str) -> int:
        return sum(
            num_bytes
            for (of_line, upstream), num_bytes in moment.lines.items()
            if of_line == line and self._table.upstreams[upstream].is_trained(self._active)
        )

    def _stored_bytes(self, group: int, position: int) -> int:
        """Stored channels of one tensor of an input group; nothing where it is kept anyway."""
        tensor = self._table.groups[group].inputs[position]
        if tensor.kept_by is not None and self._table.upstreams[tensor.kept_by].is_trained(self._active):
            return 0
        return int(self._stored[group]) * tensor.channel_bytes
