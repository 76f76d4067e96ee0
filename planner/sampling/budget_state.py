"""Budgets spent on channels, as many at once as fit together, in the ledger's bytes and in many runs at once.

Held by ``tests/planner/sampling/test_schedule.py``.
"""

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from trady.planner.ledger import INDEX_BYTES, BatchedLedger, Bytes, PeakModel
from trady.planner.options import Scope
from trady.planner.sampling.philox import SMALL_BLOCK, Channels

Flags = NDArray[np.bool_]


class BudgetState:
    """What is left of a budget in each of many runs after some channels were taken.

    Where a channel's price never changes, prices are summed up. Elsewhere, where opening a layer changes what
    everything else costs, the ledger weighs ever smaller parts of what is wanted: each costs as much as one channel.

    Args:
        ledger: Costs.
        scope: What the budget holds.
        budget_bytes: What there is to spend in each run.
        runs: How many runs.
        nested: Whether a layer's next channel is that of its input group's permutation; else channels are named, what
            is stored is their union, and each member of a group keeps indices of its own.

    Attributes:
        nested: The same.
        prices_are_fixed: Whether a channel costs the same whatever else was taken.
        counts: Channels taken, ``[runs, layers]``.
        stored: Channels stored, ``[runs, groups]``.
        left: Bytes not spent yet, ``[runs]``; moments of the peak that no draw brings above the budget are left out.
    """

    def __init__(self, ledger: BatchedLedger, scope: Scope, budget_bytes: int, runs: int, *, nested: bool) -> None:
        table = ledger.table
        self._lines, self._scope, self.nested = ledger, scope, nested
        self._budget = budget_bytes
        self.prices_are_fixed = scope is Scope.UPDATE and self._lines.has_fixed_prices
        self._members = [np.flatnonzero(self._lines.group_of == group) for group in range(len(table.groups))]
        self._shared = [(group, members) for group, members in enumerate(self._members) if len(members) > 1]
        widths = [table.layers[members[0]].in_channels if len(members) else 0 for members in self._members]
        self._first_key = np.concatenate([[0], np.cumsum(widths, dtype=np.int64)])
        self._is_stored = np.zeros((runs if self._shared and not nested else 0, int(self._first_key[-1])), dtype=bool)
        self.counts = np.zeros((runs, len(table.layers)), dtype=np.int64)
        self.stored = np.zeros((runs, len(table.groups)), dtype=np.int64)
        self.left: Bytes = np.repeat(budget_bytes - self._costs(self.counts[:1], self.stored[:1]), runs)
        channel = [
            layer.optimizer_bytes
            + (0 if scope is Scope.PEAK else layer.gradient_bytes)
            + (0 if scope is Scope.UPDATE else layer.active_weight_bytes)
            for layer in table.layers
        ]
        self._old_prices = np.array(channel, dtype=np.int64) + (0 if nested else INDEX_BYTES)
        storing = self._lines.stored_prices(self._lines.trained(self.counts[:1]))[0] + INDEX_BYTES
        self._new_prices = np.array(channel, dtype=np.int64) + storing[self._lines.group_of]
        self._opening_prices = np.array([layer.optimizer_tensor_bytes for layer in table.layers], dtype=np.int64)

    def least_prices(self, runs: Channels) -> Bytes:
        """The least that the next channel of each layer can cost, ``[runs asked for, layers]``."""
        counts = self.counts[runs]
        if not (self.prices_are_fixed and self.nested):
            return np.broadcast_to(self._old_prices, counts.shape)
        prices = np.broadcast_to(self._new_prices, counts.shape)
        if self._shared:
            prices = np.where(counts >= self.stored[runs][:, self._lines.group_of], prices, self._old_prices)
        return np.where(counts > 0, prices, prices + self._opening_prices)

    def may_take(self, runs: Channels, layers: Channels) -> Flags:
        """Whether one more channel of a layer may fit, for a layer of each of some runs: the ledger is asked."""
        is_shared = np.array([len(members) > 1 for members in self._members])[self._lines.group_of[layers]]
        is_new = np.logical_not(is_shared)[:, None]
        after = self._after(runs, layers[:, None], is_new, np.ones_like(is_new))
        return self._costs(*after) <= self._budget

    def take(self, runs: Channels, layers: Channels, channels: Channels | None = None) -> Channels:
        """Take as many of the next channels as fit together.

        Args:
            runs: Which runs, each once.
            layers: Layers of the channels wanted, in their order, ``[runs, wanted]``; -1 stands for none.
            channels: Their numbers, where draws are not nested.

        Returns:
            How many were taken, ``[runs]``; the next one, where there is one, does not fit.
        """
        is_new = self._is_new(runs, layers, channels)
        how_many = self._fitting if self.prices_are_fixed else self._weighed
        taken = how_many(runs, layers, is_new)
        most = int(taken.max(initial=0))
        layers, is_new = layers[:, :most], is_new[:, :most]
        is_taken = (np.arange(most) < taken[:, None]) & (layers >= 0)
        counts, stored, indexed = self._after(runs, layers, is_new, is_taken)
        self.counts[runs], self.stored[runs] = counts, stored
        if not self.prices_are_fixed:
            self.left[runs] = self._budget - self._costs(counts, stored, indexed)
        if self._shared and not self.nested and channels is not None:
            rows, places = np.nonzero(is_taken)
            keys = self._first_key[self._lines.group_of[layers[rows, places]]] + channels[rows, places]
            self._is_stored[runs[rows], keys] = True
        return taken

    def _fitting(self, runs: Channels, layers: Channels, is_new: Flags) -> Channels:
        """How many of the next channels fit together, by their prices; spends them."""
        nothing = np.zeros(1, dtype=np.int64)  # stands last, where -1 points
        prices = np.append(self._new_prices, nothing).take(layers)
        if self._shared:
            prices = np.where(is_new, prices, np.append(self._old_prices, nothing).take(layers))
        if self._opening_prices.any():
            opens = is_first(layers, len(self._lines.table.layers) + 1) & (self.counts[runs[:, None], layers] == 0)
            prices += opens * np.append(self._opening_prices, nothing).take(layers)
        spent = np.cumsum(prices, axis=1, out=prices)
        taken: Channels = np.count_nonzero(spent <= self.left[runs, None], axis=1)
        self.left[runs] -= np.where(taken > 0, spent[np.arange(len(runs)), taken - 1], 0)
        return taken

    def _weighed(self, runs: Channels, layers: Channels, is_new: Flags) -> Channels:
        """How many of the next channels fit together, halving what is in doubt: some do, one more does not."""
        places, wanted = np.arange(layers.shape[1]), layers >= 0
        fitting = np.zeros(len(runs), dtype=np.int64)
        too_many = np.where(wanted, places + 1, 0).max(axis=1, initial=0) + 1
        tried, step = too_many - 1, 1
        doubtful = np.flatnonzero(tried)
        while len(doubtful):
            is_tried = (places < tried[doubtful, None]) & wanted[doubtful]
            after = self._after(runs[doubtful], layers[doubtful], is_new[doubtful], is_tried)
            fits = self._costs(*after) <= self._budget
            fitting[doubtful[fits]] = tried[doubtful[fits]]
            too_many[doubtful[~fits]] = tried[doubtful[~fits]]
            tried = np.minimum(fitting + step, (fitting + too_many) // 2)  # near the budget few more fit
            step *= 2
            doubtful = doubtful[too_many[doubtful] - fitting[doubtful] > 1]
        return fitting

    def _is_new(self, runs: Channels, layers: Channels, channels: Channels | None) -> Flags:
        """Whether the input group of each channel wanted stores one more then, if all before it are taken."""
        is_new: Flags = layers >= 0
        if not self._shared:
            return is_new
        groups = np.append(self._lines.group_of, len(self._members)).take(layers)
        if not self.nested and channels is not None:
            keys = self._first_key[groups] + np.where(layers < 0, 0, channels)
            known = np.pad(self._is_stored[runs], ((0, 0), (0, 1)), constant_values=True)
            rows = np.arange(len(runs))[:, None]
            is_new = is_first(keys, known.shape[1]) & ~known[rows, keys]
            return is_new
        for group, members in self._shared:
            most = self.stored[runs, group, None]
            counts = [self.counts[runs, layer, None] + np.cumsum(layers == layer, axis=1) for layer in members]
            so_far = np.maximum(np.max(counts, axis=0), most)
            grows = np.diff(so_far, axis=1, prepend=most) > 0
            is_new = np.where(groups == group, grows, is_new)
        return is_new

    def _after(self, runs: Channels, layers: Channels, is_new: Flags, is_taken: Flags) -> tuple[Bytes, Bytes, Bytes]:
        """Counts, channels stored and indices kept after some of the channels wanted."""
        counts = self.counts[runs] + counted(layers, is_taken, len(self._lines.table.layers))
        if self.nested:
            stored = self._lines.most_of_groups(counts)
            return counts, stored, stored
        groups = np.append(self._lines.group_of, 0).take(layers)
        stored = self.stored[runs] + counted(groups, is_taken & is_new, len(self._members))
        return counts, stored, self._lines.sums_of_groups(counts)

    def _costs(self, counts: Bytes, stored: Bytes, indexed: Bytes | None = None) -> Bytes:
        """What the budget is held against, ``[runs]``; of the peak, the moments that may exceed it."""
        if self._scope is not Scope.PEAK:
            return self._lines.scope_bytes(counts, self._scope, stored, indexed)
        return self._peak_model.peaks(counts, stored, indexed)

    @cached_property
    def _peak_model(self) -> PeakModel:
        return self._lines.peak_model.exceeding(self._budget)


def is_first(keys: Channels, size: int) -> Flags:
    """Whether each key is the first of its kind in its row.

    Every key's place is written down, the first one's last, and read again: nothing needs to be sorted or cleared.

    Args:
        keys: ``[rows, keys]``, from 0 to ``size - 1``, or -1 for the last.
        size: How many there may be.
    """
    number = keys.shape[1]
    found = np.empty(keys.shape, dtype=bool)
    places = np.arange(number, dtype=np.uint16 if number < 2**16 else np.uint32)[::-1]
    at_once = max(1, 16 * SMALL_BLOCK // size)  # rows whose notes stay in a cache
    notes = np.empty(at_once * size, dtype=places.dtype)
    for first in range(0, len(keys), at_once):
        backwards = keys[first : first + at_once, ::-1]
        rows = size * np.arange(len(backwards))[:, None]
        flat = np.ascontiguousarray(np.where(backwards < 0, size - 1, backwards) + rows).reshape(-1)
        notes[flat] = np.tile(places, len(backwards))  # of equal ones, the last assigned is kept
        found[first : first + at_once] = (notes.take(flat).reshape(backwards.shape) == places)[:, ::-1]
    return found


def counted(values: Channels, is_counted: Flags, size: int) -> Bytes:
    """How often each value from 0 to ``size - 1`` stands in each row, ``[rows, size]``."""
    rows = (size + 1) * np.arange(len(values))[:, None]
    flat = np.where(is_counted, values, size) + rows
    found: Bytes = np.bincount(flat.reshape(-1), minlength=(size + 1) * len(values)).reshape(-1, size + 1)[:, :-1]
    return found
