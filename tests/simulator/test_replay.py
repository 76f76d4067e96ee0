"""The replay against a slow one that follows every vector, and against closed forms."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from replays import plan, recording
from trady.planner.errors import BudgetError, PlanError, StrategyError
from trady.planner.ledger import BatchedLedger
from trady.planner.options import Scope, Strategy
from trady.planner.plan.plan import Plan
from trady.planner.planning.replanning import replan
from trady.planner.reports.summary import layer_rgn
from trady.planner.sampling.schedule import draw
from trady.simulator import SimulationReport, simulate
from trady.simulator.gradients import CalibratedGradients, Gradients, HeavyTailedGradients, RecordedGradients

FILLING = [strategy.value for strategy in Strategy if strategy is not Strategy.SU]
UNIFORM = ["solver", "trady", "s-topk-random", "d-full-random", "s-full-random", "lara-trady"]
SCHEME = {"layer0": 0.4, "layer3": 0.5}
Values = NDArray[np.float64]


class SlowReplay:
    """One trial, channel by channel, from the engine's own draw and whole vectors."""

    def __init__(self, of: Plan, gradients: Gradients, seed: int) -> None:
        self._plan, self._gradients, self._seed = of, gradients, seed
        self._sizes = {layer.name: layer.in_channels for layer in of.table.layers}
        self._last: dict[tuple[str, int], int] = {}
        self._observed: dict[str, list[float]] = {}

    def run(self, epochs: int) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        drawn_sum = full_sum = np.zeros(0)
        for epoch in range(epochs):
            channels = draw(self._plan, epoch, seed=self._seed, observed=self._seen(epoch)).channels
            full, mask = self._vector(epoch), self._mask(channels)
            drawn_sum = drawn_sum + full * mask if epoch else full * mask
            full_sum = full_sum + full if epoch else full
            waited = [epoch - self._last[key] for key in self._keys(channels) if key in self._last]
            self._note(epoch, channels)
            row = {
                "captured_share": float((full * mask) @ full / (full @ full)),
                "cosine": cosine(full * mask, full),
                "running_cosine": cosine(drawn_sum, full_sum),
                "waiting_time": float(np.mean(waited)) if waited else float("nan"),
                "channels_reached": len(self._last) / sum(self._sizes.values()),
                "rgn_reached": self._reached_rgn(),
            }
            for name, value in row.items():
                found.setdefault(name, []).append(value)
        return found

    def _vector(self, epoch: int) -> Values:
        return np.concatenate([found.T.reshape(-1) for found in self._gradients.vectors(epoch)])

    def _mask(self, channels: Mapping[str, NDArray[np.int64]]) -> Values:
        parts = []
        for (name, size), vectors in zip(self._sizes.items(), self._gradients.vectors(0), strict=True):
            mask = np.zeros(size)
            mask[channels.get(name, [])] = 1.0
            parts.append(np.repeat(mask, len(vectors)))
        return np.concatenate(parts)

    def _keys(self, channels: Mapping[str, NDArray[np.int64]]) -> list[tuple[str, int]]:
        return [(name, channel) for name, found in channels.items() for channel in found.tolist()]

    def _note(self, epoch: int, channels: Mapping[str, NDArray[np.int64]]) -> None:
        norms = dict(zip(self._sizes, self._gradients.norms(epoch), strict=True))
        for name, channel in self._keys(channels):
            self._last[name, channel] = epoch
            self._observed.setdefault(name, [float("nan")] * self._sizes[name])[channel] = float(norms[name][channel])

    def _seen(self, epoch: int) -> dict[str, list[float]] | None:
        """As the engine: medyate remembers what it trained, d-det-rgn looks at everything before each draw."""
        if self._plan.strategy.name is Strategy.D_DET_RGN and epoch:
            return {name: norms.tolist() for name, norms in zip(self._sizes, self._gradients.norms(epoch), strict=True)}
        return self._observed or None if self._plan.strategy.name is Strategy.MEDYATE else None

    def _reached_rgn(self) -> float:
        table, total = self._plan.table, sum(layer_rgn(self._plan))
        return float(
            sum(
                self._plan.channel_norms(table.index_of(name))[channel] / table.layers[table.index_of(name)].sample_cost
                for name, channel in self._last
            )
            / total
        )


