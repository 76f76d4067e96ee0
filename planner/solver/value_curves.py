"""What the channels of a layer are worth to the solver: a concave curve in whole pieces. No torch, no ortools.

Held by ``tests/planner/solver/test_cp_sat.py``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from trady.planner.sampling import coverage_value, curve_counts, expected_norms

#: Up to this many channels a layer's value curve is exact; above, so many chords, which err by 0.6 % at most, and by
#: 3 % where channels are drawn by their norms.
_EXACT_CHANNELS: Final = 16
_SEGMENTS: Final = 8


@dataclass(frozen=True)
class Segment:
    """Consecutive channels of a layer that are worth the same each."""

    channels: int
    units: int


def value_segments(channels: int, total_units: float, horizon: float) -> list[Segment]:
    """A layer's value curve in pieces whose integer marginals never increase.

    Floored values would not be concave; floored marginals are.
    """
    if horizon <= 1.0:
        return [Segment(channels, int(total_units / channels))]
    edges = _edges(channels, horizon)
    reached = [coverage_value(edge / channels, horizon) for edge in edges]
    return _concave(edges, [(after - before) * total_units for before, after in pairwise(reached)])


def weighted_segments(norms: Sequence[float], total_units: float, horizon: float) -> list[Segment]:
    """The same where channels are drawn the more often, the larger their norms."""
    edges = curve_counts(norms, horizon, _SEGMENTS)
    values = expected_norms(norms, edges, horizon)
    scale = total_units / values[-1]
    return _concave(edges, [gained * scale for gained in (values[1:] - values[:-1]).tolist()])


def _concave(edges: Sequence[int], gains: Sequence[float]) -> list[Segment]:
    """Segments between the edges that gain so many units each, rounded down, and none worth more than those before."""
    segments: list[Segment] = []
    for (start, end), gained in zip(pairwise(edges), gains, strict=True):
        units = int(gained / (end - start))
        segments.append(Segment(end - start, min(units, segments[-1].units) if segments else units))
    return segments


def _edges(channels: int, horizon: float) -> list[int]:
    """Ends of the segments: every channel of a narrow layer, else so that each one errs as much as the others.

    A chord of ``1 - (1 - s)^E`` errs by its length squared times the curvature ``(1 - s)^(E - 2)``.
    """
    if channels <= _EXACT_CHANNELS:
        return list(range(channels + 1))
    shares = (1.0 - (1.0 - step / _SEGMENTS) ** (2.0 / horizon) for step in range(_SEGMENTS + 1))
    return sorted({round(channels * share) for share in shares})


def fill_segments(segments: Sequence[Segment], count: int) -> list[int]:
    """How ``count`` channels fill a curve's segments: in order, the dearest first."""
    parts = []
    for segment in segments:
        parts.append(min(segment.channels, count))
        count -= parts[-1]
    return parts


def units_of(segments: Sequence[Segment], count: int) -> int:
    """Value of ``count`` channels."""
    return count and sum(
        segment.units * part for segment, part in zip(segments, fill_segments(segments, count), strict=True)
    )
