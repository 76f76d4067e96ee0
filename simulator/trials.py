"""What a chunk of trials has reached so far, and the gradients it followed.

Held by ``tests/simulator/test_replay.py``.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trady.planner.plan import Plan
from trady.planner.reports import layer_rgn
from trady.planner.sampling import ChannelDraws, Channels, drawable_layers
from trady.simulator.gradients import Gradients, Vectors
from trady.simulator.streaming_statistics import Values

#: Epochs that fit beside the number of updates in one 32-bit integer.
MOST_EPOCHS = 2**15 - 1
_LAST, _ONCE = 0xFFFF, 0x10000


class Places:
    """Where the channels of the layers that can be drawn from stand in one row; each layer's end with one for none.

    Args:
        plan: The plan.

    Attributes:
        layers: Indices of those layers.
        size: Length of the row.
        nothing: Where none stands: what fills up a trial's draw of a layer points there.
    """

    def __init__(self, plan: Plan) -> None:
        self.layers = drawable_layers(plan)
        ends = np.cumsum([plan.table.layers[index].in_channels + 1 for index in self.layers], dtype=np.int64)
        self.nothing = ends - 1
        self.size = int(ends[-1])
        self._first = dict(zip(self.layers, [0, *ends.tolist()], strict=False))

    def of(self, draws: ChannelDraws) -> Channels:
        """Places of what was drawn, ``[trials, most drawn]``."""
        first = np.repeat(
            [self._first[index] for index in draws.channels], [drawn.shape[1] for drawn in draws.channels.values()]
        )
        places: Channels = np.concatenate(list(draws.channels.values()), axis=1).astype(np.int64) + first
        return places

    def row(self, by_layer: Sequence[Vectors]) -> Vectors:
        """Numbers of all layers' channels ``[..., channels]`` in one row ``[..., places]``, zeros for none."""
        nothing = np.zeros((*by_layer[0].shape[:-1], 1))
        return np.concatenate([part for index in self.layers for part in (by_layer[index], nothing)], axis=-1)


class GradientPath:
    """The full gradient and its running sum, epoch by epoch.

    Args:
        gradients: What to follow.
        places: Of the layers that can be drawn from.

    Attributes:
        constant: Whether all epochs have the same gradient.
        vectors: The gradient of each channel, ``[numbers, places]``.
        squares: Its squared norm, ``[places]``.
        layer_squares: The same of each layer, ``[layers]``.
        sums: Running sums of the vectors, ``[numbers, places]``.
        sum_square: Squared norm of the running sum of all layers; of one epoch's gradient where all are the same.
    """

    def __init__(self, gradients: Gradients, places: Places) -> None:
        self._gradients, self._places = gradients, places
        self.constant = gradients.constant
        self._sums: list[Vectors] = []
        self._epoch = -1

    def go_to(self, epoch: int) -> None:
        """Move on to the next epoch, or stay."""
        if self._epoch == epoch or (self.constant and epoch):
            return
        self._epoch = epoch
        vectors = self._gradients.vectors(epoch)
        before = self._sums or [np.zeros_like(vector) for vector in vectors]
        self._sums = [total + vector for total, vector in zip(before, vectors, strict=True)]
        self.vectors, self.sums = self._places.row(vectors), self._places.row(self._sums)
        self.squares = (self.vectors**2).sum(axis=0).astype(np.float32)
        self.layer_squares = np.array([(vector**2).sum() for vector in vectors])
        self.sum_square = float(sum((total**2).sum() for total in self._sums))

    @property
    def norms(self) -> list[Vectors]:
        """Norm of each channel, for each layer, as a run would observe it; made when asked for."""
        return self._gradients.norms(self._epoch)


