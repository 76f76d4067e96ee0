"""Measuring one real step: every line of the ledger, and the allocator's exact peak, beside what was planned."""

import gc
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from trady.engine.optim import make_optimizer
from trady.engine.runtime.contract import PlannedModel
from trady.engine.runtime.guards import ledger_at
from trady.engine.runtime.redirection import StorageNotes
from trady.planner.costs import AllocationMeter
from trady.planner.ledger import PEAK_LINES, TRAINING_LINES, UPDATE_LINES, Ledger
from trady.planner.models import (
    Inputs,
    LossFunction,
    as_it_was,
    batch_size_of,
    call_model,
    input_tensors,
    own_loss,
    step_loss,
    synthetic_targets,
    torch_dtype,
)
from trady.planner.options import DType, Scope
from trady.planner.plan import Plan
from trady.planner.planning import machine_difference
from trady.planner.units import format_bytes


@dataclass(frozen=True)
class Measurement:
    """Planned ledger beside the measured one.

    Args:
        planned: The ledger of the drawn channels at this batch size.
        measured: Bytes of each line but ``workspace``.
        peak_bytes: Most bytes live at once in a whole step by torch's allocator, weights and batch included.
        reserved_bytes: What the CUDA allocator holds of the device; ``None`` on the CPU.
        loss: Value of the loss.
        budget_bytes: The plan's budget.
        scope: What it holds.
        unaccounted: Operations whose memory is in no line -> why.
        batch_size: Samples of the step.
        machine: How this machine differs from the planned one, in words; empty where it does not.
    """

    planned: Ledger
    measured: Mapping[str, int]
    peak_bytes: int
    reserved_bytes: int | None
    loss: float
    budget_bytes: int
    scope: Scope
    unaccounted: Mapping[str, str]
    batch_size: int
    machine: str = ""

    def scope_bytes(self, scope: Scope) -> int:
        """Measured bytes of a scope."""
        if scope is Scope.PEAK:
            return self.peak_bytes
        return sum(self.measured[name] for name in (UPDATE_LINES if scope is Scope.UPDATE else TRAINING_LINES))

    @property
    def workspace_bytes(self) -> int:
        """What is left of the peak beside all lines; below zero where lines are never all live at once."""
        return self.peak_bytes - sum(self.measured.values())

    @property
    def differing(self) -> dict[str, tuple[int, int]]:
        """Lines that are not to the byte as planned -> planned and measured bytes."""
        planned = self.planned.lines
        return {
            name: (getattr(planned, name), found)
            for name, found in self.measured.items()
            if getattr(planned, name) != found
        }

    @property
    def exceeded(self) -> tuple[str, ...]:
        """What took more than planned, in words; empty when the plan holds."""
        found = [
            f"{name.replace('_', ' ')}: {measured:,} B, planned {planned:,} B"
            for name, (planned, measured) in self.differing.items()
            if measured > planned
        ]
        peak = self.planned.scopes.peak
        if peak is not None and self.peak_bytes > peak:
            found.append(f"peak: {self.peak_bytes:,} B, planned {peak:,} B")
        held = self.scope_bytes(self.scope)
        if held > self.budget_bytes:
            found.append(f"scope {self.scope.value}: {held:,} B, budget {self.budget_bytes:,} B")
        return tuple(found)

    def as_json(self) -> dict[str, object]:
        """Plain data: planned and measured lines and scopes."""
        return {
            "batch_size": self.batch_size,
            "loss": self.loss,
            "planned": self.planned.model_dump(mode="json"),
            "measured": {**self.measured, "workspace": self.workspace_bytes},
            "peak_bytes": self.peak_bytes,
            "reserved_bytes": self.reserved_bytes,
            "scope_bytes": {scope.value: self.scope_bytes(scope) for scope in Scope},
            "exceeded": list(self.exceeded),
            "unaccounted": dict(self.unaccounted),
            "machine": self.machine,
        }

    def __rich__(self) -> RenderableType:
        """A table, line by line."""
        table = Table("line", box=None, header_style="bold", pad_edge=False)
        for heading in ("planned", "measured", "difference"):
            table.add_column(heading, justify="right")
        for name in PEAK_LINES:
            found = self.workspace_bytes if name == "workspace" else self.measured[name]
            table.add_row(name.replace("_", " "), *_beside(getattr(self.planned.lines, name), found))
        table.add_section()
        for scope in Scope:
            planned = getattr(self.planned.scopes, scope.value)
            table.add_row(f"scope {scope.value}", *_beside(planned, self.scope_bytes(scope)))
        return Group(
            Text(f"One step of {self.batch_size} samples, planned and measured (bytes)", style="bold"),
            table,
            *(Text(line) for line in self._remarks()),
        )

    def __str__(self) -> str:
        """The same table as plain text."""
        from rich.console import Console

        console = Console(width=88, color_system=None)
        with console.capture() as captured:
            console.print(self)
        return captured.get().rstrip()

    def _remarks(self) -> Iterator[str]:
        if self.reserved_bytes is not None:
            yield f"The CUDA allocator holds {format_bytes(self.reserved_bytes)} of the device."
        for name, reason in self.unaccounted.items():
            yield f"Not accounted for: {name}: {reason}."
        if self.machine:
            yield self.machine
        yield from (f"Above the plan: {text}" for text in self.exceeded)
        if not self.exceeded:
            equal = "every line but the workspace to the byte" if not self.differing else "some lines took less"
            yield f"The plan holds: {equal}."


