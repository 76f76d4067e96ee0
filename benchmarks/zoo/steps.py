"""One planned step of the engine, held against its plan and against dense autograd."""

import copy
import gc
from typing import Any, Final

import torch
from torch import Tensor, nn

from trady.engine import Engine
from trady.engine.runtime import kept_by_line
from trady.planner.errors import TradyError
from trady.planner.models import call_model, map_tensors, own_loss, set_training_mode, step_loss, synthetic_targets
from trady.planner.options import NormMode
from trady.planner.plan import Plan
from trady.planner.planning import make_plan
from trady.planner.priorities import uniform_priorities

#: Smallest budgets do for toys; one of them trains something.
BUDGETS: Final = ("256KB", "4MB", "64MB")
KEPT_LINES: Final = ("saved_activations", "draw_index", "residuals")


def planned_step(model: nn.Module, inputs: Any, batch_size: int) -> dict[str, Any]:
    """Kept bytes of a lean step beside the plan's, and its gradients beside dense autograd's.

    Args:
        model: The model; it is the engine's afterwards.
        inputs: Example inputs.
        batch_size: Samples of the step.

    Returns:
        Planned and measured bytes, their difference, and the largest error of a drawn slice's gradient relative to
        the largest entry of the dense one.
    """
    plan = _plan(model, inputs, batch_size)
    batch = _batched(inputs, batch_size)
    dense = copy.deepcopy(model)
    engine = Engine(model, plan).train()
    with torch.no_grad():
        outputs = call_model(engine, batch)
    targets = None if own_loss(outputs) is not None else synthetic_targets(outputs, torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    kept, loss = kept_by_line(engine, batch, targets, None)
    loss.backward()
    lines = plan.ledger.lines
    stored_always = lines.always_trained - plan.table.always_trained_bytes
    planned = sum(getattr(lines, name) for name in KEPT_LINES) + stored_always
    measured = sum(kept.values())
    found = {name: compact.grad for name, compact in engine.slices.named_parameters() if compact.grad is not None}
    del loss
    gc.collect()
    return {
        "layers": len(plan.chosen),
        "channels": sum(plan.counts),
        "planned": planned,
        "measured": measured,
        "difference": planned - measured,
        "without_gradient": len(plan.chosen) - len(found),
        "gradient_error": _gradient_error(dense, engine, found, batch, targets),
    }


def _plan(model: nn.Module, inputs: Any, batch_size: int) -> Plan:
    for budget in BUDGETS:
        try:
            return make_plan(
                model,
                inputs,
                budget=budget,
                batch_size=batch_size,
                priorities=lambda: uniform_priorities_of(model, inputs),
            )
        except TradyError:
            if budget == BUDGETS[-1]:
                raise
    raise AssertionError


def uniform_priorities_of(model: nn.Module, inputs: Any) -> Any:
    """Uniform norms, whatever the weights."""
    from trady.planner.models import batch_size_of
    from trady.planner.tracing import trace

    return uniform_priorities(trace(model, inputs, batch_sizes=(batch_size_of(inputs),)))


def _batched(inputs: Any, batch_size: int) -> Any:
    generator = torch.Generator().manual_seed(0)

    def batched(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            return torch.randn((batch_size, *tensor.shape[1:]), generator=generator)
        return tensor[torch.arange(batch_size) % tensor.shape[0]]

    return map_tensors(batched, inputs)


def _gradient_error(
    dense: nn.Module, engine: Engine, found: dict[str, Tensor], batch: Any, targets: Tensor | None
) -> float:
    """Largest relative error of the slices' gradients, with the same random numbers."""
    set_training_mode(dense, NormMode.FROZEN)
    for name, parameter in dense.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and (name in found or engine.is_always_trained(name)))
    torch.manual_seed(1)
    step_loss(call_model(dense, batch), targets, None).backward()
    worst = 0.0
    for name, gradient in found.items():
        reference = dense.get_parameter(name).grad
        assert reference is not None
        expected = engine.slices.gather(name, reference)
        scale = float(reference.abs().max()) or 1.0
        worst = max(worst, float((gradient - expected).abs().max()) / scale)
    return worst
