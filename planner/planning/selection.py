"""Choosing what to train: which layers are candidates, and how many channels each strategy gives them.

Held by ``tests/planner/planning/test_planning.py``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
from torch import nn

from trady.planner.costs import MeasuredTable, settled
from trady.planner.errors import PlanError
from trady.planner.ledger import BatchedLedger, CostTable
from trady.planner.options import Inclusion, Scope, Strategy
from trady.planner.plan import NOT_SOLVED, SolverRecord, StrategyRecord
from trady.planner.planning.choice_options import ChoiceOptions
from trady.planner.planning.requests import (
    NOTHING_FOUND,
    NOTHING_OF_WORTH,
    cheapest_layer,
    least_counts,
    refuse_budget,
)
from trady.planner.priorities import LayerPriority, Priorities, slice_norms
from trady.planner.sampling import (
    STRATEGIES,
    LayerRule,
    check_scheme_fits,
    eligible_layers,
    scheme_counts,
    scheme_ratios,
)
from trady.planner.solver import Selection, SolverStatus, rounded_figure, solve, solver_version
from trady.planner.tracing import Layer, Trace


@dataclass(frozen=True)
class Choice:
    """Layers and channels, and how they were found."""

    strategy: StrategyRecord
    solver: SolverRecord
    counts: tuple[int, ...]


def candidate_layers(traced: Trace, only: Sequence[str], exclude: Sequence[str], max_depth: int | None) -> list[Layer]:
    """The layers that may be drawn from, in order of first use.

    Args:
        traced: The model's trace.
        only: Patterns of layer names to keep; all where empty.
        exclude: Patterns of layer names to leave out.
        max_depth: Keep the last so many layers.

    Returns:
        The layers, in the model's order.

    Raises:
        PlanError: No layer is left.
    """
    layers = list(traced.layers)
    if not layers:
        raise PlanError(
            "The model has no layer to draw from: no convolution or linear operation beside the head uses a parameter "
            "that requires a gradient as its weight." + _first_reason(traced)
        )
    if max_depth is not None:
        if max_depth < 1:
            raise PlanError(f"Depth must be 1 layer or more, got {max_depth}.")
        layers = layers[-max_depth:]
    kept = [layer for layer in layers if (not only or _matches(layer.name, only)) and not _matches(layer.name, exclude)]
    if not kept:
        names = ", ".join(layer.name for layer in layers[-5:])
        raise PlanError(
            f"No layer is left after --only {' '.join(only) or 'all'} and --exclude {' '.join(exclude) or 'none'}. "
            f"Layers are for instance: {names}."
        )
    return kept


def priorities_of(layers: Sequence[Layer], priorities: Priorities) -> list[LayerPriority]:
    """The norms of each layer, in the layers' order.

    Returns:
        Gradient norms of this model's layers.

    Raises:
        PlanError: The priorities are of another model.
    """
    unmatched = [layer.name for layer in layers if _num_norms(priorities, layer) != layer.in_channels]
    if unmatched:
        raise PlanError(
            f"The priorities are of another model: layers without matching norms: {', '.join(unmatched[:5])}. "
            "Make them with trady-profile from this model."
        )
    return [priorities.by_weight[layer.weight_name] for layer in layers]


def _num_norms(priorities: Priorities, layer: Layer) -> int:
    found = priorities.by_weight.get(layer.weight_name)
    return 0 if found is None else len(found.channel_norms)


def check_some_layer_fits(tables: MeasuredTable, asked: ChoiceOptions) -> MeasuredTable:
    """Tell a hopeless budget before the work.

    Returns:
        The table, more exact where that was needed to tell.

    Raises:
        PlanError: The budget is of the peak, and the peak is not known.

    Error:
        BudgetError: No layer fits; the smallest budget that trains one is named.
    """
    if asked.scope is Scope.PEAK and tables.table.gradient_storages is None:
        raise PlanError(f"{tables.note} Use --scope training.")
    while True:
        cheapest, needed = cheapest_layer(tables.ledger, asked)
        if needed <= asked.budget_bytes:
            return tables
        exact = tables.exact_at(least_counts(tables.table, asked, cheapest))
        if asked.scope is not Scope.PEAK or exact is tables:
            refuse_budget(tables.ledger, asked)
        tables = exact


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _first_reason(traced: Trace) -> str:
    for name, reason in traced.not_drawn.items():
        return f" For instance {name!r} {reason}."
    return ""


def choose_channels(
    asked: ChoiceOptions,
    tables: MeasuredTable,
    priorities: Sequence[LayerPriority],
    model: nn.Module,
    static_counts: Sequence[int],
) -> tuple[Choice, MeasuredTable]:
    """Layers and channel counts by the asked strategy.

    Args:
        asked: Budget, scope, strategy and bounds.
        tables: Costs of the candidate layers.
        priorities: One entry per layer of the table, in its order.
        model: Its weights rank the channels of a static scheme.
        static_counts: What :func:`scheme_counts_of` gave, for ``su``.

    Returns:
        The choice, without counts for strategies that fill the budget anew each epoch, and the table it was made by.

    Error:
        BudgetError: The budget trains no layer.
    """
    rule, table = STRATEGIES[asked.strategy], tables.table
    if asked.strategy is Strategy.SOLVER:
        of_peak = asked.scope is Scope.PEAK
        known = tables.exact_within(asked.budget_bytes) if of_peak else tables
        return settled(known, lambda tables: solved(asked, tables.ledger, priorities), again=of_peak)
    if rule.layers is not LayerRule.SCHEME:
        pool = tuple(eligible_layers(rule.layers, tables.ledger, priorities, asked.budget_bytes))
        return Choice(StrategyRecord(name=asked.strategy, eligible=pool), NOT_SOLVED, (0,) * len(table.layers)), tables
    eligible = tuple(index for index, count in enumerate(static_counts) if count)
    channels = {
        table.layers[index].name: largest_weights(model, table, index, static_counts[index]) for index in eligible
    }
    record = StrategyRecord(name=asked.strategy, eligible=eligible, fixed_channels=channels)
    return Choice(record, NOT_SOLVED, tuple(static_counts)), tables


def solved(asked: ChoiceOptions, ledger: BatchedLedger, priorities: Sequence[LayerPriority]) -> Choice:
    """The solver's counts under a budget.

    Args:
        asked: Budget, scope and bounds.
        ledger: Costs of the candidate layers.
        priorities: One entry per layer of the table, in its order.

    Raises:
        PlanError: All norms are zero, or the search found nothing in its time.

    Error:
        BudgetError: The budget trains no layer.
    """
    if not any(layer.norm_sum for layer in priorities):
        raise PlanError(NOTHING_OF_WORTH)
    limits = asked.limits()
    norms = None if asked.inclusion is Inclusion.UNIFORM else [layer.channel_norms for layer in priorities]
    selection = solve(ledger, [layer.norm_sum for layer in priorities], limits, norms)
    if selection.status is SolverStatus.INFEASIBLE:
        refuse_budget(ledger, asked)
    if selection.status is SolverStatus.UNKNOWN:
        raise PlanError(NOTHING_FOUND)
    strategy = StrategyRecord(name=Strategy.SOLVER, eligible=tuple(range(len(ledger.table.layers))))
    return Choice(strategy, _solver_record(selection, ledger, limits.horizon, asked.inclusion), selection.counts)


def scheme_counts_of(
    asked: ChoiceOptions, tables: MeasuredTable, convolutions: Sequence[str]
) -> tuple[list[int], MeasuredTable]:
    """Channels per layer of a static scheme; none for other strategies.

    Args:
        asked: Budget, scope and strategy.
        tables: Costs of the candidate layers.
        convolutions: The model's convolutions by name, in order: published schemes count them.

    Returns:
        The counts, and the table, exact for them.

    Error:
        BudgetError: The scheme needs more than the budget.
        StrategyError: The scheme is missing or does not fit the model.
    """
    if asked.strategy is not Strategy.SU:
        return [0] * len(tables.table.layers), tables
    counts = scheme_counts(tables.table, scheme_ratios(asked.scheme, convolutions))
    exact = tables.exact_at(counts)
    check_scheme_fits(exact.ledger, counts, asked.scope, asked.budget_bytes)
    return counts, exact


def largest_weights(model: nn.Module, table: CostTable, index: int, count: int) -> tuple[int, ...]:
    """MIT's choice inside a layer: the input channels whose weights have the largest norm.

    Source:
        Sparse Update (Lin et al., NeurIPS 2022).
    """
    layer = table.layers[index]
    weight = model.get_parameter(layer.weight_name)
    order = slice_norms(weight, layer.channel_dim, layer.groups).argsort(descending=True, stable=True)
    return tuple(sorted(order[:count].tolist()))


def _solver_record(selection: Selection, ledger: BatchedLedger, horizon: float, inclusion: Inclusion) -> SolverRecord:
    macs, most = ledger.backward_macs(np.array([selection.counts, selection.best_counts])).tolist()
    return SolverRecord(
        status="optimal" if selection.status is SolverStatus.OPTIMAL else "feasible",
        value=rounded_figure(selection.value),
        bound=rounded_figure(selection.bound),
        gap=rounded_figure(selection.gap),
        given_up=rounded_figure(selection.given_up),
        backward_saved=rounded_figure(1 - macs / most) if most else 0.0,
        horizon=horizon,
        inclusion=inclusion,
        ortools_version=solver_version(),
    )
