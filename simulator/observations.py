"""The paper's observations, from the user's own model: whether layers' ranks hold and channels' do not.

Everything here is arithmetic on a plan and on recordings of real gradients; what was not recorded is ``None``.

Source:
    TraDy, arXiv 2510.19675: heavy-tailed gradients, layer ranks that hold across tasks, channel ranks that do not.

Known limitations:
    A recorded norm is the mean over an epoch's batches, which is steadier than the norm of one batch.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from trady.planner.plan import Plan
from trady.planner.planning import layer_priorities
from trady.planner.priorities import FloatArray, GradientRecording, top_layers
from trady.planner.reports import layer_rgn
from trady.planner.sampling import TOP_SHARE

#: Share of a layer's channels that count as its top ones.
TOP_CHANNELS: Final = 0.1
#: Layers of fewer channels have no top tenth, and their ranks agree or not by chance.
FEWEST_CHANNELS: Final = 10
#: Name of the plan's own priorities among the recordings.
PLAN: Final = "plan"

Matrix = tuple[tuple[float | None, ...], ...]
Values = Sequence[float] | np.ndarray[Any, Any]


@dataclass(frozen=True)
class RgnCurve:
    """How the plan's RGN piles up over its layers.

    Args:
        layers: Names, the largest RGN first.
        rgn: Of each.
        cumulative: Share of the total held by the layers up to and including each, 0 to 1.
        top_share: Share the paper's top layers hold.
        num_top: Layers they are.
    """

    layers: tuple[str, ...]
    rgn: tuple[float, ...]
    cumulative: tuple[float, ...]
    top_share: float
    num_top: int


@dataclass(frozen=True)
class LayerRanks:
    """Spearman correlations of the layers' RGN; ``None`` where all layers have the same.

    Args:
        labels: The plan's own priorities, then each recording.
        across: ``[labels, labels]``; a recording's RGN is the mean over its epochs.
        epochs: For each recording ``[epochs, epochs]``.
        with_plan: For each recording and epoch, against the plan's own priorities.
        with_first: For each recording and epoch, against the recording's first epoch.
    """

    labels: tuple[str, ...]
    across: Matrix
    epochs: tuple[Matrix, ...]
    with_plan: Matrix
    with_first: Matrix


@dataclass(frozen=True)
class ChannelRanks:
    """How the ranks of channels inside their layers change from one epoch to the next, in one recording.

    Args:
        label: The recording.
        num_layers: Layers of ten channels or more, which are the ones looked at.
        median: Median over layers of the Spearman correlation, for each pair of consecutive epochs.
        low: Its 5 % quantile over layers.
        high: Its 95 % quantile.
        overlap: Share of the layers' top tenth of channels that are in it again one epoch later.
        chance: The same if the top tenth were drawn anew.
    """

    label: str
    num_layers: int
    median: tuple[float | None, ...]
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]
    overlap: tuple[float, ...]
    chance: float


@dataclass(frozen=True)
class Course:
    """A recorded training, epoch by epoch.

    Args:
        label: The recording.
        tail_index: Tail index alpha of the stochastic gradients, 2 for Gaussian noise; ``None`` where not measured.
        losses: Mean loss.
    """

    label: str
    tail_index: tuple[float | None, ...]
    losses: tuple[float, ...]


@dataclass(frozen=True)
class Observations:
    """What a plan and recordings show; the parts that need what is missing are ``None``.

    Args:
        model: The model, as typed.
        priorities: Where the plan's own gradient norms came from.
        rgn: The plan's RGN over its layers; ``None`` where every norm is 0.
        layer_ranks: Whether layers keep their ranks; ``None`` without recordings.
        channel_ranks: Whether channels do; ``None`` where no recording has two epochs and a layer of ten channels.
        courses: Tail index and loss; ``None`` without recordings.
    """

    model: str
    priorities: str
    rgn: RgnCurve | None
    layer_ranks: LayerRanks | None
    channel_ranks: tuple[ChannelRanks, ...] | None
    courses: tuple[Course, ...] | None

    def as_json(self) -> dict[str, object]:
        """For machines: shares from 0 to 1, correlations from -1 to 1, ``None`` for what is not known."""
        return asdict(self)


def observe(plan: Plan, recordings: Sequence[GradientRecording] = ()) -> Observations:
    """Hold a plan and recordings of its model against each other.

    Args:
        plan: The plan; its layers are the ones looked at.
        recordings: Of this model, on other data, with other seeds or learning rates.

    Returns:
        Ranks, tails and the RGN curve.

    Error:
        CalibrationError: A recording is of another model.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 4))
        >>> pictures = torch.randn(2, 3, 8, 8)
        >>> from trady.planner import make_plan
        >>> plan = make_plan(net, pictures, budget="4KB", optimizer="sgd")
        >>> observations = observe(plan)
        >>> sorted(observations.as_json())
        ['channel_ranks', 'courses', 'layer_ranks', 'model', 'priorities', 'rgn']
    """
    for recording in recordings:
        recording.check_fits(*plan.recorded_model)
    labels = recording_labels(recordings)
    channels = [_channel_ranks(plan, *pair) for pair in zip(labels, recordings, strict=True)]
    return Observations(
        model=plan.model.source,
        priorities=plan.priorities.source.value,
        rgn=_rgn_curve(plan),
        layer_ranks=_layer_ranks(plan, labels, recordings) if recordings else None,
        channel_ranks=tuple(found for found in channels if found is not None) or None,
        courses=tuple(
            Course(label, recording.tail_index, recording.losses)
            for label, recording in zip(labels, recordings, strict=True)
        )
        or None,
    )


def recording_labels(recordings: Sequence[GradientRecording]) -> tuple[str, ...]:
    """A short name of each recording: its data, and what else tells it from the others."""
    headers = [recording.header for recording in recordings]
    labels = [header.origin for header in headers]
    details = [[f"seed {header.seed}" for header in headers], [f"lr {header.learning_rate:g}" for header in headers]]
    for parts in details:
        if len(set(labels)) < len(labels) and len(set(parts)) > 1:
            labels = [f"{label}, {part}" for label, part in zip(labels, parts, strict=True)]
    counts = [labels[: place + 1].count(label) for place, label in enumerate(labels)]
    return tuple(f"{label} ({count})" if count > 1 else label for label, count in zip(labels, counts, strict=True))


def spearman(first: Values, second: Values) -> float | None:
    """Spearman's rank correlation, equal values sharing their average rank; ``None`` where one side is all equal.

    Args:
        first: ``[N]``.
        second: ``[N]``.

    Returns:
        From -1 to 1.
    """
    one, two = (ranks - ranks.mean() for ranks in (average_ranks(first), average_ranks(second)))
    scale = float(np.sqrt((one @ one) * (two @ two)))
    return min(1.0, max(-1.0, float(one @ two) / scale)) if scale else None


def average_ranks(values: Values) -> NDArray[np.float64]:
    """Ranks from 1, equal values sharing the mean of theirs: ``[N]`` -> ``[N]``."""
    _, places, counts = np.unique(np.asarray(values, np.float64), return_inverse=True, return_counts=True)
    last = counts.cumsum()
    ranks: NDArray[np.float64] = (last - (counts - 1) / 2)[places]
    return ranks


def top_overlap(first: Values, second: Values, count: int) -> int:
    """How many of the ``count`` largest of one are among the ``count`` largest of the other."""
    one, two = (np.argsort(np.negative(values), kind="stable")[:count] for values in (first, second))
    return len(np.intersect1d(one, two))


def _rgn_curve(plan: Plan) -> RgnCurve | None:
    rgn = np.array(layer_rgn(plan))
    if not rgn.sum() > 0:
        return None
    order = np.argsort(-rgn, kind="stable")
    return RgnCurve(
        layers=tuple(plan.table.layers[index].name for index in order),
        rgn=tuple(rgn[order].tolist()),
        cumulative=tuple(np.minimum(rgn[order].cumsum() / rgn.sum(), 1.0).tolist()),
        top_share=TOP_SHARE,
        num_top=len(top_layers(layer_priorities(plan), TOP_SHARE)),
    )


def _layer_ranks(plan: Plan, labels: Sequence[str], recordings: Sequence[GradientRecording]) -> LayerRanks:
    own = np.array(layer_rgn(plan))
    recorded = [_epoch_rgn(plan, recording) for recording in recordings]
    return LayerRanks(
        labels=(PLAN, *labels),
        across=_correlations([own, *(rgn.mean(axis=0) for rgn in recorded)]),
        epochs=tuple(_correlations(list(rgn)) for rgn in recorded),
        with_plan=tuple(tuple(spearman(own, epoch) for epoch in rgn) for rgn in recorded),
        with_first=tuple(tuple(spearman(rgn[0], epoch) for epoch in rgn) for rgn in recorded),
    )


def _epoch_rgn(plan: Plan, recording: GradientRecording) -> NDArray[np.float64]:
    """RGN of the plan's layers in each recorded epoch, ``[epochs, layers]``."""
    columns = [
        norms.sum(axis=1, dtype=np.float64) / layer.sample_cost
        for layer, norms in zip(plan.table.layers, _norms_of(plan, recording), strict=True)
    ]
    return np.stack(columns, axis=1)


