"""A budget spent channel by channel, in the ledger's bytes, fast enough for thousands of draws."""

from collections.abc import Sequence

from typing import Protocol

from trady.planner.ledger import INDEX_BYTES, CostTable
from trady.planner.options import Scope


class Purse:
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
