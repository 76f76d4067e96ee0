"""Batches held against the planned size.

Held by ``tests/engine/test_engine.py``.
"""

import warnings
from collections.abc import Mapping
from typing import Any

from trady.engine.runtime.contract import PlannedModel
from trady.planner.costs import build_cost_table
from trady.planner.errors import EngineError, TradyError
from trady.planner.ledger import BatchedLedger, Ledger
from trady.planner.models import Inputs, LossFunction, batch_size_of, input_tensors
from trady.planner.tracing import trace
from trady.planner.units import format_bytes


class BatchGuard:
    """Tells once of a batch larger than planned.

    Args:
        strict: Refuse it instead.
    """

    def __init__(self, strict: bool) -> None:
        self._strict = strict
        self._told = False

    def check(self, engine: PlannedModel, inputs: object) -> None:
        """Look at the first tensor's first dimension.

        Args:
            engine: The engine.
            inputs: ``(args, kwargs)`` of the call; ``None`` where there is nothing to check.

        Raises:
            EngineError: The batch is larger than planned, and the guard is strict.
        """
        if inputs is None or (self._told and not self._strict):
            return
        planned = engine.plan.settings.batch_size
        found = next((tensor.shape[0] for tensor in input_tensors(inputs) if tensor.dim() > 0), 0)
        if found <= planned:
            return
        message = _told_of(engine, found, planned, inputs)
        if self._strict:
            raise EngineError(message)
        self._told = True
        warnings.warn(message, stacklevel=6)


def _told_of(engine: PlannedModel, found: int, planned: int, inputs: Any) -> str:
    scopes = engine.ledger.scopes
    try:
        larger = ledger_at(engine, _as_inputs(*inputs)).scopes
        there = f"takes update {format_bytes(larger.update)}, training {format_bytes(larger.training)}"
    except TradyError as error:
        there = f"has a ledger that cannot be told here ({error})"
    return (
        f"A batch of {found} samples {there}; planned were {planned} (update {format_bytes(scopes.update)}, "
        f"training {format_bytes(scopes.training)}). Plan with --batch-size {found}, or accumulate the gradients of "
        "smaller batches."
    )


def ledger_at(engine: PlannedModel, inputs: Inputs, targets: object = None, loss: LossFunction | None = None) -> Ledger:
    """The ledger of the channels drawn now for other inputs than planned.

    Args:
        engine: The engine.
        inputs: The batch; the model is traced on fake tensors of its shapes.
        targets: Second argument of the loss.
        loss: The loss; by default the model's own, else cross-entropy.

    Error:
        TradyError: The step cannot be traced.
    """
    plan, size = engine.plan, batch_size_of(inputs)
    settings = plan.settings
    known = {layer.name for layer in plan.table.layers}
    with engine.thawed() as model:
        traced = trace(
            model,
            inputs,
            targets=targets,
            loss=loss,
            norm=settings.norm,
            amp=settings.amp,
            device=settings.device,
            memory_format=settings.memory_format,
            train=settings.train,
            batch_sizes=(size,),
        )
    layers = [layer for layer in traced.layers if layer.name in known]
    table = build_cost_table(traced, layers, optimizer=settings.optimizer, train_bias=settings.train_bias)
    return engine.channels.ledger(BatchedLedger(table))


def _as_inputs(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Inputs:
    if args and kwargs:
        raise TradyError("positional and keyword inputs are mixed")
    if kwargs:
        return dict(kwargs)
    return args[0] if len(args) == 1 else args