class Follower:
    """A chunk of trials from epoch to epoch: which channels were drawn, how often, and the sum of their gradients.

    Args:
        plan: The plan.
        gradients: What the full gradient is.
        trials: Trials of the chunk.
    """

    def __init__(self, plan: Plan, gradients: Gradients, trials: int) -> None:
        layers = plan.table.layers
        self._trials, self._places = trials, Places(plan)
        self._total_rgn = sum(layer_rgn(plan)) or 1.0
        self._rgn = self._places.row(
            [np.array(plan.channel_norms(index)) / layer.sample_cost for index, layer in enumerate(layers)]
        ).astype(np.float32)
        self._num_channels = sum(layer.in_channels for layer in layers)
        self.path = GradientPath(gradients, self._places)
        self._rows = np.arange(trials)[:, None] * self._places.size
        self._state = np.zeros((trials, self._places.size), dtype=np.int32)
        self.path.go_to(0)
        numbers = 0 if gradients.constant else len(self.path.vectors)
        self._drawn_sum = np.zeros((numbers, trials, self._places.size), dtype=np.float32)
        self._totals = {name: np.zeros(trials) for name in ("first", "first_rgn", "aligned", "grown")}

    def add(self, epoch: int, draws: ChannelDraws) -> dict[str, Values]:
        """One epoch's measures, ``[trials]`` each."""
        self.path.go_to(epoch)
        sums = self._sums(epoch, self._places.of(draws))
        for name, total in self._totals.items():
            total += sums[name]
        full = float(self.path.layer_squares.sum())
        captured = sums["square"] / (full or 1.0)
        return {
            "channels_reached": self._totals["first"] / self._num_channels,
            "rgn_reached": self._totals["first_rgn"] / self._total_rgn,
            "repeated_channels": draws.counts.sum(axis=1) - sums["first"],
            "epochs_waited": sums["waited"],
            "captured_share": captured,
            "cosine": np.sqrt(captured),
            "running_cosine": self._running_cosine(),
        }

    def _sums(self, epoch: int, drawn: Channels) -> dict[str, Values]:
        """What the draws at some places come to in each trial; they are noted.

        A place's state is how often it was drawn, in the upper half, and in which epoch last, counted from 1.
        """
        self._state[:, self._places.nothing] = epoch + 1  # none was never new
        places, flat = drawn + self._rows, self._state.reshape(-1)
        state = flat.take(places)
        last = state & _LAST
        before, is_first = state - last, last == 0
        square = self.path.squares.take(drawn)
        number = np.count_nonzero(is_first, axis=1)
        sums = {
            "first": number,
            "first_rgn": np.einsum("tc,tc->t", self._rgn.take(drawn), is_first),
            "waited": (epoch + 1) * (drawn.shape[1] - number) - last.sum(axis=1),
            "square": square.sum(axis=1),
        }
        if self.path.constant:
            sums["aligned"] = sums["square"]
            sums["grown"] = sums["square"] + (2.0 / _ONCE) * np.einsum("tc,tc->t", before.astype(np.float32), square)
        else:
            sums |= self._followed(places, drawn)
        flat[places] = before + np.int32(_ONCE + epoch + 1)
        return sums

    def _followed(self, places: Channels, drawn: Channels) -> dict[str, Values]:
        """What an epoch adds to the running sums' product, and to the square of the drawn gradients' sum.

        The full gradient goes on in what this epoch does not draw, too.
        """
        aligned, grown = np.zeros(self._trials), np.zeros(self._trials)
        for vector, total, drawn_sum in zip(self.path.vectors, self.path.sums, self._drawn_sum, strict=True):
            aligned += drawn_sum @ vector.astype(np.float32)
            flat = drawn_sum.reshape(-1)
            before, step = flat.take(places), vector.take(drawn)
            aligned += np.einsum("tc,tc->t", step, total.take(drawn))
            grown += np.einsum("tc,tc->t", step, 2.0 * before + step)
            flat[places] = before + step
        return {"aligned": aligned, "grown": grown}

    def _running_cosine(self) -> Values:
        norms = np.sqrt(np.maximum(self._totals["grown"], 0.0) * self.path.sum_square)
        return np.divide(self._totals["aligned"], norms, out=np.zeros(self._trials), where=norms > 0)


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
            seen = np.append(norms[index], 0.0).take(channels)
            np.put_along_axis(self.norms[index], channels.astype(np.int64), seen, axis=1)

    def so_far(self) -> dict[int, NDArray[np.float64]]:
        """Index of a layer -> ``[trials, channels]``, ``NaN`` where a channel never trained."""
        return {index: found[:, :-1] for index, found in self.norms.items()}
