"""Draws: what holds for every strategy, every epoch and every seed."""

import subprocess
import sys
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tables import cost_table, cost_tables, full_counts, layer_costs, plan_of, scope_bytes
from trady.planner.errors import StrategyError
from trady.planner.ledger import BatchedLedger
from trady.planner.ledger.cost_records import INDEX_BYTES, GroupInput, InputGroup, KeptBytes, Upstream
from trady.planner.ledger.cost_table import CostTable
from trady.planner.options import Scope, Strategy
from trady.planner.plan.plan import Plan
from trady.planner.sampling.budget_state import BudgetState
from trady.planner.sampling.draws import ChannelDraw
from trady.planner.sampling.schedule import draw, draw_epochs, draw_runs
from trady.planner.sampling.strategies import STRATEGIES

FILLING = [s for s in Strategy if s not in (Strategy.SOLVER, Strategy.SU)]
STATIC = [Strategy.S_TOPK_RANDOM, Strategy.S_FULL_RANDOM, Strategy.S_DET_RGN]


def plain_table(*widths: int, channel_bytes: int = 16) -> CostTable:
    """Layers on inputs of their own, no residuals: a channel costs 12 + channel_bytes + 4 index bytes."""
    groups = [InputGroup(inputs=(GroupInput(channel_bytes=channel_bytes, kept_by=None),)) for _ in widths]
    return cost_table([layer_costs(i, width, i, optimizer=0) for i, width in enumerate(widths)], groups)


def as_lists(drawn: ChannelDraw) -> dict[str, list[int]]:
    return {name: channels.tolist() for name, channels in drawn.channels.items()}


@st.composite
def plans(draw_: st.DrawFn) -> Plan:
    table = draw_(cost_tables(max_layers=4, max_channels=6))
    scope = draw_(st.sampled_from([Scope.UPDATE, Scope.TRAINING]))
    least = scope_bytes(table, (0,) * len(table.layers), scope)
    most = scope_bytes(table, full_counts(table), scope)
    norms = [tuple(draw_(st.floats(0, 9)) for _ in range(layer.in_channels)) for layer in table.layers]
    return plan_of(
        table,
        draw_(st.sampled_from(FILLING)),
        budget_bytes=max(1, draw_(st.integers(least, max(least, most)))),
        scope=scope,
        norms=norms,
        eligible=sorted(draw_(st.sets(st.integers(0, len(table.layers) - 1), min_size=1))),
    )


@settings(max_examples=150, deadline=None)
@given(plans(), st.integers(0, 9), st.integers(0, 2**40), st.booleans())
def test_no_draw_passes_the_budget(plan: Plan, epoch: int, seed: int, with_observed: bool) -> None:
    table = plan.table
    observed = {
        layer.name: [
            float("nan") if (channel + epoch) % 3 == 0 else channel * 0.5 for channel in range(layer.in_channels)
        ]
        for layer in table.layers[::2]
    }
    drawn = draw(plan, epoch, seed=seed, observed=observed if with_observed else None)
    ledger = drawn.ledger(BatchedLedger(table))
    spent = ledger.scopes.training if plan.settings.scope is Scope.TRAINING else ledger.scopes.update
    assert spent <= plan.settings.budget_bytes
    eligible = {table.layers[index].name for index in plan.strategy.eligible}
    for layer in table.layers:
        channels = drawn.channels.get(layer.name)
        if channels is not None:
            assert layer.name in eligible
            assert len(set(channels.tolist())) == len(channels) > 0
            assert channels.dtype == np.int64 and channels.min() >= 0 and channels.max() < layer.in_channels
    assert as_lists(draw(plan, epoch, seed=seed, observed=observed if with_observed else None)) == as_lists(drawn)


