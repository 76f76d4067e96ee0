"""What a choice takes at the least: the cheapest layer, the smallest budget. No torch.

Held by ``tests/planner/planning/test_planning.py``.
"""

from collections.abc import Sequence
from typing import Final, NoReturn

import numpy as np

from trady.planner.errors import BudgetError, PlanError
from trady.planner.ledger import BatchedLedger, CostTable, Ledger
from trady.planner.options import Scope
from trady.planner.planning.choice_options import ChoiceOptions
from trady.planner.units import format_bytes

NOTHING_OF_WORTH: Final = (
    "All gradient norms are zero: nothing is worth training. Check that the loss depends on the output, or measure on "
    "more data."
)
NOTHING_FOUND: Final = (
    "The search stopped before it found a plan. Leave out --max-backward-macs, or narrow it with --only."
)


def cheapest_layer(
    ledger: BatchedLedger, asked: ChoiceOptions, eligible: Sequence[int] | None = None
) -> tuple[int, int]:
    """The layer that trains within the fewest bytes, and those bytes: the smallest budget that trains anything.

    Args:
        ledger: Costs of the candidate layers.
        asked: Scope, and fewest channels of a layer.
        eligible: Indices of the layers to look at; all by default.

    Returns:
        Index of the layer, and the bytes.
    """
    table = ledger.table
    pool = list(range(len(table.layers))) if eligible is None else list(eligible)
    counts = np.zeros((len(pool), len(table.layers)), dtype=np.int64)
    for row, index in enumerate(pool):
        counts[row, index] = _least_channels(table, asked, index)
    needed = ledger.scope_bytes(counts, asked.scope)
    row = int(needed.argmin())
    return pool[row], int(needed[row])


def least_counts(table: CostTable, asked: ChoiceOptions, index: int) -> list[int]:
    """The fewest channels of one layer, and none of the others."""
    counts = [0] * len(table.layers)
    counts[index] = _least_channels(table, asked, index)
    return counts


def _least_channels(table: CostTable, asked: ChoiceOptions, index: int) -> int:
    return min(asked.min_channels, table.layers[index].in_channels)


def refuse_budget(ledger: BatchedLedger, asked: ChoiceOptions, eligible: Sequence[int] | None = None) -> NoReturn:
    """Tell which layer comes cheapest where a budget trains nothing, and what it takes.

    Raises:
        PlanError: The backward pass is bounded too low.
        BudgetError: The budget is too small.
    """
    table = ledger.table
    cheapest, needed = cheapest_layer(ledger, asked, eligible)
    layer = table.layers[cheapest]
    if needed <= asked.budget_bytes:
        fewest = np.array([least_counts(table, asked, index) for index in range(len(table.layers))])
        least = int(ledger.backward_macs(fewest).min())
        raise PlanError(
            f"No layer fits the budget with --max-backward-macs {asked.max_backward_macs}: the shallowest needs "
            f"{least} MACs. Raise --max-backward-macs."
        )
    counts = least_counts(table, asked, cheapest)
    if asked.scope is Scope.PEAK:
        raise BudgetError(_peak_too_small(ledger, asked, cheapest, needed))
    parts = _parts(ledger.of(counts), asked.scope)
    channels = f"{counts[cheapest]} channel" + ("s" if counts[cheapest] > 1 else "")
    raise BudgetError(
        f"Budget {format_bytes(asked.budget_bytes)} trains no layer: the cheapest, {layer.name!r}, needs "
        f"{format_bytes(needed)} ({needed} B) for {channels} ({parts}). Raise --budget or lower --batch-size."
    )


def _peak_too_small(ledger: BatchedLedger, asked: ChoiceOptions, cheapest: int, needed: int) -> str:
    """A budget of the peak says what a forward pass alone takes: below that nothing but a smaller batch helps."""
    table, inference = ledger.table, ledger.peak_model.inference_bytes()
    layer = table.layers[cheapest]
    budget = format_bytes(asked.budget_bytes)
    alone = f"Inference alone peaks at {format_bytes(inference)} ({inference} B) at batch size {table.batch_size}"
    if inference > asked.budget_bytes:
        return (
            f"Budget {budget} does not hold the model even without training. {alone}. "
            f"Lower --batch-size, or raise --budget to {format_bytes(needed)} ({needed} B), at which "
            f"{layer.name!r} trains."
        )
    channels = min(asked.min_channels, layer.in_channels)
    return (
        f"Budget {budget} trains no layer: the cheapest, {layer.name!r}, peaks at {format_bytes(needed)} ({needed} B) "
        f"with {channels} channel{'s' if channels > 1 else ''}. {alone}. Raise --budget or lower --batch-size."
    )


def _parts(ledger: Ledger, scope: Scope) -> str:
    lines = ["saved_activations", "gradients", "optimizer_state", "draw_index"]
    if scope is Scope.TRAINING:
        lines += ["active_weights", "always_trained", "residuals"]
    amounts = ((name, getattr(ledger.lines, name)) for name in lines)
    return ", ".join(f"{name.replace('_', ' ')} {format_bytes(amount)}" for name, amount in amounts if amount)
