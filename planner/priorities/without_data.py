"""Priorities where there is no data: of synthetic inputs, or uniform where nothing can be measured.

Held by ``tests/planner/planning/test_preparation.py``.
"""

from typing import Final

from torch import nn

from trady.planner.models import Inputs, LossFunction, is_on_meta
from trady.planner.priorities import (
    Priorities,
    PrioritySource,
    available_bytes,
    calibrate,
    calibration_peak_bytes,
    synthetic_batches,
    uniform_priorities,
)
from trady.planner.tracing import Trace
from trady.planner.units import format_bytes

_SYNTHETIC_BATCHES: Final = 4


def priorities_without_data(
    model: nn.Module, inputs: Inputs, traced: Trace, loss: LossFunction | None, *, has_weights: bool
) -> Priorities:
    """Gradient norms of synthetic inputs; uniform ones where there are no weights, no memory or no known targets.

    Args:
        model: The module.
        inputs: Example inputs.
        traced: Its trace.
        loss: The user's loss: nobody can make up its targets.
        has_weights: Whether the weights are trained ones.

    Returns:
        Norms on synthetic inputs, else uniform ones that say why.
    """
    available, needed = available_bytes(), calibration_peak_bytes(traced)
    reasons = (
        (is_on_meta(model), "the model has no memory for weights"),
        (not has_weights, "the weights are random"),
        (loss is not None, "targets of your own loss cannot be made up"),
        (
            available is not None and needed > available,
            f"a backward pass needs {format_bytes(needed)}, more than the {format_bytes(available or 0)} free",
        ),
    )
    for holds, reason in reasons:
        if holds:
            return uniform_priorities(traced, reason)
    return calibrate(
        model,
        synthetic_batches(model, inputs, _SYNTHETIC_BATCHES),
        norm=traced.options.norm,
        source=PrioritySource.SYNTHETIC,
        origin="normal noise, random targets",
        traced=traced,
    )
