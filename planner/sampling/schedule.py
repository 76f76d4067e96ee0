"""The draw of an epoch: a pure function of plan, seed, epoch and the norms observed so far.

All the randomness there is, for one run as the engine executes it and for many runs at once as the simulator replays
them: the same function.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trady.planner.errors import StrategyError
from trady.planner.ledger import BatchedLedger
from trady.planner.plan import Plan
from trady.planner.sampling.draws import ChannelDraw, ChannelDraws
from trady.planner.sampling.strategies import STRATEGIES

Norms: TypeAlias = NDArray[np.float64]
#: Streams of random words of one seed and epoch that do not overlap.
_CHANNEL_STREAM, _FILL_STREAM, _WEIGHT_STREAM, _MORE_STREAM, _SHUFFLE_STREAM = range(5)
_FILL_STREAMS: Final = (_FILL_STREAM, _MORE_STREAM, _SHUFFLE_STREAM)
#: Runs times epochs that are drawn at a time where counts are fixed, and the words they may take together.
_ROWS_AT_ONCE: Final = 500
_WORDS_AT_ONCE: Final = 2**23
#: The same where budgets are filled.
_ASKED_AT_ONCE: Final = 2**20
#: Stands for a norm of zero: drawn last, and in random order.
_LEAST_WEIGHT: Final = 1e-30


def draw(
    plan: Plan,
    epoch: int,
    *,
    seed: int = 0,
    observed: Mapping[str, Sequence[float]] | None = None,
    ledger: BatchedLedger | None = None,
) -> ChannelDraw:
    """The channels that train in an epoch.

    Args:
        plan: The plan.
        epoch: From 0; static strategies draw the same in every epoch.
        seed: Seed of the run.
        observed: Layer name -> last observed gradient norm of each channel, ``NaN`` where none was. Only ``medyate``
            and ``d-det-rgn`` look at it; without it they start as the papers do (uniform; calibrated norms).
        ledger: Of the plan's table, for those who draw often.

    Returns:
        Channels by layer, in draw order.

    Error:
        StrategyError: Observed norms are not one for each channel.
    """
    seen = None if observed is None else _observed_in_one_run(plan, observed)
    return draw_runs(plan, epoch, [seed], observed=seen, ledger=ledger).of_run(0, plan.table)


def draw_runs(
    plan: Plan,
    epoch: int,
    seeds: Sequence[int],
    *,
    observed: Mapping[int, Norms] | None = None,
    ledger: BatchedLedger | None = None,
) -> ChannelDraws:
    """The channels that train in an epoch of many runs: what :func:`draw` gives for each of the seeds.

    Args:
        plan: The plan.
        epoch: From 0.
        seeds: Seed of each run.
        observed: Index of a layer -> last observed norms ``[runs, channels]``, ``NaN`` where none was.
        ledger: Of the plan's table, for those who draw often.

    Returns:
        Channels by layer, ``[runs, most drawn]``.
    """
    rule = STRATEGIES[plan.strategy.name]
    moment, seen = (epoch, observed) if rule.dynamic else (0, None)
    drawn = next(rule.draw(plan, ledger or BatchedLedger(plan.table)).draws([moment], seeds, seen))
    return replace(drawn, epoch=epoch)


def draw_epochs(
    plan: Plan, epochs: Sequence[int], seeds: Sequence[int], *, ledger: BatchedLedger | None = None
) -> Iterator[ChannelDraws]:
    """The same for many epochs, drawn without looking at norms, several at a time.

    Args:
        plan: The plan.
        epochs: Consecutive, from any on.
        seeds: Seed of each run.
        ledger: Of the plan's table, for those who draw often.

    Yields:
        The draws of each epoch, in order; memory of their channels may be used again for the next.
    """
    rule = STRATEGIES[plan.strategy.name]
    if rule.dynamic:
        yield from rule.draw(plan, ledger or BatchedLedger(plan.table)).draws(epochs, seeds)
    elif epochs:
        first = draw_runs(plan, epochs[0], seeds, ledger=ledger)
        yield from (replace(first, epoch=epoch) for epoch in epochs)


def _observed_in_one_run(plan: Plan, observed: Mapping[str, Sequence[float]]) -> dict[int, Norms]:
    """Observed norms by index of the layer, each ``[1, channels]``; other models' layers are passed over.

    Raises:
        StrategyError: Norms are not one for each channel.
    """
    found = {}
    for index, layer in enumerate(plan.table.layers):
        if layer.name in observed:
            norms = np.asarray(observed[layer.name], dtype=np.float64)
            if norms.shape != (layer.in_channels,):
                raise StrategyError(
                    f"Observed norms of layer {layer.name!r} must be one for each of its {layer.in_channels} input "
                    f"channels, got shape {norms.shape}. Give NaN for channels that never trained."
                )
            found[index] = norms[None, :]
    return found
