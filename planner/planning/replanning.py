"""Another strategy at the same budget, from a plan's own table: no model, no torch."""

from collections.abc import Mapping, Sequence
from math import fsum
from typing import Final

from trady.planner.errors import StrategyError
from trady.planner.ledger import FORWARD_CONVOLUTIONS, BatchedLedger
from trady.planner.options import Strategy, choose
from trady.planner.plan import NOT_SOLVED, Plan, StrategyRecord
from trady.planner.planning.choice_options import ChoiceOptions
from trady.planner.planning.requests import refuse_budget
from trady.planner.priorities import LayerPriority
from trady.planner.sampling import (
    DEFAULT_HORIZON,
    STRATEGIES,
    LayerRule,
    check_scheme_fits,
    covered_shares,
    distinct_channels,
    draw,
    eligible_layers,
    half_words_of_runs,
    scheme_counts,
    scheme_ratios,
)

#: Stream, beside those of the draws, of the channels that stand in for MIT's choice where there are no weights.
_SCHEME_STREAM: Final = 3


def replan(plan: Plan, strategy: Strategy | str, scheme: Mapping[str, float] | str | None = None) -> Plan:
    """The plan that another strategy makes of the same table, norms and budget.

    A plan holds no weights: the channels of a static scheme, which MIT chooses by weight norm, are drawn at random.
    What they cost is the same.

    Args:
        plan: The plan.
        strategy: The other strategy, or its name; the plan's own returns the plan as it is.
        scheme: For ``su``: layer name -> ratio, or the name of a published scheme.

    Returns:
        The plan with the other strategy's choice.

    Error:
        StrategyError: The strategy is unknown, or a scheme is missing or does not fit the model.
        BudgetError: The budget trains no layer under this strategy, or does not hold the scheme.
    """
    wanted = choose(Strategy, strategy, "Strategy")
    if wanted is plan.strategy.name and scheme is None:
        return plan
    if wanted is Strategy.SOLVER:
        return _solved(plan)
    if wanted is Strategy.SU:
        record = _scheme_record(plan, scheme)
    else:
        eligible = _eligible(plan, STRATEGIES[wanted].layers)
        record = StrategyRecord(name=wanted, eligible=tuple(eligible))
    return with_first_draw(plan.model_copy(update={"strategy": record, "solver": NOT_SOLVED}))


def with_first_draw(plan: Plan) -> Plan:
    """Counts, ledger and value of the first epoch, for strategies whose draw is not the solver's.

    Error:
        BudgetError: Nothing fits.
    """
    costs = BatchedLedger(plan.table)
    first = draw(plan, 0, ledger=costs)
    counts = first.counts(plan.table)
    if not any(counts):
        refuse_budget(costs, _asked(plan), plan.strategy.eligible)
    dynamic = STRATEGIES[plan.strategy.name].dynamic
    horizon = min(DEFAULT_HORIZON, float(plan.settings.epochs)) if dynamic else 1.0
    reached = fsum(covered_shares(plan.layer_values, plan.table, counts, horizon))
    solver = plan.solver.model_copy(update={"value": reached, "horizon": horizon})
    return plan.model_copy(update={"counts": counts, "ledger": first.ledger(costs), "solver": solver})


def layer_priorities(plan: Plan) -> list[LayerPriority]:
    """The plan's norms as the strategies' layer rules read them."""
    return [
        LayerPriority(
            name=layer.name,
            weight_name=layer.weight_name,
            channel_norms=plan.channel_norms(index),
            weight_elements=layer.weight_elements,
            sample_elements=layer.sample_elements,
        )
        for index, layer in enumerate(plan.table.layers)
    ]


def _eligible(plan: Plan, rule: LayerRule) -> Sequence[int]:
    return eligible_layers(rule, BatchedLedger(plan.table), layer_priorities(plan), plan.settings.budget_bytes)


def _solved(plan: Plan) -> Plan:
    from trady.planner.planning.selection import solved  # torch and ortools, which the other strategies do not need

    costs = BatchedLedger(plan.table)
    choice = solved(_asked(plan), costs, layer_priorities(plan))
    ledger = costs.of(choice.counts)
    update = {"strategy": choice.strategy, "solver": choice.solver, "counts": choice.counts, "ledger": ledger}
    return plan.model_copy(update=update)


def _asked(plan: Plan) -> ChoiceOptions:
    settings = plan.settings
    return ChoiceOptions(
        budget_bytes=settings.budget_bytes,
        scope=settings.scope,
        optimizer=settings.optimizer,
        strategy=plan.strategy.name,
        epochs=settings.epochs,
    )


def _scheme_record(plan: Plan, scheme: Mapping[str, float] | str | None) -> StrategyRecord:
    """A static scheme; its channels are the first of a permutation that is the same whatever the run's seed."""
    table = plan.table
    convolutions = [layer.name for layer in table.layers if layer.kind in FORWARD_CONVOLUTIONS]
    if isinstance(scheme, str):
        _check_all_convolutions(plan, len(convolutions))
    counts = scheme_counts(table, scheme_ratios(scheme, convolutions))
    check_scheme_fits(BatchedLedger(table), counts, plan.settings.scope, plan.settings.budget_bytes)
    eligible = tuple(index for index, count in enumerate(counts) if count)
    channels = {}
    for index in eligible:
        words = half_words_of_runs([index], 0, _SCHEME_STREAM, counts[index])
        drawn = distinct_channels(words, table.layers[index].in_channels)[0]
        channels[table.layers[index].name] = tuple(sorted(drawn.tolist()))
    return StrategyRecord(name=Strategy.SU, eligible=eligible, fixed_channels=channels)


def _check_all_convolutions(plan: Plan, found: int) -> None:
    """Published schemes number the model's convolutions: a table that leaves some out would shift them.

    Raises:
        StrategyError: The table leaves a convolution out.
    """
    known = {layer.weight_name for layer in plan.table.layers}
    left_out = [name for name, line in plan.model.tensors.items() if line.count(",") >= 3 and name not in known]
    if left_out:
        raise StrategyError(
            f"Published schemes number the model's convolutions, but the plan's table has {found} and leaves out "
            f"{len(left_out)}, {left_out[0]!r} first. Make the plan without --only and --exclude, or give the scheme "
            "by layer names."
        )