def _beside(planned: int | None, measured: int) -> tuple[str, str, str]:
    if planned is None:
        return "not predicted", f"{measured:,}", ""
    return f"{planned:,}", f"{measured:,}", f"{measured - planned:+,}" if measured != planned else "0"


class _Held:
    """Stands for a tensor that autograd keeps; dies with the graph node."""

    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def measure_step(
    engine: PlannedModel, inputs: Inputs, targets: object = None, loss: LossFunction | None = None
) -> Measurement:
    """Run one real training step and hold every line of the ledger against it; the model stays as it was.

    The step runs twice: once with autograd's saved tensors watched, once with the allocator. An optimizer of the
    planned kind with rate zero takes the step, so that weights stay; gradients, statistics, random state and the
    user's own optimizer are as before.

    Args:
        engine: The engine.
        inputs: A batch, as the model takes it.
        targets: Second argument of the loss; random classes where left out.
        loss: ``loss(outputs, targets)``; by default the model's own, else cross-entropy.

    Returns:
        The ledger as measured, line by line, and the norms seen.

    Error:
        TradyError: The batch is of another size than planned, and its ledger cannot be told.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 4))
        >>> pictures = torch.randn(2, 3, 8, 8)
        >>> from trady.planner import make_plan
        >>> plan = make_plan(net, pictures, budget="4KB", optimizer="sgd")
        >>> from trady.engine import Engine
        >>> measured = measure_step(Engine(net, plan), pictures)
        >>> measured.measured["saved_activations"] == plan.ledger.lines.saved_activations, measured.differing
        (True, {})
    """
    plan: Plan = engine.plan
    size = batch_size_of(inputs)
    planned = engine.ledger if size == plan.settings.batch_size else ledger_at(engine, inputs, targets, loss)
    device = next(engine.model.parameters()).device
    amp = None if torch.is_autocast_enabled(device.type) else plan.settings.amp
    with _restored(engine), autocast(device, amp):
        # Its rate is zero, so that measuring changes nothing.
        optimizer = make_optimizer(engine.parameters(), plan.settings.optimizer, learning_rate=0.0)
        optimizer.register_step_post_hook(lambda *_: engine.slices.synchronise(engine.model))
        if targets is None:
            targets = _made_up(engine, inputs, loss)
        lines, value = _measured_lines(engine, optimizer, inputs, targets, loss)
        before = _static_bytes(lines, optimizer)
        gc.collect()
        with AllocationMeter(device) as meter:
            _step(engine, optimizer, inputs, targets, loss)
    return Measurement(
        planned=planned,
        measured=lines,
        peak_bytes=before + meter.peak_bytes,
        reserved_bytes=torch.cuda.memory_reserved(device) if device.type == "cuda" else None,
        loss=value,
        budget_bytes=plan.settings.budget_bytes,
        scope=plan.settings.scope,
        unaccounted=plan.unaccounted,
        batch_size=size,
        machine=machine_difference(plan),
    )


def kept_by_line(
    engine: PlannedModel, inputs: Inputs, targets: object, loss: LossFunction | None
) -> tuple[dict[str, int], Tensor]:
    """What autograd keeps for backward when the loss exists, by ledger line, and the loss.

    Distinct storages; parameters, buffers and the batch left out.

    Returns:
        Bytes kept for backward, by line of the ledger.
    """
    with engine.recording() as notes, saved_tensors() as held:
        outputs = call_model(engine, inputs)
        value = step_loss(outputs, targets, loss)
    del outputs
    known = [*engine.model.parameters(), *engine.model.buffers(), *input_tensors([inputs, targets])]
    return _by_line(storage_bytes(held(), left_out=known), notes), value


