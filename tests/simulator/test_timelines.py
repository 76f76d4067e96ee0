"""Timelines: a step played through block by block, the ledger's peak and lines, a net by hand."""

import json
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cases import build
from plays import Play
from tables import cost_tables, full_counts, peak_tables, plan_of, scope_bytes
from trady.planner.errors import PlanError
from trady.planner.ledger import BatchedLedger, active_bits
from trady.planner.ledger.cost_table import CostTable
from trady.planner.ledger.peak import with_margin
from trady.planner.ledger.step_timeline import MomentKind
from trady.planner.options import Scope, Strategy
from trady.planner.plan.plan import Plan
from trady.planner.planning.planning import make_plan
from trady.planner.priorities.calibration import uniform_priorities
from trady.planner.sampling.schedule import draw, draw_runs
from trady.planner.tracing.tracing import trace
from trady.simulator import Timeline, timeline
from trady.simulator.timelines import PARTS, LiveMoment

FILLING = [found for found in Strategy if found not in (Strategy.SOLVER, Strategy.SU)]
LASTING = ("weights", "inputs", "active_weights", "optimizer_state", "draw_index")


@st.composite
def plans(draw_: st.DrawFn, *strategies: Strategy) -> Plan:
    """Plans around random tables with lifetimes; fixed counts for the solver's draws, a budget for the papers'."""
    table = draw_(peak_tables())
    scope = draw_(st.sampled_from(list(Scope)))
    least, most = (scope_bytes(table, counts, scope) for counts in ((0,) * len(table.layers), full_counts(table)))
    return plan_of(
        table,
        draw_(st.sampled_from(strategies)),
        budget_bytes=max(1, draw_(st.integers(least, max(least, most)))),
        scope=scope,
        counts=[draw_(st.integers(0, layer.in_channels)) for layer in table.layers],
        norms=[tuple(draw_(st.floats(0, 9)) for _ in range(layer.in_channels)) for layer in table.layers],
    )


def moving(moment: LiveMoment, lasting: dict[str, int]) -> dict[str, int]:
    """Bytes by line beside what always lives and the margin; lines without any left out."""
    rest = {name: moment.num_bytes[name] - lasting.get(name, 0) for name in PARTS if name != "margin"}
    return {name: num_bytes for name, num_bytes in rest.items() if num_bytes}


def kept_bytes(plan: Plan) -> Counter[str]:
    """What autograd keeps besides the drawn channels, by line."""
    table, found = plan.table, Counter[str]()
    for (line, upstream), num_bytes in BatchedLedger(table).kept_terms.items():
        if table.upstreams[upstream].is_trained(active_bits(plan.counts)):
            found[line] += num_bytes
    return found


def lasting_lines(plan: Plan) -> dict[str, int]:
    """What always lives: whole lines, and of what always trains all but gradients and what is kept."""
    lines = plan.ledger.lines
    kept = kept_bytes(plan)["always_trained"]
    gradients = sum(operation.always_gradients for operation in plan.table.operations)
    found = {name: getattr(lines, name) for name in LASTING}
    return {**found, "always_trained": lines.always_trained - kept - gradients}


@settings(max_examples=200, deadline=None)
@given(plans(Strategy.SOLVER))
def test_each_moment_is_that_of_the_step_played_through(plan: Plan) -> None:
    play = Play(plan.table, plan.counts)
    play.run()
    lasting = lasting_lines(plan)
    found = [moment for moment in timeline(plan).moments if moment.kind is not MomentKind.OPTIMIZER]
    assert [moving(moment, lasting) for moment in found if moving(moment, lasting)] == [
        dict(+lines) for lines in play.moments if lines.total()
    ]


@settings(max_examples=200, deadline=None)
@given(plans(*FILLING, Strategy.SOLVER), st.integers(0, 4), st.integers(0, 2**40))
def test_the_highest_moment_is_the_peak_of_the_draws_ledger(plan: Plan, epoch: int, seed: int) -> None:
    table, draws = plan.table, draw_runs(plan, epoch, [seed])
    found = timeline(plan, epoch=epoch, seed=seed)
    assert found.peak_bytes == draw(plan, epoch, seed=seed).ledger(BatchedLedger(table)).scopes.peak
    assert all(num_bytes >= 0 for moment in found.moments for num_bytes in moment.num_bytes.values())
    amounts = draws.counts, draws.stored, draws.indexed
    floor = int(BatchedLedger(table).lasting_bytes(*amounts)[0])
    values = with_margin(BatchedLedger(table).peak_model.values(*amounts[:2])[0]) + floor
    assert [moment.total_bytes for moment in found.moments if moment.total_bytes > floor] == [
        total for total in values.tolist() if total > floor
    ]


@pytest.mark.parametrize("strategy", ["solver", "trady", "d-det-rgn", "lara-trady"])
@pytest.mark.parametrize("name", ["residual-in-place", "branches", "encoder-layer", "used-twice", "pools-and-dropout"])
def test_lines_are_the_ledgers_where_all_of_them_live(name: str, strategy: str) -> None:
    model, inputs = build(name)
    traced = trace(model, inputs)
    priorities = uniform_priorities(traced, "test")
    plan = make_plan(
        model, inputs, traced=traced, priorities=priorities, budget="4KB", strategy=strategy, optimizer="adam"
    )
    found = timeline(plan)
    assert found.peak_bytes == plan.ledger.scopes.peak
    lines, lasting = plan.ledger.lines, lasting_lines(plan)
    kept = kept_bytes(plan)
    loss = [moment for moment in found.moments if moment.kind is MomentKind.FORWARD][-1].num_bytes
    assert {name: loss[name] for name in LASTING} == {name: getattr(lines, name) for name in LASTING}
    assert (loss["saved_activations"], loss["residuals"]) == (lines.saved_activations, lines.residuals)
    assert loss["always_trained"] == lasting["always_trained"] + kept.get("always_trained", 0)
    assert loss["gradients"] == 0
    end = found.moments[-1].num_bytes
    assert (end["gradients"], end["saved_activations"], end["residuals"]) == (lines.gradients, 0, 0)
    assert end["always_trained"] == lines.always_trained - kept.get("always_trained", 0)


