"""Replay a plan's resampling in many trials at once."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Final, Unpack

import numpy as np

from trady.planner.errors import PlanError
from trady.planner.ledger import BatchedLedger, Lines
from trady.planner.options import Strategy, check_keywords
from trady.planner.parallel import in_processes
from trady.planner.plan import Plan
from trady.planner.planning import replan
from trady.planner.sampling import STRATEGIES, ChannelDraws, Observes, draw_epochs, draw_runs
from trady.simulator.closed_forms import closed_forms
from trady.simulator.draw_costs import Costs
from trady.simulator.gradients import CalibratedGradients, Gradients, HeavyTailedGradients, RecordedGradients
from trady.simulator.results import MEASURES, Series, SimulationReport
from trady.simulator.simulation_options import SimulationKeywords, SimulationOptions
from trady.simulator.streaming_statistics import Gathered, Values, band
from trady.simulator.trials import MOST_EPOCHS, Follower, ObservedNorms, Places

if TYPE_CHECKING:
    from trady.planner.priorities import GradientRecording

#: Bytes that the trials of one chunk may keep, and the most and fewest of them.
_CHUNK_BYTES: Final = 8 * 2**20
_MOST_TRIALS, _FEWEST_TRIALS = 500, 8
#: Trials that are worth a process of their own, and the multiple of chunks that keeps 2 or 4 processors equally busy.
_FEWEST_SHARED: Final = 50
_SHARES: Final = 4
#: Epochs whose draws are priced together.
_PRICED_AT_ONCE: Final = 8
#: Trials that the quantiles are taken over: means and errors are of all.
_BAND_TRIALS: Final = 4000


def simulate(
    plan: Plan,
    *,
    policy: Strategy | str | None = None,
    gradients: "str | Gradients | GradientRecording" = CalibratedGradients.name,
    scheme: Mapping[str, float] | str | None = None,
    progress: Callable[[int], None] | None = None,
    **options: Unpack[SimulationKeywords],
) -> SimulationReport:
    """Replay the draws of a plan: what they touch, when, at what cost, and how good the gradient is they follow.

    Trial ``t`` draws what a training run with seed ``seed + t`` draws: the same function. Memory is bounded whatever
    the number of trials; the result does not depend on ``workers``.

    Args:
        plan: The plan.
        policy: Another strategy to replay at the same budget; the plan's own by default.
        gradients: What the full gradient is: ``"calibrated"`` (the plan's norms, every epoch the same),
            ``"heavy-tailed"`` (noise of their size), or a recording of a real fine-tuning.
        scheme: Static scheme of policy ``su``: layer name -> ratio, or a published name.
        progress: Called with the number of trials done.
        **options: ``epochs``: epochs to replay; the plan's by default, or the recording's.
            ``trials``: runs to replay, 1000 by default. ``seed``: seed of the first run.
            ``tail_index``: alpha of the heavy-tailed noise; the calibration's by default.
            ``workers``: processes; one for each processor by default.

    Returns:
        Every measure, epoch by epoch: mean, band, standard error and closed form.

    Error:
        TypeError: A keyword is unknown.
        PlanError: Epochs or trials out of range, gradients unknown or of another model.
        StrategyError: The policy is unknown or its scheme does not fit the model.
        BudgetError: The budget trains nothing under this policy.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 4))
        >>> pictures = torch.randn(2, 3, 8, 8)
        >>> from trady.planner import make_plan
        >>> plan = make_plan(net, pictures, budget="4KB", optimizer="sgd")
        >>> report = simulate(plan, policy="trady", trials=20, epochs=4, workers=1)
        >>> report.highest_used_bytes <= 4000, len(report.measures["rgn_reached"].mean)
        (True, 4)
    """
    check_keywords("simulate", options, SimulationKeywords)
    asked = SimulationOptions.read(options)
    found = _gradients(plan, gradients, asked.tail_index, asked.seed)
    number = _epochs(plan, asked.epochs, found)
    planned = replan(plan, policy or plan.strategy.name, scheme)
    gathered = Gathered(_BAND_TRIALS)
    counts = np.zeros(len(plan.table.layers))
    squares: Values = np.zeros((number, len(plan.table.layers)))
    replay = partial(_replay, planned, BatchedLedger(planned.table).prepared(), found, number)
    for chunk in in_processes(replay, _chunks(planned, found, asked.trials, asked.seed), asked.workers):
        gathered.add(chunk.values)
        counts += chunk.counts
        squares = chunk.squares
        if progress is not None:
            progress(gathered.trials)
    theory = closed_forms(planned, counts / asked.trials / number, squares)
    return _report(planned, found, gathered, theory, asked.seed)


@dataclass(frozen=True)
class _Chunk:
    """What some trials gave.

    Args:
        values: Name -> ``[trials, epochs]``.
        counts: Channels drawn, summed over trials and epochs, ``[layers]``.
        squares: Share of the squared gradient norm that each layer holds, ``[epochs, layers]``.
    """

    values: Mapping[str, Values]
    counts: Values
    squares: Values


def _replay(plan: Plan, ledger: BatchedLedger, gradients: Gradients, epochs: int, seeds: Sequence[int]) -> _Chunk:
    follower, costs = Follower(plan, gradients, len(seeds)), Costs(plan, ledger)
    counts = np.zeros(len(plan.table.layers))
    followed, priced, squares = [], [], []
    pending: list[ChannelDraws] = []
    for draws in _draws(plan, ledger, follower, epochs, seeds):
        followed.append(follower.add(draws.epoch, draws))
        counts += draws.counts.sum(axis=0)
        layer_squares = follower.path.layer_squares
        squares.append(layer_squares / (layer_squares.sum() or 1.0))
        pending.append(draws)
        if len(pending) == _PRICED_AT_ONCE or len(followed) == epochs:
            priced.append(costs.of(pending))
            pending = []
    values = {name: np.stack([row[name] for row in followed], axis=1) for name in followed[0]}
    values |= {name: np.concatenate([part[name] for part in priced], axis=1) for name in priced[0]}
    return _Chunk(values, counts, np.array(squares))


def _draws(
    plan: Plan, ledger: BatchedLedger, follower: Follower, epochs: int, seeds: Sequence[int]
) -> Iterator[ChannelDraws]:
    """The draws of every epoch, by the norms that each trial has seen so far where the strategy looks at them."""
    observes = STRATEGIES[plan.strategy.name].observes
    if observes is Observes.NOTHING or (observes is Observes.DENSE_PASS and follower.path.constant):
        yield from draw_epochs(plan, range(epochs), seeds, ledger=ledger)
        return
    sizes = [layer.in_channels for layer in plan.table.layers]
    seen = ObservedNorms(sizes, plan.strategy.eligible, len(seeds)) if observes is Observes.OWN_DRAWS else None
    draws = draw_runs(plan, 0, seeds, ledger=ledger)
    yield draws
    for epoch in range(1, epochs):
        if seen is None:  # a dense pass before each draw, as the engine makes it
            follower.path.go_to(epoch)
            observed = {index: norms[None, :] for index, norms in enumerate(follower.path.norms)}
        else:
            seen.see(draws, follower.path.norms)
            observed = seen.so_far()
        draws = draw_runs(plan, epoch, seeds, observed=observed, ledger=ledger)
        yield draws


def _gradients(
    plan: Plan, gradients: "str | Gradients | GradientRecording", tail_index: float | None, seed: int
) -> Gradients:
    if tail_index is not None and gradients != HeavyTailedGradients.name:
        raise PlanError(f"A tail index is for heavy-tailed gradients only, got {tail_index} for others.")
    if isinstance(gradients, str):
        if gradients == CalibratedGradients.name:
            return CalibratedGradients(plan)
        if gradients == HeavyTailedGradients.name:
            return HeavyTailedGradients(plan, tail_index, seed)
        raise PlanError(f"Gradients {gradients!r} are unknown. Known: calibrated, heavy-tailed, or a recording.")
    return gradients if isinstance(gradients, Gradients) else RecordedGradients(gradients, plan)


def _epochs(plan: Plan, epochs: int | None, gradients: Gradients) -> int:
    number = (gradients.epochs or plan.settings.epochs) if epochs is None else epochs
    if not 1 <= number <= MOST_EPOCHS:
        raise PlanError(f"Epochs must be from 1 to {MOST_EPOCHS}, got {number}.")
    if gradients.epochs is not None and number > gradients.epochs:
        raise PlanError(
            f"The recording holds {gradients.epochs} epochs, {number} were asked for. Lower --epochs, or record more "
            f"with trady-profile --record {number}."
        )
    return number


def _chunks(plan: Plan, gradients: Gradients, trials: int, seed: int) -> list[range]:
    """Seeds of the chunks: of about the same size, as many as keep each within bounds and busy every processor.

    A chunk keeps the state of each layer that can be drawn, and running sums. How it is cut depends on no machine.
    """
    numbers = 0 if gradients.constant else len(gradients.vectors(0)[0])
    norms = 8 if STRATEGIES[plan.strategy.name].observes is Observes.OWN_DRAWS else 0
    per_trial = Places(plan).size * (4 + 4 * numbers + norms)
    at_once = max(_FEWEST_TRIALS, min(_MOST_TRIALS, _CHUNK_BYTES // max(1, per_trial)))
    number = min(-(-trials // _FEWEST_SHARED), -(-trials // (_SHARES * at_once)) * _SHARES)
    ends = [seed + trials * place // number for place in range(number + 1)]
    return [range(first, end) for first, end in pairwise(ends)]


def _report(
    plan: Plan, gradients: Gradients, gathered: Gathered, theory: Mapping[str, Values] | None, seed: int
) -> SimulationReport:
    measures = {name: _series(gathered, name, theory) for name in MEASURES if name != "waiting_time"}
    measures["waiting_time"] = _waiting_time(gathered, theory)
    used = int(gathered.highest("used_bytes"))
    lines = [name for name in Lines.model_fields if name != "workspace" or plan.table.gradient_storages is not None]
    return SimulationReport(
        policy=plan.strategy.name.value,
        source=plan.model.source,
        budget_bytes=plan.settings.budget_bytes,
        scope=plan.settings.scope.value,
        epochs=len(gathered.mean("used_bytes")),
        trials=gathered.trials,
        seed=seed,
        gradients=gradients.name,
        num_layers=len(plan.table.layers),
        num_eligible=len(plan.strategy.eligible),
        num_channels=sum(layer.in_channels for layer in plan.table.layers),
        band_trials=gathered.kept,
        highest_used_bytes=used,
        measures={name: measures[name] for name in MEASURES},
        lines={name: _series(gathered, name, None) for name in lines},
        notes=_notes(plan, gradients, gathered),
    )


def _series(gathered: Gathered, name: str, theory: Mapping[str, Values] | None) -> Series:
    form = None if theory is None or name not in theory else _numbers(theory[name])
    low, high = band(gathered.samples(name))
    return Series(
        _numbers(gathered.mean(name)), _numbers(low), _numbers(high), _numbers(gathered.standard_error(name)), form
    )


def _waiting_time(gathered: Gathered, theory: Mapping[str, Values] | None) -> Series:
    """Epochs waited over channels drawn again, both summed over trials; its error to first order."""
    waited, repeated = gathered.samples("epochs_waited"), gathered.samples("repeated_channels")
    mean = _quotient(gathered.mean("epochs_waited"), gathered.mean("repeated_channels"))
    spread = np.std(waited - mean * repeated, axis=0) / np.sqrt(max(1, gathered.trials))
    low, high = band(_quotient(waited, repeated))
    form = None if theory is None else _numbers(_quotient(theory["epochs_waited"], theory["repeated_channels"]))
    error = _quotient(spread, gathered.mean("repeated_channels"))
    return Series(_numbers(mean), _numbers(low), _numbers(high), _numbers(error), form)


def _quotient(amounts: Values, numbers: Values) -> Values:
    """``NaN`` where there is nothing to divide by."""
    quotient: Values = np.divide(amounts, numbers, out=np.full(np.shape(amounts), np.nan), where=numbers > 0)
    return quotient


def _numbers(values: Values) -> tuple[float | None, ...]:
    return tuple(None if np.isnan(value) else float(value) for value in values)


def _notes(plan: Plan, gradients: Gradients, gathered: Gathered) -> tuple[str, ...]:
    notes = [f"Gradients: {gradients}."]
    if plan.strategy.name is Strategy.SU:
        notes.append("A plan made with --strategy su holds MIT's channels; others stand in with random ones.")
    if gathered.kept < gathered.trials:
        notes.append(f"Bands are of the first {gathered.kept} trials, means of all {gathered.trials}.")
    return tuple(notes)
