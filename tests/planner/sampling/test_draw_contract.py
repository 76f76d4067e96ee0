"""What every strategy's draw keeps to, whatever it draws by."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from tables import cost_table, layer_costs, plan_of
from trady.planner.ledger import BatchedLedger
from trady.planner.ledger.cost_records import GroupInput, InputGroup, KeptBytes, Upstream
from trady.planner.options import Scope, Strategy
from trady.planner.plan.plan import Plan
from trady.planner.planning.replanning import replan
from trady.planner.sampling.draws import ChannelDraws
from trady.planner.sampling.schedule import draw, draw_runs
from trady.planner.sampling.strategies import STRATEGIES
from trady.planner.sampling.strategies.contract import Observes

ALL = list(Strategy)
RANDOM = [s for s in ALL if STRATEGIES[s].draw.is_uniform or STRATEGIES[s].observes is Observes.OWN_DRAWS]
UNIFORM = [s for s in RANDOM if s is not Strategy.MEDYATE]
NESTED = [s for s in ALL if STRATEGIES[s].draw.is_uniform]
RUNS = 400


def plan(strategy: Strategy, scope: Scope = Scope.UPDATE) -> Plan:
    """Five layers on four inputs; layers 1 and 2 read one tensor, which layer 4's training keeps whole anyway."""
    upstreams = [Upstream(always=False, layers=((4, 4),)), Upstream(always=False, layers=((0, 3),))]
    kept_by = (None, 0, None, None)
    groups = [InputGroup(inputs=(GroupInput(channel_bytes=18, kept_by=by),)) for by in kept_by]
    sizes, members = (8, 12, 12, 20, 6), (0, 1, 1, 2, 3)
    layers = [
        layer_costs(i, size, group, optimizer=1 + i % 2, weight_elements=2 + i)
        for i, (size, group) in enumerate(zip(sizes, members, strict=True))
    ]
    kept = [KeptBytes(num_bytes=70, upstream=upstream, line="residuals", storage=None) for upstream in (0, 1)]
    rng = np.random.default_rng(1)
    norms = [tuple(rng.lognormal(0, 0.4, size).tolist()) for size in sizes]
    budget = 900 if scope is Scope.UPDATE else 1400
    base = plan_of(
        cost_table(layers, groups, upstreams, kept),
        budget_bytes=budget,
        scope=scope,
        counts=(2, 3, 2, 2, 1),
        norms=norms,
    )
    scheme = {"layer1": 0.25, "layer3": 0.2} if strategy is Strategy.SU else None
    return base if strategy is Strategy.SOLVER else replan(base, strategy, scheme)


def observed(of: Plan, epoch: int, runs: int) -> dict[int, Any] | None:
    """Norms as they might have been seen by then; some channels never were."""
    if not epoch:
        return None
    rng = np.random.default_rng(epoch)
    sizes = [layer.in_channels for layer in of.table.layers]
    return {
        index: np.where(rng.random((runs, size)) < 0.3, np.nan, rng.lognormal(size=(runs, size)))
        for index, size in enumerate(sizes)
    }


def drawn_of(of: Plan, epoch: int, runs: int = RUNS) -> ChannelDraws:
    return draw_runs(of, epoch, range(runs), observed=observed(of, epoch, runs))


@pytest.mark.parametrize("scope", [Scope.UPDATE, Scope.TRAINING])
@pytest.mark.parametrize("strategy", ALL)
def test_never_over_budget_in_any_epoch(strategy: Strategy, scope: Scope) -> None:
    of = plan(strategy, scope)
    for epoch in range(4):
        drawn = drawn_of(of, epoch)
        spent = BatchedLedger(of.table).scope_bytes(drawn.counts, scope, drawn.stored, drawn.indexed)
        assert spent.min() > 0 and spent.max() <= of.settings.budget_bytes


@pytest.mark.parametrize("strategy", ALL)
def test_no_channel_twice_and_only_eligible_ones(strategy: Strategy) -> None:
    of = plan(strategy)
    for epoch in range(3):
        drawn = drawn_of(of, epoch)
        assert set(drawn.channels) <= set(of.strategy.eligible)
        for index, channels in drawn.channels.items():
            size = of.table.layers[index].in_channels
            for row, count in zip(channels, drawn.counts[:, index], strict=True):
                assert len(set(row[:count].tolist())) == count
                assert (row[:count] < size).all() and (row[count:] == size).all()


@pytest.mark.parametrize("strategy", ALL)
def test_the_same_seed_draws_the_same_alone_and_among_others(strategy: Strategy) -> None:
    of, runs = plan(strategy), 7
    seen = observed(of, 2, runs)
    together = draw_runs(of, 2, range(runs), observed=seen)
    for seed in range(runs):
        alone = None if seen is None else {of.table.layers[i].name: norms[seed].tolist() for i, norms in seen.items()}
        one = draw(of, 2, seed=seed, observed=alone).channels
        found = together.of_run(seed, of.table).channels
        assert {name: row.tolist() for name, row in one.items()} == {name: row.tolist() for name, row in found.items()}


@pytest.mark.parametrize("strategy", RANDOM)
def test_every_eligible_channel_can_be_drawn(strategy: Strategy) -> None:
    of = plan(strategy)
    for index in of.strategy.eligible:
        reached: set[int] = set()
        for epoch in range(3):
            drawn = drawn_of(of, epoch).channels.get(index)
            reached |= set() if drawn is None else set(np.unique(drawn).tolist())
        assert reached >= set(range(of.table.layers[index].in_channels))


@pytest.mark.parametrize("strategy", UNIFORM)
def test_channels_of_a_layer_are_equally_likely(strategy: Strategy) -> None:
    of = plan(strategy)
    drawn = draw_runs(of, 1, range(6000))
    for index, channels in drawn.channels.items():
        size = of.table.layers[index].in_channels
        counted = np.bincount(channels.reshape(-1), minlength=size + 1)[:size]
        assert stats.chisquare(counted).pvalue > 1e-4


@pytest.mark.parametrize("strategy", NESTED)
def test_members_of_an_input_group_draw_nested_channels(strategy: Strategy) -> None:
    of = plan(strategy)
    drawn = drawn_of(of, 1)
    if not {1, 2} <= set(drawn.channels):
        pytest.skip("this strategy draws from one of the two layers only")
    for run in range(RUNS):
        found = drawn.of_run(run, of.table)
        members = found.by_group(of.table).get(1)
        assert members is None or found.is_nested(members)
    assert (drawn.stored[:, 1] == drawn.counts[:, 1:3].max(axis=1)).all()


@pytest.mark.parametrize("strategy", [s for s in ALL if not STRATEGIES[s].dynamic])
def test_static_strategies_draw_the_same_in_every_epoch(strategy: Strategy) -> None:
    of = plan(strategy)
    first, later = drawn_of(of, 0), drawn_of(of, 3)
    assert all((later.channels[index] == channels).all() for index, channels in first.channels.items())