@settings(max_examples=80, deadline=None)
@given(cost_tables(max_channels=6), st.sampled_from([Scope.UPDATE, Scope.TRAINING]), st.data())
def test_a_budget_spends_what_the_ledger_says(table: CostTable, scope: Scope, data: Any) -> None:
    """The budget is set so that exactly the channel asked for fits, or misses by one byte."""
    budget = BudgetState(BatchedLedger(table), scope, 10**9, 1, nested=False)
    taken: dict[str, list[int]] = {}
    for _ in range(data.draw(st.integers(1, 12))):
        index = data.draw(st.integers(0, len(table.layers) - 1))
        layer = table.layers[index]
        left = [c for c in range(layer.in_channels) if c not in taken.get(layer.name, [])]
        if not left:
            continue
        channel = data.draw(st.sampled_from(left))
        assert budget.take(np.array([0]), np.array([[index]]), np.array([[channel]]))
        taken.setdefault(layer.name, []).append(channel)
        drawn = ChannelDraw(0, {name: np.asarray(found) for name, found in taken.items()})
        scopes = drawn.ledger(BatchedLedger(table)).scopes
        nested_by_chance = sum(
            INDEX_BYTES * (sum(map(len, members.values())) - max(map(len, members.values())))
            for members in drawn.by_group(table).values()
            if drawn.is_nested(members)
        )
        expected = scopes.training if scope is Scope.TRAINING else scopes.update
        assert 10**9 - budget.left[0] == expected + nested_by_chance


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(32, 600), st.sampled_from(FILLING))
def test_a_budget_is_filled_to_the_last_channel(widths: list[int], budget: int, strategy: Strategy) -> None:
    """Where every channel costs the same 32 bytes, as many are drawn as fit."""
    drawn = draw(plan_of(plain_table(*widths), strategy, budget_bytes=budget), 1, seed=3)
    assert sum(map(len, drawn.channels.values())) == min(budget // 32, sum(widths))


@pytest.mark.parametrize("strategy", [Strategy.SOLVER, *FILLING])
def test_epochs_and_seeds_draw_anew_unless_static(strategy: Strategy) -> None:
    table = plain_table(40, 60)
    plan = plan_of(table, strategy, budget_bytes=32 * 20, counts=(8, 12), norms=[tuple(range(40)), tuple(range(60))])
    first = as_lists(draw(plan, 1))
    if strategy in (Strategy.D_DET_RGN, Strategy.S_DET_RGN):
        assert as_lists(draw(plan, 1, seed=1)) == as_lists(draw(plan, 2)) == first
        return
    assert as_lists(draw(plan, 1, seed=1)) != first
    assert (as_lists(draw(plan, 2)) == first) == (strategy in STATIC)


@settings(max_examples=60, deadline=None)
@given(plans(), st.integers(0, 5), st.lists(st.integers(0, 2**70), min_size=1, max_size=6), st.booleans())
def test_many_runs_draw_what_each_draws_alone(plan: Plan, epoch: int, seeds: list[int], with_observed: bool) -> None:
    """Also their ledgers are the same: the simulator's bytes are the engine's."""
    table = plan.table
    rng = np.random.default_rng(epoch)
    observed = {
        index: np.where(rng.random((len(seeds), layer.in_channels)) < 0.3, np.nan, rng.random(layer.in_channels))
        for index, layer in enumerate(table.layers)
        if index % 2 == 0
    }
    drawn = draw_runs(plan, epoch, seeds, observed=observed if with_observed else None)
    lines = BatchedLedger(table).lines(drawn.counts, drawn.stored, drawn.indexed)
    for run, seed in enumerate(seeds):
        seen = {table.layers[index].name: norms[run].tolist() for index, norms in observed.items()}
        alone = draw(plan, epoch, seed=seed, observed=seen if with_observed else None)
        assert as_lists(drawn.of_run(run, table)) == as_lists(alone)
        ledger = alone.ledger(BatchedLedger(table)).lines.model_dump(exclude={"workspace"})
        assert {name: int(amounts[run]) for name, amounts in lines.items()} == ledger


def test_what_two_layers_keep_is_paid_once() -> None:
    """40 B are kept when either trains; each channel costs 13 B: this budget holds all four."""
    groups = [InputGroup(inputs=(GroupInput(channel_bytes=1, kept_by=None),)) for _ in range(2)]
    layers = [layer_costs(index, 2, index, optimizer=0, weight_elements=1) for index in range(2)]
    upstreams = [Upstream(always=False, layers=((0, 1),))]
    kept = [KeptBytes(num_bytes=40, upstream=0, line="residuals", storage=None)]
    plan = plan_of(
        cost_table(layers, groups, upstreams, kept), Strategy.D_FULL_RANDOM, budget_bytes=40 + 4 * 13,
        scope=Scope.TRAINING,
    )  # fmt: skip
    assert (draw_runs(plan, 0, range(50)).counts.sum(axis=1) == 4).all()


@pytest.mark.parametrize("strategy", STATIC)
def test_static_strategies_look_at_nothing_observed(strategy: Strategy) -> None:
    plan = plan_of(plain_table(10), strategy, budget_bytes=32 * 3, norms=[tuple(range(10))])
    observed = {"layer0": [float(10 - channel) for channel in range(10)]}
    assert as_lists(draw(plan, 4, observed=observed)) == as_lists(draw(plan, 0))


def test_another_process_draws_the_same(tmp_path: Any) -> None:
    plan = plan_of(plain_table(40, 60), Strategy.TRADY, budget_bytes=32 * 20)
    plan.save(tmp_path / "plan.json")
    code = (
        "import sys; from trady.planner.plan.plan import Plan; from trady.planner.sampling.schedule import draw;"
        f"d = draw(Plan.load({str(tmp_path / 'plan.json')!r}), 7, seed=11);"
        "print({n: c.tolist() for n, c in d.channels.items()})"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == str(as_lists(draw(plan, 7, seed=11)))


def chi_square(counts: Counter[int], size: int) -> float:
    return float(stats.chisquare([counts[channel] for channel in range(size)]).pvalue)


@pytest.mark.parametrize("strategy", [Strategy.SOLVER, Strategy.TRADY, Strategy.MEDYATE])
@pytest.mark.parametrize("over", ["seeds", "epochs"])
def test_channels_are_drawn_uniformly(strategy: Strategy, over: str) -> None:
    plan = plan_of(plain_table(20), strategy, budget_bytes=32, counts=(1,))
    drawn: Counter[int] = Counter()
    if over == "seeds":
        drawn.update(draw_runs(plan, 0, range(3000)).channels[0][:, 0].tolist())
    else:
        drawn.update(channel for epoch in range(600) for channel in draw(plan, epoch).channels["layer0"].tolist())
    assert chi_square(drawn, 20) > 1e-4


def test_layers_are_filled_in_proportion_to_their_channels() -> None:
    plan = plan_of(plain_table(30, 10), Strategy.D_FULL_RANDOM, budget_bytes=32)
    counts = draw_runs(plan, 0, range(4000)).counts
    assert (counts.sum(axis=1) == 1).all()
    assert stats.binomtest(int(counts[:, 0].sum()), 4000, 0.75).pvalue > 1e-4


@pytest.mark.parametrize("budget", [32 * 7, 32 * 130, 32 * 250])
def test_wide_layers_are_filled_uniformly(budget: int) -> None:
    """Few, some and nearly all of 300 channels, on one price: each is as likely, in every layer and at every place."""
    plan = plan_of(plain_table(200, 100), Strategy.D_FULL_RANDOM, budget_bytes=budget)
    drawn = draw_runs(plan, 3, range(2000))
    number = budget // 32
    assert (drawn.counts.sum(axis=1) == number).all()
    hypergeometric = stats.hypergeom(300, 200, number)
    mean, error = hypergeometric.mean(), hypergeometric.std() / 2000**0.5
    assert abs(drawn.counts[:, 0].mean() - mean) < 4.5 * error
    assert np.var(drawn.counts[:, 0]) == pytest.approx(hypergeometric.var(), rel=0.2)
    for index, size in enumerate((200, 100)):
        every = np.bincount(drawn.channels[index].reshape(-1), minlength=size + 1)[:size]
        first = np.bincount(drawn.channels[index][:, 0], minlength=size + 1)[:size]
        assert abs(every / 2000 - every.mean() / 2000).max() < 5 * 0.5 / 2000**0.5
        assert stats.chisquare(first).pvalue > 1e-4


@pytest.mark.parametrize("scope", [Scope.UPDATE, Scope.TRAINING])
def test_nothing_that_still_fits_is_left(scope: Scope) -> None:
    """Layers of six prices: when a run ends, the budget holds not one more channel of any."""
    groups = [InputGroup(inputs=(GroupInput(channel_bytes=16 * 2**i, kept_by=None),)) for i in range(6)]
    table = cost_table([layer_costs(i, 90, i, optimizer=i % 3) for i in range(6)], groups)
    plan = plan_of(table, Strategy.D_FULL_RANDOM, budget_bytes=9_999, scope=scope)
    counts = draw_runs(plan, 0, range(200)).counts
    assert (BatchedLedger(table).scope_bytes(counts, scope) <= 9_999).all()
    for index in range(6):
        more = counts + np.eye(6, dtype=np.int64)[index]
        assert ((BatchedLedger(table).scope_bytes(more, scope) > 9_999) | (counts[:, index] == 90)).all()


def test_epochs_drawn_together_are_those_drawn_alone() -> None:
    plan = plan_of(plain_table(400, 300), Strategy.TRADY, budget_bytes=32 * 90)
    for epoch, drawn in enumerate(draw_epochs(plan, range(5), range(3))):
        assert as_lists(drawn.of_run(2, plan.table)) == as_lists(draw(plan, epoch, seed=2))


def test_input_groups_draw_nested_channels() -> None:
    group = InputGroup(inputs=(GroupInput(channel_bytes=16, kept_by=None),))
    table = cost_table([layer_costs(i, 12, 0) for i in range(3)], [group])
    plan = plan_of(table, counts=(3, 7, 5), budget_bytes=10**4)
    drawn = as_lists(draw(plan, 2, seed=5))
    assert drawn["layer0"] == drawn["layer1"][:3]
    assert drawn["layer2"] == drawn["layer1"][:5]
    assert draw(plan, 2, seed=5).ledger(BatchedLedger(table)) == BatchedLedger(table).of((3, 7, 5))


def test_medyate_draws_in_proportion_to_observed_norms() -> None:
    """One channel of five: the probability is norm over the sum, the closed form of a single draw."""
    plan = plan_of(plain_table(5), Strategy.MEDYATE, budget_bytes=32)
    norms = [1.0, 2.0, 3.0, float("nan"), 0.0]  # the unseen channel counts as the largest, 3
    observed = {0: np.broadcast_to(norms, (6000, 5))}
    drawn = Counter(draw_runs(plan, 1, range(6000), observed=observed).channels[0][:, 0].tolist())
    assert drawn[4] == 0
    expected = [6000 * norm / 9 for norm in (1, 2, 3, 3)]
    assert stats.chisquare([drawn[c] for c in range(4)], expected).pvalue > 1e-4


def test_medyate_counts_layers_without_observations_as_unseen() -> None:
    plan = plan_of(plain_table(2, 2), Strategy.MEDYATE, budget_bytes=32, norms=[(5.0, 5.0), (0.0, 0.0)])
    counts = draw_runs(plan, 1, range(2000), observed={0: np.full((2000, 2), 4.0)}).counts
    assert stats.binomtest(int(counts[:, 1].sum()), 2000, 0.5).pvalue > 1e-4


def test_medyate_starts_uniformly_when_all_norms_are_zero() -> None:
    plan = plan_of(plain_table(4), Strategy.MEDYATE, budget_bytes=32)
    observed = {0: np.broadcast_to([0.0, 0.0, np.nan, 0.0], (2000, 4))}
    drawn = Counter(draw_runs(plan, 1, range(2000), observed=observed).channels[0][:, 0].tolist())
    assert chi_square(drawn, 4) > 1e-4


def test_d_det_rgn_takes_the_largest_rgn() -> None:
    """Equal norms: the layer with the cheaper channel comes first. Then what was observed counts, where it was."""
    groups = [InputGroup(inputs=(GroupInput(channel_bytes=16, kept_by=None),)) for _ in range(2)]
    layers = [
        layer_costs(0, 3, 0, optimizer=0, sample_elements=4),
        layer_costs(1, 3, 1, optimizer=0, sample_elements=1),
    ]
    plan = plan_of(
        cost_table(layers, groups), Strategy.D_DET_RGN, budget_bytes=32 * 3, norms=[(1.0, 9.0, 1.0), (1.0, 2.0, 3.0)]
    )
    assert as_lists(draw(plan, 0)) == {"layer0": [1], "layer1": [1, 2]}
    observed = {"layer0": [float("nan"), 0.0, 8.0]}
    assert as_lists(draw(plan, 1, observed=observed)) == {"layer0": [2], "layer1": [1, 2]}


def test_su_trains_its_fixed_channels() -> None:
    plan = plan_of(plain_table(6), Strategy.SU, budget_bytes=96, eligible=[0], fixed_channels={"layer0": (1, 4)})
    assert as_lists(draw(plan, 9, seed=4)) == {"layer0": [1, 4]}


def test_observed_norms_of_another_width_are_refused() -> None:
    plan = plan_of(plain_table(6), Strategy.MEDYATE, budget_bytes=96)
    with pytest.raises(StrategyError, match=r"'layer0' must be one for each of its 6 input channels, got shape \(2,\)"):
        draw(plan, 1, observed={"layer0": [1.0, 2.0]})


def test_every_strategy_has_a_rule() -> None:
    assert set(STRATEGIES) == set(Strategy)