def cosine(first: Values, second: Values) -> float:
    return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))


@pytest.mark.parametrize("kind", ["calibrated", "heavy-tailed", "recorded"])
@pytest.mark.parametrize("policy", FILLING)
def test_a_replay_is_what_following_every_vector_gives(policy: str, kind: str) -> None:
    original = plan(strategy=Strategy(policy)) if policy == "solver" else replan(plan(), policy)
    gradients: Any = recording(original) if kind == "recorded" else kind
    models: dict[str, Callable[[], Gradients]] = {
        "calibrated": lambda: CalibratedGradients(original),
        "heavy-tailed": lambda: HeavyTailedGradients(original, seed=11),
        "recorded": lambda: RecordedGradients(recording(original), original),
    }
    model = models[kind]()
    report = simulate(original, epochs=6, trials=5, seed=11, gradients=gradients, workers=1)
    rows = [SlowReplay(original, model, seed).run(6) for seed in range(11, 16)]
    for name in ("captured_share", "cosine", "running_cosine", "channels_reached", "rgn_reached"):
        expected = np.mean([row[name] for row in rows], axis=0)
        assert report.measures[name].mean == pytest.approx(expected.tolist(), rel=1e-5, abs=1e-6), name
    alone = simulate(original, epochs=6, trials=1, seed=11, gradients=gradients)
    waits = [None if np.isnan(value) else pytest.approx(value) for value in rows[0]["waiting_time"]]
    assert list(alone.measures["waiting_time"].mean) == waits


@pytest.mark.parametrize("policy", UNIFORM)
@pytest.mark.parametrize("kind", ["calibrated", "heavy-tailed"])
def test_means_are_the_closed_forms_within_their_error(policy: str, kind: str) -> None:
    report = simulate(plan(), policy=policy, epochs=12, trials=3000, gradients=kind)
    for name in ("channels_reached", "rgn_reached", "captured_share", "waiting_time"):
        series = report.measures[name]
        assert series.theory is not None
        for mean, theory, error in zip(series.mean, series.theory, series.standard_error, strict=True):
            assert (mean is None) == (theory is None)
            if mean is not None and theory is not None and error is not None:
                assert abs(mean - theory) <= 4.5 * error + 1e-6 * abs(theory), name


@pytest.mark.parametrize("policy", ["d-det-rgn", "s-det-rgn", "medyate"])
def test_draws_that_are_not_uniform_have_no_closed_form(policy: str) -> None:
    report = simulate(plan(), policy=policy, epochs=3, trials=4)
    assert all(series.theory is None for series in report.measures.values())


@pytest.mark.parametrize("scope", [Scope.UPDATE, Scope.TRAINING])
@pytest.mark.parametrize("policy", [*FILLING, "su"])
def test_no_epoch_of_any_trial_passes_the_budget(policy: str, scope: Scope) -> None:
    of = plan(scope=scope, budget_bytes=900)
    scheme = SCHEME if policy == "su" else None
    report = simulate(of, policy=policy, scheme=scheme, epochs=5, trials=200, gradients="heavy-tailed")
    assert 0 < report.highest_used_bytes <= 900
    first = draw(replan(of, policy, scheme), 0).ledger(BatchedLedger(of.table))
    assert simulate(of, policy=policy, scheme=scheme, epochs=1, trials=1).measures["used_bytes"].mean == (
        first.scopes.of(scope),
    )


@pytest.mark.parametrize("policy", ["solver", "trady", "medyate"])
def test_bytes_are_those_of_the_same_runs_ledgers(policy: str) -> None:
    of = replan(plan(), policy)
    report = simulate(of, epochs=1, trials=6, seed=2)
    ledgers = [draw(of, 0, seed=seed).ledger(BatchedLedger(of.table)).lines.model_dump() for seed in range(2, 8)]
    for line, series in report.lines.items():
        assert series.mean[0] == pytest.approx(np.mean([ledger[line] for ledger in ledgers]))


