"""What is asked of a choice, and what it takes at the least: the cheapest layer, the smallest budget. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from trady.planner.errors import BudgetError, PlanError, TradyError
from trady.planner.ledger import BatchedLedger, CostTable, Ledger
from trady.planner.options import DType, Inclusion, OptimizerKind, Scope, Strategy
from trady.planner.sampling import DEFAULT_HORIZON
from trady.planner.solver import Limits
from trady.planner.units import format_bytes

NOTHING_OF_WORTH: Final = (
    "All gradient norms are zero: nothing is worth training. Check that the loss depends on the output, or measure on "
    "more data."
)
NOTHING_FOUND: Final = (
    "The search stopped before it found a plan. Leave out --max-backward-macs, or narrow it with --only."
)


@dataclass(frozen=True)
class Request:
    """What is asked of a choice, read and checked.

    Args:
        budget_bytes: Bytes of the scope.
        scope: Lines the budget holds.
        optimizer: What is kept for each trained element.
        strategy: Layer and draw rule.
        dtype: Element type asked for, if any.
        epochs: Planned epochs.
        min_channels: Fewest channels of a chosen layer.
        max_backward_macs: Most multiply-adds of a backward pass, if any.
        horizon: Draws the solver's value looks ahead; ``None`` where not said.
        inclusion: How likely the solver's channels are to be drawn.
    """

    budget_bytes: int
    scope: Scope
    optimizer: OptimizerKind
    strategy: Strategy
    dtype: DType | None
    epochs: int
    min_channels: int
    max_backward_macs: int | None
    horizon: float | None
    inclusion: Inclusion = Inclusion.UNIFORM

    def check(self, scheme: Mapping[str, float] | str | None) -> None:
        """Collect every contradiction and say them at once.

        Args:
            scheme: The static scheme that was given, if any.

        Raises:
            PlanError: Options contradict each other or are out of range.
        """
        rules = (
            (
                self.dtype is not DType.INT8 or self.scope is Scope.UPDATE,
                "Element type 'int8' is accounting for scope 'update' only. Use --scope update.",
            ),
            (
                scheme is None or self.strategy is Strategy.SU,
                f"A scheme is for strategy 'su', not {self.strategy.value!r}. Use --strategy su.",
            ),
            (self.epochs >= 1, f"Epochs must be 1 or more, got {self.epochs}."),
            (self.min_channels >= 1, f"Fewest channels of a layer must be 1 or more, got {self.min_channels}."),
            (self.horizon is None or self.horizon > 0, f"Horizon must be above 0 draws, got {self.horizon}."),
            (
                self.max_backward_macs is None or self.max_backward_macs > 0,
                f"Backward MACs must be bounded above 0, got {self.max_backward_macs}.",
            ),
            (
                self.strategy is Strategy.SOLVER or not self._only_the_solver_heeds(),
                f"Strategy {self.strategy.value!r} fills the budget by its own rule: --min-channels, "
                "--max-backward-macs, --horizon and --inclusion are the solver's. Leave them out, or use --strategy "
                "solver.",
            ),
        )
        problems = [message for holds, message in rules if not holds]
        if problems:
            raise PlanError(" ".join(problems))

    def limits(self) -> Limits:
        """The same for the solver: its value looks ahead over no more draws than there are epochs."""
        horizon = DEFAULT_HORIZON if self.horizon is None else self.horizon
        return Limits(
            self.budget_bytes,
            self.scope,
            min_channels=self.min_channels,
            max_backward_macs=self.max_backward_macs,
            horizon=min(horizon, float(self.epochs)),
        )

    def _only_the_solver_heeds(self) -> bool:
        of_solver = self.horizon is not None or self.inclusion is not Inclusion.UNIFORM
        return of_solver or self.min_channels > 1 or self.max_backward_macs is not None


def cheapest_layer(ledger: BatchedLedger, request: Request, eligible: Sequence[int] | None = None) -> tuple[int, int]:
    """The layer that trains within the fewest bytes, and those bytes: the smallest budget that trains anything.

    Args:
        ledger: Costs of the candidate layers.
        request: Scope, and fewest channels of a layer.
        eligible: Indices of the layers to look at; all by default.
    """
    table = ledger.table
    pool = list(range(len(table.layers))) if eligible is None else list(eligible)
    counts = np.zeros((len(pool), len(table.layers)), dtype=np.int64)
    for row, index in enumerate(pool):
        counts[row, index] = _least_channels(table, request, index)
    needed = ledger.scope_bytes(counts, request.scope)
    row = int(needed.argmin())
    return pool[row], int(needed[row])


def least_counts(table: CostTable, request: Request, index: int) -> list[int]:
    """The fewest channels of one layer, and none of the others."""
    counts = [0] * len(table.layers)
    counts[index] = _least_channels(table, request, index)
    return counts


def _least_channels(table: CostTable, request: Request, index: int) -> int:
    return min(request.min_channels, table.layers[index].in_channels)


def no_layer_fits(ledger: BatchedLedger, request: Request, eligible: Sequence[int] | None = None) -> TradyError:
    """The error of a budget that trains nothing: which layer comes cheapest, and what it takes."""
    table = ledger.table
    cheapest, needed = cheapest_layer(ledger, request, eligible)
    layer = table.layers[cheapest]
    if needed <= request.budget_bytes:
        fewest = np.array([least_counts(table, request, index) for index in range(len(table.layers))])
        least = int(ledger.backward_macs(fewest).min())
        return PlanError(
            f"No layer fits the budget with --max-backward-macs {request.max_backward_macs}: the shallowest needs "
            f"{least} MACs. Raise --max-backward-macs."
        )
    counts = least_counts(table, request, cheapest)
    if request.scope is Scope.PEAK:
        return _peak_error(ledger, request, cheapest, needed)
    parts = _parts(ledger.of(counts), request.scope)
    channels = f"{counts[cheapest]} channel" + ("s" if counts[cheapest] > 1 else "")
    return BudgetError(
        f"Budget {format_bytes(request.budget_bytes)} trains no layer: the cheapest, {layer.name!r}, needs "
        f"{format_bytes(needed)} ({needed} B) for {channels} ({parts}). Raise --budget or lower --batch-size."
    )


def _peak_error(ledger: BatchedLedger, request: Request, cheapest: int, needed: int) -> BudgetError:
    """A budget of the peak says what a forward pass alone takes: below that nothing but a smaller batch helps."""
    table, inference = ledger.table, ledger.peak_model.inference_bytes()
    layer = table.layers[cheapest]
    budget = format_bytes(request.budget_bytes)
    alone = f"Inference alone peaks at {format_bytes(inference)} ({inference} B) at batch size {table.batch_size}"
    if inference > request.budget_bytes:
        return BudgetError(
            f"Budget {budget} does not hold the model even without training. {alone}. "
            f"Lower --batch-size, or raise --budget to {format_bytes(needed)} ({needed} B), at which "
            f"{layer.name!r} trains."
        )
    channels = min(request.min_channels, layer.in_channels)
    return BudgetError(
        f"Budget {budget} trains no layer: the cheapest, {layer.name!r}, peaks at {format_bytes(needed)} ({needed} B) "
        f"with {channels} channel{'s' if channels > 1 else ''}. {alone}. Raise --budget or lower --batch-size."
    )


def _parts(ledger: Ledger, scope: Scope) -> str:
    lines = ["saved_activations", "gradients", "optimizer_state", "draw_index"]
    if scope is Scope.TRAINING:
        lines += ["active_weights", "always_trained", "residuals"]
    amounts = ((name, getattr(ledger.lines, name)) for name in lines)
    return ", ".join(f"{name.replace('_', ' ')} {format_bytes(amount)}" for name, amount in amounts if amount)
