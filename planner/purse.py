"""A budget spent channel by channel, in the ledger's bytes, fast enough for thousands of draws."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from trady.planner.cost_records import INDEX_BYTES
from trady.planner.ledger import CostTable
from trady.planner.options import Scope
from trady.planner.peaks import Bytes, with_margin


class Purse(Protocol):
    """What is left of a budget after some channels were taken."""

    counts: list[int]

    def take(self, index: int, channel: int | None = None) -> bool:
        """Take one more channel of a layer if it fits; ``None`` for the next of the group's permutation."""

    @property
    def left(self) -> int:
        """Bytes not spent yet."""

    def cheapest(self, eligible: Sequence[int]) -> int:
        """The least any channel of these layers can cost, in bytes."""


def open_purse(table: CostTable, scope: Scope, budget_bytes: int) -> Purse:
    """A full purse.

    Args:
        table: Costs.
        scope: What the budget holds.
        budget_bytes: What there is to spend.
    """
    if scope is Scope.PEAK:
        return PeakPurse(table, budget_bytes)
    return LinePurse(table, scope, budget_bytes)


class LinePurse:
    """What is left of a budget after some channels were taken.

    Prices are kept between purchases: opening a layer, which changes what everything else costs, is rare.

    Args:
        table: Costs.
        scope: What the budget holds.
        budget_bytes: What there is to spend.
    """

    def __init__(self, table: CostTable, scope: Scope, budget_bytes: int) -> None:
        self._table, self._training = table, scope is Scope.TRAINING
        self._budget = budget_bytes
        self.counts = [0] * len(table.layers)
        self.spent = table.scope_bytes(self.counts, scope)
        self._stored: list[set[int]] = [set() for _ in table.groups]
        self._groups = [layer.group for layer in table.layers]
        self._channel_prices = [
            layer.gradient_bytes + layer.optimizer_bytes + (layer.active_weight_bytes if self._training else 0)
            for layer in table.layers
        ]
        self._active = 0
        self._stored_prices = self._stored_prices_with(0)
        self._unkept = self._kept_terms() if self._training else []
        self._openings: dict[int, tuple[int, list[int]]] = {}

    def take(self, index: int, channel: int | None = None) -> bool:
        """Take one more channel of a layer if it fits.

        Args:
            index: The layer.
            channel: Which channel; ``None`` for the next of the group's permutation.
        """
        group = self._groups[index]
        key = self.counts[index] if channel is None else channel
        if self.counts[index]:
            price = self._channel_prices[index]
            if key not in self._stored[group]:
                price += self._stored_prices[group]
            elif channel is not None:
                price += INDEX_BYTES  # draws that are not nested: each member has an index of its own
        else:
            price = self._opening_price(index, key, own_index=channel is not None)
        if self.spent + price > self._budget:
            return False
        if not self.counts[index]:
            self._open(index)
        self.spent += price
        self.counts[index] += 1
        self._stored[group].add(key)
        return True

    @property
    def left(self) -> int:
        """Bytes not spent yet."""
        return self._budget - self.spent

    def cheapest(self, eligible: Sequence[int]) -> int:
        """The least any channel of these layers can cost, in bytes: below that the purse is as good as empty."""
        return min((self._channel_prices[index] for index in eligible), default=0)

    def _opening_price(self, index: int, key: int, own_index: bool) -> int:
        """A layer's first channel also pays what its training makes the step keep, and may free stored inputs."""
        if index not in self._openings:
            self._openings[index] = self._opening(index)
        fixed, stored_prices = self._openings[index]
        price = self._channel_prices[index] + fixed
        if stored_prices is not self._stored_prices:
            changes = zip(self._stored, stored_prices, self._stored_prices, strict=True)
            price += sum(len(stored) * (after - before) for stored, after, before in changes)
        group = self._groups[index]
        if key in self._stored[group]:
            return price + (INDEX_BYTES if own_index else 0)
        return price + stored_prices[group]

    def _opening(self, index: int) -> tuple[int, list[int]]:
        """Bytes that opening a layer adds once, and what each group's channels cost to store from then on."""
        layer = self._table.layers[index]
        fixed = layer.optimizer_tensor_bytes
        if self._training:
            fixed += layer.bias_bytes + sum(num_bytes for bits, num_bytes in self._unkept if bits >> index & 1)
        after = self._stored_prices_with(self._active | 1 << index)
        return fixed, self._stored_prices if after == self._stored_prices else after

    def _open(self, index: int) -> None:
        self._active |= 1 << index
        self._stored_prices = self._stored_prices_with(self._active)
        self._unkept = [term for term in self._unkept if not term[0] >> index & 1]
        self._openings.clear()

    def _stored_prices_with(self, active: int) -> list[int]:
        return [self._table.channel_bytes(group, active) + INDEX_BYTES for group in range(len(self._table.groups))]

    def _kept_terms(self) -> list[tuple[int, int]]:
        """Layers and bytes of what is not kept before anything is drawn."""
        upstreams = self._table.upstreams
        terms = ((upstreams[upstream], num_bytes) for (_, upstream), num_bytes in self._table.kept_terms.items())
        return [(found.bits, num_bytes) for found, num_bytes in terms if not found.always]


class PeakPurse:
    """A budget of the peak: what lives at every moment of the step is kept up to date.

    Args:
        table: Costs, with lifetimes.
        budget_bytes: What there is to spend.
    """

    def __init__(self, table: CostTable, budget_bytes: int) -> None:
        self._table, self._model, self._budget = table, table.peak_model, budget_bytes
        self.counts = [0] * len(table.layers)
        self._stored: list[set[int]] = [set() for _ in table.groups]
        self._values = self._evaluated()
        self._lasting = table.lasting_bytes(self.counts)
        self.spent = self._lasting + self._most(self._values)

    def take(self, index: int, channel: int | None = None) -> bool:
        """Take one more channel of a layer if it fits."""
        layer = self._table.layers[index]
        stored = self._stored[layer.group]
        key = self.counts[index] if channel is None else channel
        is_new = key not in stored
        self.counts[index] += 1
        if is_new:
            stored.add(key)
        values = self._evaluated() if self.counts[index] == 1 else self._grown(index, is_new)
        lasting = self._table.lasting_bytes(self.counts, self._stored_counts())
        spent = lasting + self._most(values)
        if spent > self._budget:
            self.counts[index] -= 1
            if is_new:
                stored.remove(key)
            return False
        self._values, self._lasting, self.spent = values, lasting, spent
        return True

    @property
    def left(self) -> int:
        """Bytes not spent yet."""
        return self._budget - self.spent

    def cheapest(self, eligible: Sequence[int]) -> int:
        """The least any channel of these layers can cost: what lives all through the step."""
        layers = (self._table.layers[index] for index in eligible)
        return min((layer.active_weight_bytes + layer.optimizer_bytes for layer in layers), default=0)

    def _evaluated(self) -> Bytes:
        return self._model.values(self.counts, self._stored_counts())

    def _grown(self, index: int, is_new: bool) -> Bytes:
        """One more channel of a layer that trains already; moments that do not come stay at zero."""
        grown = self._model.channel_growth(index, self.counts[index])
        if is_new:
            grown = grown + self._model.stored_growth(self._table.layers[index].group, self.counts)
        return np.where(self._values > 0, self._values + grown, 0)

    def _stored_counts(self) -> dict[int, int]:
        return {group: len(stored) for group, stored in enumerate(self._stored) if stored}

    @staticmethod
    def _most(values: Bytes) -> int:
        return int(with_margin(int(values.max(initial=0))))
