"""Channels that train during an epoch, in one run or in many.

Held by ``tests/planner/sampling/test_schedule.py``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trady.planner.ledger import BatchedLedger, Bytes, CostTable, Ledger
from trady.planner.sampling.philox import Channels

if TYPE_CHECKING:
    pass


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

    @property
    def as_lists(self) -> dict[str, list[int]]:
        """Channels in the order drawn: that of the slices, and of what optimizers keep for them."""
        return {name: channels.tolist() for name, channels in self.channels.items()}

    @property
    def pairs(self) -> set[tuple[str, int]]:
        """Every drawn channel with its layer."""
        return {(name, channel) for name, channels in self.as_lists.items() for channel in channels}

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

    def ledger(self, costs: BatchedLedger) -> Ledger:
        """The ledger of a step with these channels.

        An input group stores the union of its members' draws and, where these are nested, one index; else each
        member has an index of its own.

        Returns:
            Lines and scopes, in bytes.
        """
        stored, indexed = {}, {}
        for group, members in self.by_group(costs.table).items():
            stored[group] = len(np.unique(np.concatenate(list(members.values()))))
            nested = self.is_nested(members)
            indexed[group] = stored[group] if nested else sum(len(channels) for channels in members.values())
        return costs.of(self.counts(costs.table), stored, indexed)


@dataclass(frozen=True)
class ChannelDraws:
    """Channels trained during one epoch in each of many runs.

    Args:
        epoch: The epoch, from 0.
        counts: Channels per layer of the table, ``[runs, layers]``.
        channels: Index of a layer -> drawn input channels in draw order, ``[runs, most drawn]``; behind a run's last
            channel stands the layer's number of channels. Layers that no run draws from are left out.
        stored: Channels stored per input group, ``[runs, groups]``.
        indexed: Indices kept per input group, ``[runs, groups]``.
    """

    epoch: int
    counts: Bytes
    channels: Mapping[int, Channels]
    stored: Bytes
    indexed: Bytes

    def of_run(self, run: int, table: CostTable) -> ChannelDraw:
        """The draw of one run."""
        found = {}
        for index, channels in self.channels.items():
            if count := int(self.counts[run, index]):
                found[table.layers[index].name] = channels[run, :count].astype(np.int64)
        return ChannelDraw(self.epoch, found)
