"""The draw of an epoch: a pure function of plan, seed, epoch and the norms observed so far.

All the randomness there is. Random bits come from Philox, a counter-based generator, read raw: the same
draw in every process and with every version of numpy and torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trady.planner.ledger import INDEX_BYTES, CostTable, Ledger
from trady.planner.options import Scope
from trady.planner.strategies import STRATEGIES, DrawRule

if TYPE_CHECKING:
    from trady.planner.plan import Plan

Channels: TypeAlias = NDArray[np.int64]
#: Streams of random bits of one epoch that do not overlap: one per input group, and one for the order of filling.
_FILL_STREAM: Final = 2**32 - 1


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

    def ledger(self, table: CostTable) -> Ledger:
        """The ledger of a step with these channels: an input group stores the union of its members' draws."""
        stored: dict[int, set[int]] = {}
        for layer in table.layers:
            if layer.name in self.channels:
                stored.setdefault(layer.group, set()).update(self.channels[layer.name].tolist())
        return table.ledger(self.counts(table), {group: len(found) for group, found in stored.items()})


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
    moment = epoch if rule.dynamic else 0
    if rule.draw is DrawRule.LARGEST_WEIGHTS:
        channels = {name: np.asarray(found, dtype=np.int64) for name, found in plan.strategy.fixed_channels.items()}
        return ChannelDraw(epoch, channels)
    filler = _Filler(plan, seed, moment)
    if rule.draw is DrawRule.FIXED_COUNTS:
        return ChannelDraw(epoch, filler.first_of_permutations(plan.counts))
    if rule.draw is DrawRule.LARGEST_RGN:
        return ChannelDraw(epoch, filler.by_order(filler.largest_rgn(observed)))
    if rule.draw is DrawRule.OBSERVED_NORMS and observed is not None:
        return ChannelDraw(epoch, filler.by_order(filler.weighted(observed)))
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
        purse = Purse(self._table, self._plan.settings.scope, self._plan.settings.budget_bytes)
        for index in order.tolist():
            if not purse.take(index) and purse.is_full(eligible):
                break
        return purse.counts

    def by_order(self, order: Sequence[tuple[int, int]]) -> dict[str, Channels]:
        """Take given ``(layer, channel)`` pairs in order while they fit; input groups share what they store."""
        purse = Purse(self._table, self._plan.settings.scope, self._plan.settings.budget_bytes)
        taken: dict[str, list[int]] = {}
        for index, channel in order:
            if purse.take(index, channel):
                taken.setdefault(self._table.layers[index].name, []).append(channel)
            elif purse.is_full(self._plan.strategy.eligible):
                break
        return {name: np.asarray(found, dtype=np.int64) for name, found in taken.items()}

    def largest_rgn(self, observed: Mapping[str, Sequence[float]] | None) -> list[tuple[int, int]]:
        """All eligible channels by RGN, the largest first."""
        return self._sorted_by(
            {
                index: np.asarray(self._norms(index, observed)) / self._table.layers[index].sample_cost
                for index in self._plan.strategy.eligible
            }
        )

    def weighted(self, observed: Mapping[str, Sequence[float]]) -> list[tuple[int, int]]:
        """All eligible channels in random order, drawn in proportion to their last observed norm.

        Unseen channels get the largest observed one. Exponential keys give sampling without replacement.

        Source:
            MeDyate, arXiv 2510.20979; Efraimidis and Spirakis 2006.
        """
        norms = {index: np.asarray(self._norms(index, observed)) for index in self._plan.strategy.eligible}
        seen = np.concatenate(list(norms.values()))
        largest = np.nanmax(seen) if np.isfinite(seen).any() else 1.0
        keys = {}
        for index, found in norms.items():
            bits = random_bits(self._seed, self._epoch, 2**31 + index, len(found))
            uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) / 2**53
            keys[index] = np.where(np.isnan(found), largest, np.maximum(found, 1e-30)) / -np.log(uniform)
        return self._sorted_by(keys)

    def _norms(self, index: int, observed: Mapping[str, Sequence[float]] | None) -> Sequence[float]:
        name = self._table.layers[index].name
        return observed[name] if observed is not None and name in observed else self._plan.channel_norms(index)

    def _sorted_by(self, keys: Mapping[int, NDArray[np.float64]]) -> list[tuple[int, int]]:
        layers = np.concatenate([np.full(len(found), index) for index, found in keys.items()])
        channels = np.concatenate([np.arange(len(found)) for found in keys.values()])
        order = np.argsort(-np.concatenate(list(keys.values())), kind="stable")
        return list(zip(layers[order].tolist(), channels[order].tolist(), strict=True))


class Purse:
    """A budget spent channel by channel, in the bytes of the ledger.

    Args:
        table: Costs.
        scope: What the budget holds.
        budget_bytes: What there is to spend.
    """

    def __init__(self, table: CostTable, scope: Scope, budget_bytes: int) -> None:
        self.counts = [0] * len(table.layers)
        self._table, self._scope, self._budget = table, scope, budget_bytes
        self._stored: dict[int, set[int]] = {}
        self._active = 0
        self._spent = table.scope_bytes(self.counts, scope)

    def take(self, index: int, channel: int | None = None) -> bool:
        """Take one more channel of a layer if it fits.

        Args:
            index: The layer.
            channel: Which channel; ``None`` for the next of the group's permutation.
        """
        layer = self._table.layers[index]
        key = self.counts[index] if channel is None else channel
        stored = self._stored.setdefault(layer.group, set())
        if self._active >> index & 1:
            price = self._channel_price(index) + (0 if key in stored else self._stored_price(layer.group))
        else:
            price = self._first_price(index, key, stored)
        if self._spent + price > self._budget:
            return False
        self._spent += price
        self._active |= 1 << index
        self.counts[index] += 1
        stored.add(key)
        return True

    def is_full(self, eligible: Sequence[int]) -> bool:
        """Whether not even the cheapest channel of a layer already open, or any other, could still fit."""
        left = self._budget - self._spent
        return all(self._channel_price(index) > left for index in eligible)

    def _channel_price(self, index: int) -> int:
        layer = self._table.layers[index]
        price = layer.gradient_bytes + layer.optimizer_bytes
        return price + (layer.active_weight_bytes if self._scope is Scope.TRAINING else 0)

    def _stored_price(self, group: int) -> int:
        return self._table.channel_bytes(group, self._active) + INDEX_BYTES

    def _first_price(self, index: int, key: int, stored: set[int]) -> int:
        """A layer's first channel also pays what its training makes the step keep, and may free stored inputs."""
        layer = self._table.layers[index]
        after = self._active | 1 << index
        price = self._channel_price(index) + layer.optimizer_tensor_bytes
        for group, found in self._stored.items():
            before = self._table.channel_bytes(group, self._active)
            price += len(found) * (self._table.channel_bytes(group, after) - before)
        if key not in stored:
            price += self._table.channel_bytes(layer.group, after) + INDEX_BYTES
        if self._scope is Scope.TRAINING:
            kept_before, kept_after = (sum(self._table.kept_bytes(active).values()) for active in (self._active, after))
            price += layer.bias_bytes + kept_after - kept_before
        return price
