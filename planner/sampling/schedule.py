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
from trady.planner.ledger import BatchedLedger, Bytes
from trady.planner.options import Inclusion
from trady.planner.plan import Plan
from trady.planner.sampling.budget_state import Purses
from trady.planner.sampling.draws import ChannelDraw, ChannelDraws
from trady.planner.sampling.greedy_fill import Filling, Pool, RandomFilling, enough_asked
from trady.planner.sampling.inclusion_probabilities import WeightedGroup, inclusion_probabilities
from trady.planner.sampling.philox import (
    Channels,
    FillWords,
    HalfWords,
    Scratch,
    distinct_channels,
    fixed_words,
    unit_interval,
    words_of_runs,
)
from trady.planner.sampling.strategies import STRATEGIES, DrawRule

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
    drawer = _Drawer(plan, moment, seeds, ledger)
    if rule.draw is DrawRule.LARGEST_WEIGHTS:
        counts, channels = drawer.fixed_channels()
    elif rule.draw is DrawRule.LARGEST_RGN:
        counts, channels = drawer.in_order(drawer.largest_rgn(seen))
    elif rule.draw is DrawRule.OBSERVED_NORMS and seen is not None:
        counts, channels = drawer.in_order(drawer.weighted(seen))
    else:
        return replace(next(draw_epochs(plan, [moment], seeds, ledger=ledger)), epoch=epoch)
    return ChannelDraws(epoch, counts, channels, *drawer.unions(counts, channels))


