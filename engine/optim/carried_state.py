"""Optimizer state of single channels, kept on the CPU while they are not drawn.

Held by ``tests/engine/optim/test_optimizer_state.py``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

#: Most steps a slice counts when a channel that never trained is among its channels. Under Adam's usual betas such
#: a channel then moves between half and 1.13 times as far as with a count of its own; counting on would let it move
#: up to three times as far.
FRESH_STEPS: Final = 10
#: Entries that are divided by ``1 - beta ** step`` before use, and which of ``betas`` is theirs.
_BIAS_CORRECTED: Final = {"exp_avg": 0, "exp_avg_sq": 1, "max_exp_avg_sq": 1}
#: Entries that do not start at zero, and the option they start at.
_STARTS_AT: Final = {"sum": "initial_accumulator_value", "step_size": "lr"}


@dataclass
class ChannelState:
    """State of some channels of one layer.

    Args:
        channels: Which ones, int64 ``[k]``.
        entries: Entry of the optimizer -> its values, ``[k, ...]``.
        counts: Steps each channel has seen, ``[k]``; ``None`` for an optimizer that counts none. Integers where the
            optimizer counts in Python, floating point where it counts in a tensor.
    """

    channels: Tensor
    entries: dict[str, Tensor]
    counts: Tensor | None

    def where(self, chosen: Tensor) -> "ChannelState":
        """Some of the channels, by mask or by index."""
        entries = {name: rows[chosen] for name, rows in self.entries.items()}
        return ChannelState(self.channels[chosen], entries, None if self.counts is None else self.counts[chosen])

    def joined(self, other: "ChannelState") -> "ChannelState":
        """These channels and then those of ``other``, which has the same entries."""
        entries = {name: torch.cat([rows, other.entries[name]]) for name, rows in self.entries.items()}
        counts = None if self.counts is None or other.counts is None else torch.cat([self.counts, other.counts])
        return ChannelState(torch.cat([self.channels, other.channels]), entries, counts)

    def like(self, other: "ChannelState") -> bool:
        """Whether both are of the same kind of optimizer."""
        return self.entries.keys() == other.entries.keys() and (self.counts is None) == (other.counts is None)


@dataclass
class SliceState:
    """State of a slice made of carried channels.

    Args:
        entries: Entry of the optimizer -> values by channel, ``[n, ...]``, on the CPU.
        step: Count of the slice; ``None`` for an optimizer that counts no steps.
    """

    entries: dict[str, Tensor]
    step: float | None


class CarriedState:
    """What ``carry=True`` keeps: the state of every channel that trained and is not drawn now.

    A slice has one step count, its channels have one each. When a slice is drawn, it takes the smallest count of its
    channels, at most :data:`FRESH_STEPS` if one of them never trained, and the averages of the others are scaled so
    that their bias-corrected values stay exactly what they were. Channels of equal counts therefore go on as if they
    had never left.

    Known limitations:
        A channel that never trained is bias-corrected by the slice's count instead of its own (see
        :data:`FRESH_STEPS`). Only averages named as ``torch.optim`` names them are scaled.
    """

    def __init__(self) -> None:
        self._stored: dict[str, ChannelState] = {}
        self._lags: dict[str, Tensor] = {}

    def put(self, name: str, channels: Sequence[int], entries: Mapping[str, Tensor], step: float | None) -> None:
        """Keep the channels of a slice.

        Args:
            name: The slice.
            channels: Its channels.
            entries: Entry -> values by channel, ``[n, ...]``, on any device.
            step: The slice's count, an ``int`` where the optimizer counts in Python.
        """
        rows = {entry: values.detach().to("cpu", copy=True).contiguous() for entry, values in entries.items()}
        found = ChannelState(torch.tensor(channels, dtype=torch.int64), rows, self._counts(name, len(channels), step))
        if found.counts is not None:
            found = found.where(found.counts > 0)
        old = self._stored.get(name)
        if old is not None and old.like(found):
            found = old.where(~torch.isin(old.channels, found.channels)).joined(found)
        self._stored[name] = found

    def take(self, name: str, channels: Sequence[int], group: Mapping[str, object]) -> SliceState | None:
        """The state of a slice of these channels, which are no longer kept here; ``None`` if none was known.

        Args:
            name: The slice.
            channels: Its channels.
            group: Parameter group it is in: where channels without state start, and Adam's betas.
        """
        self._lags.pop(name, None)
        stored, wanted = self._stored.get(name), torch.tensor(channels, dtype=torch.int64)
        if stored is None or not torch.isin(wanted, stored.channels).any():
            return None
        self._stored[name] = stored.where(~torch.isin(stored.channels, wanted))
        places = torch.isin(wanted, stored.channels).nonzero().flatten()
        found, step = stored.where(_rows_of(wanted[places], stored.channels)), None
        if found.counts is not None:
            step = self._common_count(found.counts, len(places) < len(wanted))
            self._lags[name] = torch.full((len(wanted),), step, dtype=found.counts.dtype).index_fill_(0, places, 0)
            _rescale(found, step, group)
        return SliceState({entry: _spread(entry, found, places, len(wanted), group) for entry in found.entries}, step)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain containers, for ``torch.load(weights_only=True)``."""
        stored = {
            name: {"channels": found.channels, "entries": dict(found.entries), "counts": found.counts}
            for name, found in self._stored.items()
        }
        return {"stored": stored, "lags": dict(self._lags)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self._stored = {name: ChannelState(**found) for name, found in state["stored"].items()}
        self._lags = dict(state["lags"])

    @staticmethod
    def _common_count(counts: Tensor, some_fresh: bool) -> float:
        step = counts.min().item()
        return min(step, type(step)(FRESH_STEPS)) if some_fresh else step

    def _counts(self, name: str, num_channels: int, step: float | None) -> Tensor | None:
        """What each channel counts: the slice's count, less what it counted before the channel's own first step."""
        if step is None:
            return None
        counts = torch.full((num_channels,), step, dtype=torch.int64 if isinstance(step, int) else torch.float64)
        return counts - self._lags[name] if name in self._lags else counts


def _rows_of(wanted: Tensor, channels: Tensor) -> Tensor:
    """Where each wanted channel is among ``channels``, all of which it is one of."""
    ordered, rows = channels.sort()
    return rows[torch.searchsorted(ordered, wanted)]


def _rescale(found: ChannelState, step: float, group: Mapping[str, Any]) -> None:
    """Scale averages of channels that counted more than ``step``: corrected for ``step``, they are what they were."""
    for entry, rows in found.entries.items():
        if entry in _BIAS_CORRECTED and "betas" in group and found.counts is not None:
            beta = float(group["betas"][_BIAS_CORRECTED[entry]])
            factors = (1 - beta**step) / (1 - beta ** found.counts.double())
            rows.mul_(factors.view(-1, *[1] * (rows.dim() - 1)).to(rows.dtype))


def _spread(entry: str, found: ChannelState, places: Tensor, num_channels: int, group: Mapping[str, Any]) -> Tensor:
    """An entry of all channels of a slice: the known ones at their places, the others at their start."""
    rows = found.entries[entry]
    start = float(group.get(_STARTS_AT[entry], 0)) if entry in _STARTS_AT else 0.0
    return rows.new_full((num_channels, *rows.shape[1:]), start).index_copy_(0, places, rows)
