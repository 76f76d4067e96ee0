"""The draw of an epoch: a pure function of plan, seed, epoch and the norms observed so far.

All the randomness there is. Random bits come from Philox, a counter-based generator, read raw: the same
draw in every process and with every version of numpy and torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trady.planner.errors import StrategyError
from trady.planner.ledger import CostTable, Ledger
from trady.planner.purse import open_purse
from trady.planner.strategies import STRATEGIES, DrawRule

if TYPE_CHECKING:
    from trady.planner.plan import Plan

Channels: TypeAlias = NDArray[np.int64]
#: Streams of random bits of one epoch that do not overlap: one per input group, and one for the order of filling.
_FILL_STREAM: Final = 2**32 - 1
_WEIGHTED_STREAMS: Final = 2**31
#: Stands for a norm of zero: drawn last, and in random order.
_LEAST_WEIGHT: Final = 1e-30


@dataclass(frozen=True)
class ChannelDraw:
    """Channels trained during one epoch.

    Args:
        epoch: The epoch, from 0.
        channels: Layer name -> drawn input channels, in draw order; layers without any are left out.
    """

    epoch: int
    channels: Mapping[str, Channels]

    def counts(self, table: CostTable) -> tuple[int, ...]:
        """Channels per layer of the table."""
        return tuple(len(self.channels.get(layer.name, ())) for layer in table.layers)

    def by_group(self, table: CostTable) -> dict[int, dict[str, Channels]]:
        """Drawn channels by input group and layer."""
        groups: dict[int, dict[str, Channels]] = {}
        for layer in table.layers:
            if layer.name in self.channels:
                groups.setdefault(layer.group, {})[layer.name] = self.channels[layer.name]
        return groups

    @staticmethod
    def is_nested(members: Mapping[str, Channels]) -> bool:
        """Whether every member of an input group draws the first channels of the longest draw."""
        longest = max(members.values(), key=len)
        return all(np.array_equal(channels, longest[: len(channels)]) for channels in members.values())

    def stored(self, table: CostTable) -> dict[int, int]:
        """Channels stored per input group: the union of its members' draws."""
        groups = self.by_group(table).items()
        return {group: len(np.unique(np.concatenate(list(members.values())))) for group, members in groups}

    def ledger(self, table: CostTable) -> Ledger:
        """The ledger of a step with these channels.

        Where the draws of an input group are nested it has one index; else each member has an index of its own.
        """
        stored, indexed = self.stored(table), {}
        for group, members in self.by_group(table).items():
            nested = self.is_nested(members)
            indexed[group] = stored[group] if nested else sum(len(channels) for channels in members.values())
        return table.ledger(self.counts(table), stored, indexed)


def draw(
    plan: "Plan", epoch: int, *, seed: int = 0, observed: Mapping[str, Sequence[float]] | None = None
) -> ChannelDraw:
    """The channels that train in an epoch.

    Args:
        plan: The plan.
        epoch: From 0; static strategies draw the same in every epoch.
        seed: Seed of the run.
        observed: Layer name -> last observed gradient norm of each channel, ``NaN`` where none was. Only ``medyate``
            and ``d-det-rgn`` look at it; without it they start as the papers do (uniform; calibrated norms).
    """
    rule = STRATEGIES[plan.strategy.name]
    moment, seen = (epoch, observed) if rule.dynamic else (0, None)
    if rule.draw is DrawRule.LARGEST_WEIGHTS:
        channels = {name: np.asarray(found, dtype=np.int64) for name, found in plan.strategy.fixed_channels.items()}
        return ChannelDraw(epoch, channels)
    filler = _Filler(plan, seed, moment)
    if rule.draw is DrawRule.FIXED_COUNTS:
        return ChannelDraw(epoch, filler.first_of_permutations(plan.counts))
    if rule.draw is DrawRule.LARGEST_RGN:
        return ChannelDraw(epoch, filler.by_order(filler.largest_rgn(seen)))
    if rule.draw is DrawRule.OBSERVED_NORMS and seen is not None:
        return ChannelDraw(epoch, filler.by_order(filler.weighted(seen)))
    return ChannelDraw(epoch, filler.first_of_permutations(filler.uniform_counts()))


def random_bits(seed: int, epoch: int, stream: int, count: int) -> NDArray[np.uint64]:
    """``count`` raw 64-bit words of a stream that belongs to one seed, epoch and purpose."""
    return np.random.Philox(key=seed, counter=[0, 0, stream, epoch]).random_raw(count)


def permutation(seed: int, epoch: int, stream: int, count: int) -> Channels:
    """A uniform permutation of ``range(count)``."""
    return np.argsort(random_bits(seed, epoch, stream, count), kind="stable").astype(np.int64)