def test_a_replay_does_not_depend_on_the_workers() -> None:
    found = [simulate(plan(), policy="trady", epochs=4, trials=150, workers=workers) for workers in (1, 2)]
    assert found[0] == found[1]


def test_the_same_seed_replays_the_same_and_another_another() -> None:
    def replay(seed: int) -> SimulationReport:
        return simulate(plan(), policy="trady", epochs=4, trials=20, seed=seed)

    assert replay(3) == replay(3)
    assert replay(3).measures["rgn_reached"] != replay(4).measures["rgn_reached"]


def test_bands_hold_nine_of_ten_trials() -> None:
    report = simulate(plan(), policy="d-full-random", epochs=2, trials=1000)
    values = [
        simulate(plan(), policy="d-full-random", epochs=2, trials=1, seed=seed).measures["captured_share"].mean[1]
        for seed in range(60)
    ]
    low, high = (report.measures["captured_share"].low[1], report.measures["captured_share"].high[1])
    assert low is not None and high is not None
    inside = sum(low <= value <= high for value in values if value is not None)
    assert 45 <= inside <= 60


@pytest.mark.slow
def test_many_trials_take_no_more_memory() -> None:
    """A hundred thousand trials against one thousand, each in a process of its own."""
    code = (
        "import resource, sys; sys.path.insert(0, 'tests');"
        "from replays import plan; from trady.simulator import simulate;"
        "simulate(plan(), epochs=10, trials=int(sys.argv[1]), workers=1);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    few, many = (
        int(subprocess.run([sys.executable, "-c", code, trials], capture_output=True, text=True, check=True).stdout)
        for trials in ("4000", "100000")
    )
    assert many < few + 30_000  # KiB


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"policy": "best"}, StrategyError, r"Strategy 'best' is unknown. Known: solver, trady,"),
        ({"policy": "su"}, StrategyError, r"Strategy 'su' needs a scheme"),
        ({"policy": "su", "scheme": {"layer9": 1.0}}, StrategyError, r"layers the model has not: layer9"),
        ({"policy": "su", "scheme": {"layer2": 1.0}}, BudgetError, r"Scheme needs 832 B .* above the budget of 600 B"),
        ({"epochs": 0}, PlanError, r"Epochs must be from 1 to 32767, got 0"),
        ({"epochs": 40_000}, PlanError, r"Epochs must be from 1 to 32767, got 40000"),
        ({"trials": 0}, PlanError, r"Trials must be 1 or more, got 0"),
        ({"trials": -3}, PlanError, r"Trials must be 1 or more, got -3"),
        ({"seed": -1}, PlanError, r"Seed must be 0 or more, got -1"),
        ({"gradients": "real"}, PlanError, r"Gradients 'real' are unknown. Known: calibrated, heavy-tailed"),
        ({"tail_index": 1.5}, PlanError, r"A tail index is for heavy-tailed gradients only"),
        ({"gradients": "heavy-tailed", "tail_index": 0.9}, PlanError, r"Tail index must be above 1 .* got 0.9"),
    ],
)
def test_bad_input_is_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        simulate(plan(), **({"trials": 2, "epochs": 2} | options))


def test_epochs_beyond_a_recording_are_refused() -> None:
    with pytest.raises(PlanError, match=r"holds 6 epochs, 7 were asked for. Lower --epochs, or record more"):
        simulate(plan(), epochs=7, trials=2, gradients=recording(plan()))
    assert simulate(plan(), trials=2, gradients=recording(plan())).epochs == 6


def test_noise_without_a_measured_tail_is_refused() -> None:
    of = plan()
    without = of.model_copy(update={"priorities": of.priorities.model_copy(update={"tail_index": None})})
    with pytest.raises(PlanError, match=r"has no tail index: its norms are uniform"):
        simulate(without, trials=2, gradients="heavy-tailed")