@contextmanager
def saved_tensors() -> Iterator[Callable[[], list[Tensor]]]:
    """Watch what autograd saves for backward inside.

    Yields:
        What tells, whenever called, the saved tensors that the graph still holds then.
    """
    saved: list[weakref.ref[_Held]] = []

    def pack(tensor: Tensor) -> _Held:
        holder = _Held(tensor)
        saved.append(weakref.ref(holder))
        return holder

    def held() -> list[Tensor]:
        gc.collect()
        return [holder.tensor for reference in saved if (holder := reference()) is not None]

    with saved_tensors_hooks(pack, lambda holder: holder.tensor):
        yield held


def storage_bytes(tensors: Iterable[Tensor], *, left_out: Iterable[Tensor] = ()) -> dict[int, int]:
    """Distinct storages -> bytes, but those of some tensors; views of one storage count once."""
    known = {int(tensor.untyped_storage()._cdata) for tensor in left_out}
    storages = (tensor.untyped_storage() for tensor in tensors)
    return {int(storage._cdata): int(storage.nbytes()) for storage in storages if int(storage._cdata) not in known}


def _by_line(kept: Mapping[int, int], notes: StorageNotes) -> dict[str, int]:
    lines = {"saved_activations": 0, "draw_index": 0, "always_trained": 0, "residuals": 0}
    for storage, num_bytes in kept.items():
        lines[notes.line_of.get(storage, "residuals")] += num_bytes
    return lines


def _measured_lines(
    engine: PlannedModel, optimizer: torch.optim.Optimizer, inputs: Inputs, targets: Any, loss: LossFunction | None
) -> tuple[dict[str, int], float]:
    """One watched step, its lines and its loss; gradients are dropped again."""
    kept, value = kept_by_line(engine, inputs, targets, loss)
    result = float(value.detach())
    value.backward()
    del value
    optimizer.step()
    slices = [compact for _, compact in engine.slices.named_parameters()]
    drawn = {id(compact) for compact in slices}
    others = [parameter for parameter in engine.parameters() if id(parameter) not in drawn]
    lines = {
        "gradients": _gradient_bytes(slices),
        "saved_activations": kept["saved_activations"],
        "optimizer_state": _state_bytes(optimizer, slices),
        "draw_index": kept["draw_index"],
        "active_weights": sum(storage_bytes(slices).values()),
        "always_trained": kept["always_trained"] + _gradient_bytes(others) + _state_bytes(optimizer, others),
        "residuals": kept["residuals"],
        "weights": sum(storage_bytes([*engine.model.parameters(), *engine.model.buffers()]).values()),
        "inputs": sum(storage_bytes(input_tensors([inputs, targets])).values()),
    }
    optimizer.zero_grad()
    return lines, result


def _gradient_bytes(parameters: Iterable[nn.Parameter]) -> int:
    return sum(storage_bytes(parameter.grad for parameter in parameters if parameter.grad is not None).values())


def _state_bytes(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> int:
    return sum(storage_bytes(_state_tensors(optimizer, parameters)).values())


def _state_tensors(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor]) -> Iterator[Tensor]:
    for parameter in parameters:
        yield from (entry for entry in optimizer.state.get(parameter, {}).values() if isinstance(entry, Tensor))


def _static_bytes(lines: Mapping[str, int], optimizer: torch.optim.Optimizer) -> int:
    """What lives before a step begins and throughout it."""
    names = ("weights", "inputs", "active_weights", "draw_index")
    state = sum(storage_bytes(_state_tensors(optimizer, list(optimizer.state))).values())
    return sum(lines[name] for name in names) + state


def _step(
    engine: PlannedModel, optimizer: torch.optim.Optimizer, inputs: Inputs, targets: Any, loss: LossFunction | None
) -> None:
    outputs = call_model(engine, inputs)
    value = step_loss(outputs, targets, loss)
    value.backward()
    optimizer.step()
    optimizer.zero_grad()


def _made_up(engine: PlannedModel, inputs: Inputs, loss: LossFunction | None) -> Any:
    """Targets for cross-entropy where none are given and the model has no loss of its own."""
    with torch.no_grad():
        outputs = call_model(engine, inputs)
    return None if loss is None and own_loss(outputs) is not None else synthetic_targets(outputs)


def autocast(device: torch.device, amp: DType | None) -> AbstractContextManager[object]:
    """Mixed precision for forward and loss, or nothing."""
    return nullcontext() if amp is None else torch.autocast(device.type, dtype=torch_dtype(amp))


@contextmanager
def _restored(engine: PlannedModel) -> Iterator[None]:
    """Give gradients, buffers, training mode and random state back as they were."""
    devices = {tensor.device for tensor in engine.model.parameters() if tensor.is_cuda}
    with torch.random.fork_rng(devices=sorted(devices, key=str)), as_it_was(engine):
        for parameter in engine.parameters():
            parameter.grad = None
        engine.train()
        yield
