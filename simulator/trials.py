"""What a chunk of trials has reached so far, layer by layer, and the gradients it followed."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trady.planner.plan import Plan
from trady.planner.reports import layer_rgn
from trady.planner.sampling import ChannelDraws, Channels
from trady.simulator.gradients import Gradients, Vectors
from trady.simulator.streaming_statistics import Values

#: Epochs that fit beside the number of updates in one 32-bit integer.
MOST_EPOCHS = 2**15 - 1
_LAST, _ONCE = 0xFFFF, 0x10000
#: What a layer's draw comes to in each trial.
_SUMS = ("first", "first_rgn", "waited", "square", "aligned", "grown")


class GradientPath:
    """The full gradient and its running sum, epoch by epoch.

    Args:
        gradients: What to follow.

    Attributes:
        vectors: The gradient of each layer, ``[numbers, channels]``.
        squares: Squared norm of each channel's, for each layer.
        layer_squares: Of each layer's, ``[layers]``.
        sums: Running sums of the vectors; empty where all epochs have the same.
        sum_square: Squared norm of the running sum; of one epoch's gradient where all are the same.
    """

    def __init__(self, gradients: Gradients) -> None:
        self._gradients = gradients
        self.constant = gradients.constant
        self.sums: list[Vectors] = []
        self._epoch = -1

    def go_to(self, epoch: int) -> None:
        """Move on to the next epoch, or stay."""
        if self._epoch == epoch or (self.constant and epoch):
            return
        self._epoch = epoch
        self.vectors = self._gradients.vectors(epoch)
        self.squares = [(found**2).sum(axis=0) for found in self.vectors]
        self.layer_squares = np.array([found.sum() for found in self.squares])
        if not self.constant:
            before = self.sums or [np.zeros_like(found) for found in self.vectors]
            self.sums = [total + found for total, found in zip(before, self.vectors, strict=True)]
        self.sum_square = float(sum((total**2).sum() for total in (self.sums or self.vectors)))

    @property
    def norms(self) -> list[Vectors]:
        """Norm of each channel, for each layer, as a run would observe it; made when asked for."""
        return self._gradients.norms(self._epoch)


class Followed:
    """One layer in a chunk of trials: which channels were drawn, how often, and the sum of their gradients.

    Args:
        in_channels: Input channels of the layer.
        rgn: RGN of each.
        trials: Trials of the chunk.
        numbers: Numbers of a channel's gradient vector; 0 where gradients never change.
    """

    def __init__(self, in_channels: int, rgn: Vectors, trials: int, numbers: int) -> None:
        self._size, self._trials = in_channels, trials
        self._rows = np.arange(trials)[:, None] * (in_channels + 1)
        self._rgn = _with_nothing(rgn).astype(np.float32)
        self._state = np.zeros((trials, in_channels + 1), dtype=np.int32)
        self._drawn_sum = np.zeros((numbers, trials, in_channels + 1), dtype=np.float32)

    def add(self, epoch: int, channels: Channels, path: GradientPath, index: int) -> dict[str, Values]:
        """Draw some channels, and say what that comes to in each trial.

        Args:
            epoch: The epoch.
            channels: ``[trials, most drawn]``, padded with the layer's number of channels.
            path: The gradients of this epoch.
            index: The layer.
        """
        self._state[:, self._size] = epoch + 1  # what stands behind a trial's last channel was never new
        drawn = channels.astype(np.int64)
        places, flat = drawn + self._rows, self._state.reshape(-1)
        state = flat.take(places)
        last = state & _LAST
        before, is_first = state - last, last == 0
        square = _with_nothing(path.squares[index]).astype(np.float32).take(drawn)
        number = np.count_nonzero(is_first, axis=1)
        found = {
            "first": number,
            "first_rgn": np.einsum("tc,tc->t", self._rgn.take(drawn), is_first),
            "waited": (epoch + 1) * (drawn.shape[1] - number) - last.sum(axis=1),
            "square": square.sum(axis=1),
        }
        if path.constant:
            found["aligned"] = found["square"]
            again = np.einsum("tc,tc->t", before.astype(np.float32), square)
            found["grown"] = found["square"] + (2.0 / _ONCE) * again
        else:
            found |= self._follow(places, drawn, path.vectors[index], path.sums[index])
        flat[places] = before + np.int32(_ONCE + epoch + 1)
        return found

    def _follow(self, places: Channels, channels: Channels, vectors: Vectors, sums: Vectors) -> dict[str, Values]:
        """What an epoch adds to the running sums' product, and to the square of the drawn gradients' sum."""
        aligned, grown = self.pass_by(vectors), np.zeros(self._trials)
        for number, drawn_sum in enumerate(self._drawn_sum):
            flat = drawn_sum.reshape(-1)
            before = flat.take(places)
            step = _with_nothing(vectors[number]).take(channels)
            aligned += np.einsum("tc,tc->t", step, _with_nothing(sums[number]).take(channels))
            grown += np.einsum("tc,tc->t", step, 2.0 * before + step)
            flat[places] = before + step
        return {"aligned": aligned, "grown": grown}

    def pass_by(self, vectors: Vectors) -> Values:
        """What the full gradient adds to the running sums' product, whatever the epoch draws.

        Args:
            vectors: The layer's gradient in this epoch, ``[numbers, channels]``.
        """
        parts = zip(self._drawn_sum, vectors.astype(np.float32), strict=True)
        found: Values = sum((drawn[:, :-1] @ vector for drawn, vector in parts), start=np.zeros(self._trials))
        return found


class Follower:
    """A chunk of trials from epoch to epoch.

    Args:
        plan: The plan.
        gradients: What the full gradient is.
        trials: Trials of the chunk.
    """

    def __init__(self, plan: Plan, gradients: Gradients, trials: int) -> None:
        self._layers, self._trials = plan.table.layers, trials
        self._total_rgn = sum(layer_rgn(plan)) or 1.0
        self._rgn = [
            np.array(plan.channel_norms(index)) / layer.sample_cost for index, layer in enumerate(self._layers)
        ]
        self._num_channels = sum(layer.in_channels for layer in self._layers)
        self.path = GradientPath(gradients)
        self._followed: dict[int, Followed] = {}
        self._totals = {name: np.zeros(trials) for name in ("first", "first_rgn", "aligned", "grown")}

    def add(self, epoch: int, draws: ChannelDraws) -> dict[str, Values]:
        """One epoch's measures, ``[trials]`` each."""
        self.path.go_to(epoch)
        parts = [self._layer(index).add(epoch, drawn, self.path, index) for index, drawn in draws.channels.items()]
        sums = {name: sum((part[name] for part in parts), start=np.zeros(self._trials)) for name in _SUMS}
        sums["aligned"] += self._passed_by(draws)
        for name, total in self._totals.items():
            total += sums[name]
        full = float(self.path.layer_squares.sum())
        captured = sums["square"] / (full or 1.0)
        repeated = draws.counts.sum(axis=1) - sums["first"]
        return {
            "channels_reached": self._totals["first"] / self._num_channels,
            "rgn_reached": self._totals["first_rgn"] / self._total_rgn,
            "repeated_channels": repeated,
            "epochs_waited": sums["waited"],
            "captured_share": captured,
            "cosine": np.sqrt(captured),
            "running_cosine": self._running_cosine(),
        }

    def _running_cosine(self) -> Values:
        norms = np.sqrt(np.maximum(self._totals["grown"], 0.0) * self.path.sum_square)
        return np.divide(self._totals["aligned"], norms, out=np.zeros(self._trials), where=norms > 0)

    def _passed_by(self, draws: ChannelDraws) -> Values:
        """Layers drawn before but not now: the full gradient went on there."""
        if self.path.constant:
            return np.zeros(self._trials)
        left = (found for found in self._followed.items() if found[0] not in draws.channels)
        amounts = (followed.pass_by(self.path.vectors[index]) for index, followed in left)
        return sum(amounts, start=np.zeros(self._trials))

    def _layer(self, index: int) -> Followed:
        if index not in self._followed:
            numbers = 0 if self.path.constant else len(self.path.vectors[index])
            rgn = self._rgn[index]
            self._followed[index] = Followed(self._layers[index].in_channels, rgn, self._trials, numbers)
        return self._followed[index]


class ObservedNorms:
    """Last gradient norm that each trial saw of each channel, as the engine keeps them.

    Args:
        sizes: Channels of each layer.
        eligible: Layers that may be drawn from.
        trials: Trials of the chunk.
    """

    def __init__(self, sizes: Sequence[int], eligible: Sequence[int], trials: int) -> None:
        self.norms = {index: np.full((trials, sizes[index] + 1), np.nan) for index in eligible}

    def see(self, draws: ChannelDraws, norms: Sequence[Vectors]) -> None:
        """Note the norms of what was drawn."""
        for index, channels in draws.channels.items():
            found = _with_nothing(norms[index]).take(channels)
            np.put_along_axis(self.norms[index], channels.astype(np.int64), found, axis=1)

    def so_far(self) -> dict[int, NDArray[np.float64]]:
        """Index of a layer -> ``[trials, channels]``, ``NaN`` where a channel never trained."""
        return {index: found[:, :-1] for index, found in self.norms.items()}


def _with_nothing(values: Vectors) -> Vectors:
    """Values by channel, and a zero for the place behind a trial's last channel."""
    return np.append(values, 0.0)