def two_layers() -> Plan:
    """Batch 4, 6 -> 5 -> 3 features, float32, no biases; the second layer is the head."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5, bias=False), nn.Linear(5, 3, bias=False))
    return make_plan(net, torch.zeros(4, 6), budget="60B", optimizer="sgd")


def test_a_chain_of_products_by_hand() -> None:
    plan = two_layers()
    (count,) = plan.counts
    assert count > 0
    hidden, logits, loss, head_gradient = 4 * 20, 4 * 12, 4, 4 * 15
    always = {"weights": 4 * (30 + 15), "inputs": 4 * (24 + 2 * 4)}
    always |= {"active_weights": 20 * count, "draw_index": 4 * count}
    found = {(moment.kind, moment.target): moment.num_bytes for moment in timeline(plan).moments}
    assert all(parts[name] == num_bytes for parts in found.values() for name, num_bytes in always.items())

    def beside(kind: MomentKind, target: str) -> dict[str, int]:
        parts = found[kind, target]
        return {name: parts[name] for name in PARTS if parts[name] and name not in (*always, "margin")}

    # The result is kept for backward; the logits are still there. The drawn channels' input is the batch.
    forward = {"always_trained": hidden, "residuals": logits, "workspace": logits}
    assert beside(MomentKind.FORWARD, "_log_softmax") == forward
    # The loss, the logits, the gradient it takes and the one it gives.
    assert beside(MomentKind.BACKWARD, "_log_softmax") == forward | {"workspace": loss + 3 * logits}
    # The loss, the logits, the gradient it takes, and that of its input.
    at_the_head = {"always_trained": hidden + head_gradient, "workspace": loss + 2 * logits + hidden}
    assert beside(MomentKind.BACKWARD, "mm") == at_the_head
    end = {"gradients": 20 * count, "always_trained": head_gradient, "workspace": loss + logits}
    assert beside(MomentKind.OPTIMIZER, "optimizer") == end


def test_what_does_not_train_has_no_backward_moments() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
    table = make_plan(net, torch.zeros(2, 8), budget="200B").table
    plan = plan_of(table, budget_bytes=10**6, counts=(0, 2, 0))
    found = timeline(plan).moments
    assert {moment.module for moment in found if moment.kind is MomentKind.SLICE} == {"1"}
    towards_inputs = [moment for moment in found if moment.kind is MomentKind.BACKWARD and moment.target == "addmm"]
    assert [moment.module for moment in towards_inputs] == ["3", "2"]


def test_moments_come_in_the_order_of_the_step() -> None:
    plan = two_layers()
    found = timeline(plan).moments
    backward = (MomentKind.BACKWARD, MomentKind.SLICE)
    places = [moment.operation for moment in found if moment.kind is MomentKind.FORWARD]
    assert places == list(range(len(plan.table.operations)))
    returned = [moment.operation for moment in found if moment.kind in backward]
    assert returned and all(after <= before for before, after in pairwise(returned))
    assert found[-1].kind is MomentKind.OPTIMIZER and found[-1].operation == -1


def test_other_epochs_and_seeds_draw_other_channels() -> None:
    """Three layers of unlike cost: draws that fill a budget differ in bytes."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(9, 30), nn.ReLU(), nn.Linear(30, 2), nn.Linear(2, 50), nn.Linear(50, 3))
    plan = make_plan(net, torch.zeros(2, 9), budget="400B", strategy="d-full-random")
    totals = {timeline(plan, epoch=epoch, seed=seed).peak_bytes for epoch in range(4) for seed in range(3)}
    assert len(totals) > 1
    assert timeline(plan, epoch=3, seed=5) == timeline(plan, epoch=3, seed=5)


def test_a_timeline_is_told_as_plain_data() -> None:
    plan = two_layers()
    found = timeline(plan, epoch=2, seed=7)
    told = json.loads(json.dumps(found.as_json()))
    assert (told["epoch"], told["seed"], told["peak_bytes"]) == (2, 7, found.peak_bytes)
    assert len(told["moments"]) == len(found.moments)
    highest = told["moments"][told["peak_moment"]]
    assert highest["total_bytes"] == sum(highest["bytes"].values()) == found.peak_bytes
    assert highest["kind"] == found.peak_moment.kind.value and list(highest["bytes"]) == list(PARTS)
    assert isinstance(found, Timeline) and "Plan" not in repr(found)


@settings(max_examples=5, deadline=None)
@given(cost_tables())
def test_a_plan_without_lifetimes_is_refused(table: CostTable) -> None:
    plan = plan_of(table, budget_bytes=10**6)
    with pytest.raises(PlanError, match=r"Plan of tests: .* no timeline\. Its notes say why .* trady-plan"):
        timeline(plan)


def test_a_timeline_needs_no_torch() -> None:
    program = "import sys; from trady.simulator import timeline, Timeline; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