class _Filler:
    """Fills the budget of one epoch channel by channel."""

    def __init__(self, plan: "Plan", seed: int, epoch: int) -> None:
        self._plan, self._table, self._seed, self._epoch = plan, plan.table, seed, epoch

    def first_of_permutations(self, counts: Sequence[int]) -> dict[str, Channels]:
        """Each layer takes the first channels of its input group's permutation: draws are nested."""
        orders: dict[int, Channels] = {}
        channels = {}
        for layer, count in zip(self._table.layers, counts, strict=True):
            if count:
                if layer.group not in orders:
                    orders[layer.group] = permutation(self._seed, self._epoch, layer.group, layer.in_channels)
                channels[layer.name] = orders[layer.group][:count]
        return channels

    def uniform_counts(self) -> list[int]:
        """Counts after taking channels of the eligible layers in random order while they fit."""
        eligible = self._plan.strategy.eligible
        sizes = [self._table.layers[index].in_channels for index in eligible]
        tickets = np.repeat(np.asarray(eligible), sizes)
        order = tickets[permutation(self._seed, self._epoch, _FILL_STREAM, len(tickets))]
        purse = open_purse(self._table, self._plan.settings.scope, self._plan.settings.budget_bytes)
        cheapest = purse.cheapest(eligible)
        for index in order.tolist():
            if not purse.take(index) and purse.left < cheapest:
                break
        return purse.counts

    def by_order(self, order: Sequence[tuple[int, int]]) -> dict[str, Channels]:
        """Take given ``(layer, channel)`` pairs in order while they fit; input groups share what they store."""
        purse = open_purse(self._table, self._plan.settings.scope, self._plan.settings.budget_bytes)
        cheapest = purse.cheapest(self._plan.strategy.eligible)
        taken: dict[str, list[int]] = {}
        for index, channel in order:
            if purse.take(index, channel):
                taken.setdefault(self._table.layers[index].name, []).append(channel)
            elif purse.left < cheapest:
                break
        return {name: np.asarray(found, dtype=np.int64) for name, found in taken.items()}

    def largest_rgn(self, observed: Mapping[str, Sequence[float]] | None) -> list[tuple[int, int]]:
        """All eligible channels by RGN, the largest first; the calibrated norm stands in where none was observed."""
        keys = {}
        for index in self._plan.strategy.eligible:
            norms = np.asarray(self._plan.channel_norms(index))
            if observed is not None:
                found = self._observed(index, observed)
                norms = np.where(np.isnan(found), norms, found)
            keys[index] = norms / self._table.layers[index].sample_cost
        return self._sorted_by(keys)

    def weighted(self, observed: Mapping[str, Sequence[float]]) -> list[tuple[int, int]]:
        """All eligible channels in random order, drawn in proportion to their last observed norm.

        Unseen channels get the largest observed one. Exponential keys give sampling without replacement.

        Source:
            MeDyate, arXiv 2510.20979; Efraimidis and Spirakis 2006.
        """
        norms = {index: self._observed(index, observed) for index in self._plan.strategy.eligible}
        largest = max((float(np.nanmax(found)) for found in norms.values() if not np.isnan(found).all()), default=1.0)
        keys = {}
        for index, found in norms.items():
            weights = np.maximum(np.where(np.isnan(found), largest, found), _LEAST_WEIGHT)
            bits = random_bits(self._seed, self._epoch, _WEIGHTED_STREAMS + index, len(found))
            uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) / 2**53
            keys[index] = weights / -np.log(uniform)
        return self._sorted_by(keys)

    def _observed(self, index: int, observed: Mapping[str, Sequence[float]]) -> NDArray[np.float64]:
        """Last observed norm of each channel of a layer; ``NaN`` where there was none."""
        layer = self._table.layers[index]
        norms = np.asarray(observed.get(layer.name, [np.nan] * layer.in_channels), dtype=np.float64)
        if norms.shape != (layer.in_channels,):
            raise StrategyError(
                f"Observed norms of layer {layer.name!r} must be one for each of its {layer.in_channels} input "
                f"channels, got shape {norms.shape}. Give NaN for channels that never trained."
            )
        return norms

    def _sorted_by(self, keys: Mapping[int, NDArray[np.float64]]) -> list[tuple[int, int]]:
        layers = np.concatenate([np.full(len(found), index) for index, found in keys.items()])
        channels = np.concatenate([np.arange(len(found)) for found in keys.values()])
        order = np.argsort(-np.concatenate(list(keys.values())), kind="stable")
        return list(zip(layers[order].tolist(), channels[order].tolist(), strict=True))