def draw_epochs(
    plan: Plan, epochs: Sequence[int], seeds: Sequence[int], *, ledger: BatchedLedger | None = None
) -> Iterator[ChannelDraws]:
    """The same for many epochs of a plan that draws without looking at norms, several at a time.

    Every epoch takes the next words of the run's streams, the same number of each.

    Args:
        plan: A plan whose counts are fixed, or that fills its budget at random.
        epochs: Consecutive, from any on.
        seeds: Seed of each run.
        ledger: Of the plan's table, for those who draw often.

    Yields:
        The draws of each epoch, in order.
    """
    drawer = _Drawer(plan, 0, seeds, ledger)
    if STRATEGIES[plan.strategy.name].draw is not DrawRule.FIXED_COUNTS:
        yield from _filled_draws(drawer, epochs, seeds)
        return
    if plan.solver.inclusion is Inclusion.WEIGHTED:
        yield from _weighted_draws(drawer, epochs, seeds)
        return
    space = Scratch()
    counts = drawer.planned_counts()
    every = drawer.ledger.most_of_groups(counts)
    stored = every[0]
    number = int(stored.sum())
    for block in _blocks(epochs, min(_ROWS_AT_ONCE, _WORDS_AT_ONCE // max(1, number)) // len(seeds)):
        words = space.array("halves", (number, len(block), len(seeds)), np.uint32)
        words[:] = fixed_words(seeds, _CHANNEL_STREAM, number, block[0], len(block), space).transpose(2, 1, 0)
        words_by_group = np.split(words.reshape(number, len(block) * len(seeds)), np.cumsum(stored)[:-1])
        channels = drawer.nested(counts[0], words_by_group, space)
        for place, epoch in enumerate(block):
            own = slice(place * len(seeds), (place + 1) * len(seeds))
            found = {index: drawn[own] for index, drawn in channels.items()}
            yield ChannelDraws(epoch, counts, found, every, every)


def _filled_draws(drawer: "_Drawer", epochs: Sequence[int], seeds: Sequence[int]) -> Iterator[ChannelDraws]:
    """Channels of the eligible layers, taken uniformly at random while they fit."""
    asked = drawer.channels_to_ask_for()
    for block in _blocks(epochs, min(_ROWS_AT_ONCE, _ASKED_AT_ONCE // asked) // len(seeds)):
        words = FillWords(seeds, block, asked, _FILL_STREAMS)
        counts, channels = drawer.random(words, len(block) * len(seeds))
        stored = drawer.ledger.most_of_groups(counts)
        for place, epoch in enumerate(block):
            own = slice(place * len(seeds), (place + 1) * len(seeds))
            most = counts[own].max(axis=0)
            found = {index: drawn[own, : most[index]] for index, drawn in channels.items() if most[index]}
            yield ChannelDraws(epoch, counts[own], found, stored[own], stored[own])


def _blocks(epochs: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (epochs[first : first + max(1, size)] for first in range(0, len(epochs), max(1, size)))


def _weighted_draws(drawer: "_Drawer", epochs: Sequence[int], seeds: Sequence[int]) -> Iterator[ChannelDraws]:
    """The planned counts in every epoch, larger norms more often."""
    counts = drawer.planned_counts()
    stored = drawer.ledger.most_of_groups(counts)
    groups = drawer.weighted_groups(counts[0], stored[0])
    for epoch in epochs:
        channels: dict[int, Channels] = {}
        for group in groups:
            drawn = group.draw(epoch, seeds)
            channels |= {index: drawn[:, : counts[0, index]] for index in group.members}
        yield ChannelDraws(epoch, counts, channels, stored, stored)


class _Drawer:
    """Draws one epoch of many runs."""

    def __init__(self, plan: Plan, epoch: int, seeds: Sequence[int], ledger: BatchedLedger | None) -> None:
        self._plan, self._table, self._epoch, self._seeds = plan, plan.table, epoch, tuple(seeds)
        self.ledger = BatchedLedger(plan.table) if ledger is None else ledger
        self._sizes = np.array([layer.in_channels for layer in plan.table.layers], dtype=np.int64)
        self._eligible = np.array(plan.strategy.eligible, dtype=np.int64)
        self._pool = Pool.of(self._eligible, self._sizes[self._eligible])

    def planned_counts(self) -> Bytes:
        """The plan's own counts."""
        return np.broadcast_to(np.array(self._plan.counts, dtype=np.int64), (len(self._seeds), len(self._sizes)))

    def channels_to_ask_for(self) -> int:
        """About as many random channels as fill a budget."""
        settings = self._plan.settings
        counts = np.zeros((2, len(self._sizes)), dtype=np.int64)
        counts[1, self._eligible] = self._sizes[self._eligible]
        least, most = self.ledger.scope_bytes(counts, settings.scope).tolist()
        return enough_asked(int(counts[1].sum()), (settings.budget_bytes - least) / max(1, most - least))

    def random(self, words: FillWords, rows: int) -> tuple[Bytes, dict[int, Channels]]:
        """Take channels of the eligible layers uniformly at random while they fit: draws are nested.

        Args:
            words: Random words.
            rows: Runs in some epochs.
        """
        filling = RandomFilling(self._purses(rows, nested=True), self._eligible, self._sizes[self._eligible], words)
        filling.fill()
        return filling.purses.counts, filling.nested_by_layer(self.ledger.group_of)

    def nested(self, counts: Bytes, words_by_group: Sequence[HalfWords], space: Scratch) -> dict[int, Channels]:
        """First channels of the input groups' permutations, ``[runs, channels drawn]`` by index of the layer.

        Args:
            counts: Channels drawn, ``[layers]``.
            words_by_group: Words of each input group, ``[channels stored, runs]``.
            space: Memory to use again.
        """
        orders: dict[int, Channels] = {}
        channels = {}
        for index in np.flatnonzero(counts).tolist():
            layer = self._table.layers[index]
            if layer.group not in orders:
                orders[layer.group] = distinct_channels(words_by_group[layer.group], layer.in_channels, space)
            channels[index] = orders[layer.group][:, : counts[index]]
        return channels

    def weighted_groups(self, counts: Bytes, stored: Bytes) -> list[WeightedGroup]:
        """How likely each channel is under fixed counts: by the norms of all members of its group that draw.

        Args:
            counts: Channels drawn, ``[layers]``.
            stored: Channels stored, ``[groups]``.
        """
        found = []
        for group in np.flatnonzero(stored).tolist():
            members = np.flatnonzero((self.ledger.group_of == group) & (counts > 0)).tolist()
            norms = np.sum([self._plan.channel_norms(index) for index in members], axis=0)
            likely = inclusion_probabilities(norms.tolist(), int(stored[group]), self._plan.solver.horizon)
            found.append(WeightedGroup(group, members, likely))
        return found

    def fixed_channels(self) -> tuple[Bytes, dict[int, Channels]]:
        """The channels a static scheme names, in every run."""
        counts = np.zeros((len(self._seeds), len(self._sizes)), dtype=np.int64)
        channels = {}
        for name, found in self._plan.strategy.fixed_channels.items():
            index = self._table.index_of(name)
            counts[:, index] = len(found)
            channels[index] = np.broadcast_to(np.array(found, dtype=np.int64), (len(self._seeds), len(found)))
        return counts, {index: found for index, found in channels.items() if found.size}

    def in_order(self, keys: Norms) -> tuple[Bytes, dict[int, Channels]]:
        """Take the eligible channels by falling key while they fit; equal keys in the table's order.

        Args:
            keys: ``[runs, eligible channels]``, or one row for all runs.
        """
        filling = Filling(self._purses(len(keys), nested=False), self._pool)
        filling.walk(np.arange(len(keys)), np.argsort(-keys, axis=1, kind="stable"))
        channels, counts = filling.by_layer(in_order=False), filling.purses.counts
        runs = len(self._seeds)
        same = {index: np.broadcast_to(found, (runs, found.shape[1])) for index, found in channels.items()}
        return np.broadcast_to(counts, (runs, len(self._sizes))), same

    def largest_rgn(self, observed: Mapping[int, Norms] | None) -> Norms:
        """RGN of the eligible channels; the calibrated norm stands in where none was observed."""
        norms = np.concatenate([self._plan.channel_norms(index) for index in self._plan.strategy.eligible])[None, :]
        if observed is not None:
            found = self._observed(observed)
            norms = np.where(np.isnan(found), norms, found)
        costs = np.array([layer.sample_cost for layer in self._table.layers], dtype=np.float64)
        keys: Norms = norms / costs[self._pool.layers[:-1]]
        return keys

    def weighted(self, observed: Mapping[int, Norms]) -> Norms:
        """Keys that order the eligible channels at random, in proportion to their last observed norms.

        Unseen channels get the largest observed one. Exponential keys give sampling without replacement.

        Source:
            MeDyate, arXiv 2510.20979; Efraimidis and Spirakis 2006.
        """
        norms = self._observed(observed)
        unseen = np.isnan(norms)
        largest = np.where(unseen, -np.inf, norms).max(axis=1, keepdims=True)
        largest = np.where(unseen.all(axis=1, keepdims=True), 1.0, largest)
        weights = np.maximum(np.where(unseen, largest, norms), _LEAST_WEIGHT)
        words = words_of_runs(self._seeds, self._epoch, _WEIGHT_STREAM, norms.shape[1])
        keys: Norms = weights / -np.log(unit_interval(words))
        return keys

    def unions(self, counts: Bytes, channels: Mapping[int, Channels]) -> tuple[Bytes, Bytes]:
        """Channels stored and indices kept per input group, where each layer draws for itself."""
        stored, indexed = self.ledger.most_of_groups(counts), self.ledger.sums_of_groups(counts)
        members: dict[int, list[int]] = {}
        for index in channels:
            members.setdefault(self._table.layers[index].group, []).append(index)
        for group, found in members.items():
            if len(found) > 1:
                stored[:, group] = self._union([channels[index] for index in found], int(self._sizes[found[0]]))
                nested = self._are_nested([channels[index] for index in found], counts[:, found])
                indexed[:, group] = np.where(nested, stored[:, group], indexed[:, group])
        return stored, indexed

    def _union(self, draws: Sequence[Channels], in_channels: int) -> Bytes:
        is_stored = np.zeros((len(self._seeds), in_channels + 1), dtype=bool)
        for channels in draws:
            np.put_along_axis(is_stored, channels, True, axis=1)
        found: Bytes = is_stored[:, :-1].sum(axis=1)
        return found

    @staticmethod
    def _are_nested(draws: Sequence[Channels], counts: Bytes) -> NDArray[np.bool_]:
        """Whether in each run all members draw the first channels of the longest draw."""
        most, runs = max(channels.shape[1] for channels in draws), np.arange(len(counts))
        padded = np.full((len(draws), len(counts), most), -1, dtype=np.int64)
        for place, channels in enumerate(draws):
            padded[place, :, : channels.shape[1]] = channels
        longest = padded[counts.argmax(axis=1), runs]
        beyond = np.arange(most) >= counts.T[:, :, None]
        return np.asarray(((padded == longest) | beyond).all(axis=(0, 2)))

    def _observed(self, observed: Mapping[int, Norms]) -> Norms:
        """Last observed norms of the eligible channels, ``[runs, eligible channels]``; ``NaN`` where there was none."""
        runs = len(self._seeds)
        return np.concatenate(
            [observed.get(index, np.full((runs, self._sizes[index]), np.nan)) for index in self._eligible.tolist()],
            axis=1,
        )

    def _purses(self, runs: int, *, nested: bool) -> Purses:
        return Purses(self.ledger, self._plan.settings.scope, self._plan.settings.budget_bytes, runs, nested=nested)


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
