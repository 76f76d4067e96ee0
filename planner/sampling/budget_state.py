"""Budgets spent channel by channel, in the ledger's bytes, in many runs at once."""

import numpy as np
from numpy.typing import NDArray

from trady.planner.ledger import INDEX_BYTES, BatchedLedger, Bytes, with_margin
from trady.planner.options import Scope
from trady.planner.sampling.philox import Channels

Flags = NDArray[np.bool_]


class Purses:
    """What is left of a budget in each of many runs after some channels were taken.

    Prices are kept between purchases: opening a layer, which may change what everything else costs, is rare. Under a
    budget of the peak every purchase is weighed anew.

    Args:
        ledger: Costs.
        scope: What the budget holds.
        budget_bytes: What there is to spend in each run.
        runs: How many runs.
        nested: Whether a layer's next channel is that of its input group's permutation; else channels are named, what
            is stored is their union, and each member of a group keeps indices of its own.
    """

    def __init__(self, ledger: BatchedLedger, scope: Scope, budget_bytes: int, runs: int, *, nested: bool) -> None:
        self._lines, self._scope, self._nested = ledger, scope, nested
        table = ledger.table
        training = scope is Scope.TRAINING
        self._channel_prices = np.array(
            [
                layer.optimizer_bytes
                + (0 if scope is Scope.PEAK else layer.gradient_bytes)
                + (0 if scope is Scope.UPDATE else layer.active_weight_bytes)
                for layer in table.layers
            ],
            dtype=np.int64,
        )
        self._tensor_prices = np.array(
            [layer.optimizer_tensor_bytes + (layer.bias_bytes if training else 0) for layer in table.layers],
            dtype=np.int64,
        )
        self._fixed = scope is Scope.UPDATE and self._lines.has_fixed_prices
        self.counts = np.zeros((runs, len(table.layers)), dtype=np.int64)
        self.stored = np.zeros((runs, len(table.groups)), dtype=np.int64)
        self._storing = self._storing_prices(self.counts)
        self._spent = self._lines.scope_bytes(self.counts, scope)
        self._budget = budget_bytes
        if scope is Scope.PEAK:
            self._moments = ledger.peak_model.values(self.counts, self.stored)
        widths = np.zeros(len(table.groups), dtype=np.int64)
        widths[self._lines.group_of] = [layer.in_channels for layer in table.layers]
        self._first_key = np.concatenate([[0], np.cumsum(widths)])
        self._is_stored = np.zeros((0 if nested else runs, int(self._first_key[-1])), dtype=bool)

    @property
    def left(self) -> Bytes:
        """Bytes not spent yet, ``[runs]``."""
        return self._budget - self._spent

    @property
    def prices_are_fixed(self) -> bool:
        """Whether what does not fit now will not fit later; else opening a layer may make others cheaper."""
        return self._fixed

    def least_prices(self, runs: Channels) -> Bytes:
        """The least that the next channel of each layer can cost, ``[runs asked for, layers]``."""
        prices = np.broadcast_to(self._channel_prices, (len(runs), len(self._channel_prices)))
        if self._scope is Scope.PEAK:
            return prices
        if not self._nested:
            return prices + INDEX_BYTES
        counts, group = self.counts[runs], self._lines.group_of
        is_new = counts >= self.stored[runs][:, group]
        exact = prices + np.where(is_new, self._storing[runs][:, group], 0)
        opening = exact + self._tensor_prices if self._fixed else prices
        return np.where(counts > 0, exact, opening)

    def take(self, runs: Channels, layers: Channels, channels: Channels | None = None) -> Flags:
        """Take one more channel in each of some runs where it fits.

        Args:
            runs: Which runs, each once.
            layers: A layer for each of them.
            channels: Which channel of it, where draws are not nested.

        Returns:
            Whether it fitted, for each.
        """
        groups = self._lines.group_of[layers]
        is_new = self._is_new(runs, layers, groups, channels)
        opens = self.counts[runs, layers] == 0
        prices = self._channel_prices[layers] + np.where(is_new, self._storing[runs, groups], 0)
        if not self._nested:
            prices += np.where(is_new, 0, INDEX_BYTES)
        prices += np.where(opens, self._tensor_prices[layers], 0)
        if self._scope is Scope.PEAK:
            prices, moments = self._peak_prices(runs, layers, groups, is_new, opens)
        elif not self._fixed and opens.any():
            prices[opens] = self._opening_prices(runs[opens], layers[opens], groups[opens], is_new[opens])
        fits = prices <= self.left[runs]
        taken, group = runs[fits], groups[fits]
        self._spent[taken] += prices[fits]
        self.counts[taken, layers[fits]] += 1
        self.stored[taken, group] += is_new[fits]
        if self._scope is Scope.PEAK:
            self._moments[taken] = moments[fits]
        if channels is not None:
            self._is_stored[taken, self._first_key[group] + channels[fits]] = True
        if not self._fixed:
            opened = runs[fits & opens]
            self._storing[opened] = self._storing_prices(self.counts[opened])
        return fits

    def _is_new(self, runs: Channels, layers: Channels, groups: Channels, channels: Channels | None) -> Flags:
        if channels is None:
            return self.counts[runs, layers] >= self.stored[runs, groups]
        return np.logical_not(self._is_stored[runs, self._first_key[groups] + channels])

    def _opening_prices(self, runs: Channels, layers: Channels, groups: Channels, is_new: Flags) -> Bytes:
        """What the scope grows by, from the ledger itself."""
        after = self._after(runs, layers, groups, is_new)
        return self._lines.scope_bytes(after[0], self._scope, *after[1:]) - self._spent[runs]

    def _peak_prices(
        self, runs: Channels, layers: Channels, groups: Channels, is_new: Flags, opens: Flags
    ) -> tuple[Bytes, Bytes]:
        """What the peak grows by, and what lives at each moment then."""
        counts, stored, indexed = self._after(runs, layers, groups, is_new)
        model, trains = self._lines.peak_model, np.logical_not(opens)
        moments = np.empty((len(runs), len(model.moments)), dtype=np.int64)
        moments[opens] = model.values(counts[opens], stored[opens])
        moments[trains] = model.grown(
            self._moments[runs[trains]],
            layers[trains],
            counts[trains, layers[trains]] - 1,
            np.where(is_new, groups, -1)[trains],
            self._lines.is_stored(self._lines.trained(counts[trains])),
        )
        lasting = self._lines.lasting_bytes(counts, stored, indexed)
        return lasting + with_margin(moments.max(axis=1)) - self._spent[runs], moments

    def _after(self, runs: Channels, layers: Channels, groups: Channels, is_new: Flags) -> tuple[Bytes, Bytes, Bytes]:
        """Counts, channels stored and indices kept after one more channel."""
        counts, stored = self.counts[runs], self.stored[runs]
        rows = np.arange(len(runs))
        counts[rows, layers] += 1
        stored[rows, groups] += is_new
        return counts, stored, stored if self._nested else self._lines.sums_of_groups(counts)

    def _storing_prices(self, counts: Bytes) -> Bytes:
        return self._lines.stored_prices(self._lines.trained(counts)) + INDEX_BYTES
