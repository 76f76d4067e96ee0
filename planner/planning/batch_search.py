"""The largest batch size that a budget holds, by planning at several."""

from collections.abc import Callable
from functools import cache
from typing import Final, Unpack

from torch import nn

from trady.planner.errors import PlanError, TracingError
from trady.planner.models import Inputs
from trady.planner.plan import Plan
from trady.planner.planning.planning import ModelSource, PlanKeywords, make_plan
from trady.planner.priorities import Priorities, priorities_without_data
from trady.planner.tracing import Trace
from trady.planner.units import format_share

#: A budget that holds batches of so many samples holds nothing that grows with them.
MOST_SAMPLES: Final = 1 << 20


def plan_largest_batch(
    model: nn.Module, inputs: Inputs, *, min_value: float = 0.0, **options: Unpack[PlanKeywords]
) -> Plan:
    """The plan of the largest batch size under which the budget still trains something that is worth it.

    What a plan is worth falls as the batch grows, so the size is found by doubling and halving.

    Args:
        model: The module.
        inputs: Example inputs.
        min_value: Least value of the plan, as a share of the value of training everything; 0 for anything.
        **options: As for :func:`trady.planner.make_plan`, the batch size left out; ``traced`` is needed, made without
            ``batch_sizes``.

    Returns:
        The plan.

    Raises:
        PlanError: The value is not reached with one sample, or any batch size fits.

    Error:
        BudgetError: Not even one sample fits.
    """
    traced, say = options["traced"], options.get("progress") or (lambda _: None)
    assert traced is not None
    source, priorities = options.get("source") or ModelSource(), options.get("priorities")

    @cache
    def known() -> Priorities:
        """Gradient norms, found once, when a budget turns out to train something."""
        if callable(priorities):
            return priorities()
        say("Finding priorities")
        loss, has_weights = options.get("loss"), source.has_weights
        return priorities or priorities_without_data(model, inputs, traced, loss, has_weights=has_weights)

    def plan_at(size: int) -> Plan:
        say(f"Planning with batch size {size:,}")
        of_size: PlanKeywords = {**options, "batch_size": size, "priorities": known, "progress": None}
        return make_plan(model, inputs, **of_size)

    best = _smallest(plan_at, traced)
    if best.solver.value < min_value:
        raise PlanError(
            f"The plan with {best.settings.batch_size} samples is worth {format_share(best.solver.value)} of training "
            f"all, below the {format_share(min_value)} asked for. Raise --budget or lower --min-value."
        )
    low = best.settings.batch_size
    high = 2 * low
    while high <= MOST_SAMPLES and (larger := _worth(plan_at, high, min_value)) is not None:
        best, low, high = larger, high, 2 * high
    if high > MOST_SAMPLES:
        raise PlanError(
            f"Any batch size fits: with {low:,} samples {', '.join(best.chosen)} still trains, for what the budget of "
            f"scope {best.settings.scope.value!r} holds of it does not grow with them. Use --scope training or peak, "
            "or --min-value."
        )
    while high - low > 1:
        middle = (low + high) // 2
        tried = _worth(plan_at, middle, min_value)
        if tried is None:
            high = middle
        else:
            best, low = tried, middle
    return best


def _smallest(plan_at: Callable[[int], Plan], traced: Trace) -> Plan:
    """The plan of one sample; of two where the step cannot run with one (batch norms that train)."""
    try:
        traced.at(1)
    except TracingError:
        return plan_at(2)
    return plan_at(1)


def _worth(plan_at: Callable[[int], Plan], size: int, min_value: float) -> Plan | None:
    """The plan of a batch size, unless it does not fit or is worth too little."""
    try:
        found = plan_at(size)
    except PlanError:  # the budget, or the bound of the backward pass: the smallest batch was within both
        return None
    return found if found.solver.value >= min_value else None