def _norms_of(plan: Plan, recording: GradientRecording) -> list[FloatArray]:
    """Recorded norms of the plan's layers, each ``[epochs, channels]``."""
    return [recording.norms[place] for place in recording.indices_of([layer.name for layer in plan.table.layers])]


def _correlations(rows: Sequence[Values]) -> Matrix:
    return tuple(tuple(spearman(first, second) for second in rows) for first in rows)


def _channel_ranks(plan: Plan, label: str, recording: GradientRecording) -> ChannelRanks | None:
    layers = [norms for norms in _norms_of(plan, recording) if norms.shape[1] >= FEWEST_CHANNELS]
    if not layers or recording.num_epochs < 2:
        return None
    bands = [_band(layers, before, after) for before, after in pairwise(range(recording.num_epochs))]
    tops = [round(TOP_CHANNELS * norms.shape[1]) for norms in layers]
    expected = sum(top**2 / norms.shape[1] for top, norms in zip(tops, layers, strict=True))
    overlaps = [
        sum(top_overlap(norms[epoch], norms[epoch + 1], top) for top, norms in zip(tops, layers, strict=True))
        for epoch in range(recording.num_epochs - 1)
    ]
    return ChannelRanks(
        label=label,
        num_layers=len(layers),
        low=tuple(band[0] for band in bands),
        median=tuple(band[1] for band in bands),
        high=tuple(band[2] for band in bands),
        overlap=tuple(found / sum(tops) for found in overlaps),
        chance=expected / sum(tops),
    )


def _band(layers: Sequence[FloatArray], before: int, after: int) -> tuple[float | None, float | None, float | None]:
    """The 5 %, 50 % and 95 % quantile over layers of the correlation of channels in two epochs."""
    known = [value for norms in layers if (value := spearman(norms[before], norms[after])) is not None]
    if not known:
        return None, None, None
    low, median, high = np.quantile(known, (0.05, 0.5, 0.95)).tolist()
    return low, median, high
