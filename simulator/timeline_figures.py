"""The timeline as a picture: areas stacked over the moments of one step. matplotlib is loaded when one is drawn."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from trady.planner.ledger import MomentKind
from trady.planner.options import Scope
from trady.planner.reports import (
    check_suffix,
    label_bytes,
    matplotlib_ready,
    save_figure,
    shorten,
    thinned_labels,
    tidy_axes,
)
from trady.planner.units import format_bytes
from trady.simulator.timelines import LiveMoment, Timeline

#: Parts from the bottom up, what always lives first; Okabe and Ito's colours, greys for what no plan changes.
_COLOURS: Final = {
    "weights": "#9E9E9E",
    "inputs": "#C8C8C8",
    "active_weights": "#D55E00",
    "optimizer_state": "#009E73",
    "draw_index": "#000000",
    "always_trained": "#F0E442",
    "gradients": "#0072B2",
    "saved_activations": "#E69F00",
    "residuals": "#CC79A7",
    "workspace": "#56B4E9",
    "margin": "#555555",
}
_BASE: Final = ("weights", "inputs")
#: Weights and batch above this share of the peak are cut off below; so much of the rest's height is shown of them.
_LARGEST_BASE, _BASE_SHOWN = 0.5, 0.06
#: Part of the axis that each phase has at least, so that its name fits above it: the optimizer is few moments.
_PHASE_WIDTH: Final = 0.09
_WIDTH, _HEIGHT, _LETTER = 11.0, 4.8, 0.06
_MOST_LABELS: Final = 22
_LONGEST_LABEL, _LONGEST_NAME = 34, 44
_HEADROOM: Final = 1.12


class Phase(StrEnum):
    """Parts of a step."""

    FORWARD = "forward"
    BACKWARD = "backward"
    OPTIMIZER = "optimizer"


_PHASE_OF: Final = {
    MomentKind.FORWARD: Phase.FORWARD,
    MomentKind.RECORDING: Phase.FORWARD,
    MomentKind.SLICE: Phase.BACKWARD,
    MomentKind.BACKWARD: Phase.BACKWARD,
    MomentKind.OPTIMIZER: Phase.OPTIMIZER,
}
_BANDS: Final = {Phase.FORWARD: "#FFFFFF", Phase.BACKWARD: "#F1F1F1", Phase.OPTIMIZER: "#E2E2E2"}


def plot_timeline(timeline: Timeline, path: str | Path) -> None:
    """Draw what lives at each moment of a step, line by line, with the peak and where it is.

    Where weights and batch are most of the peak, the axis begins inside them, and says so.

    Args:
        timeline: The timeline.
        path: ``.png`` or ``.svg``.

    Error:
        TradyError: Another suffix, no matplotlib, or a file that cannot be written.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 4))
        >>> pictures = torch.randn(2, 3, 8, 8)
        >>> from trady.planner import make_plan
        >>> plan = make_plan(net, pictures, budget="4KB", optimizer="sgd")
        >>> from trady.simulator import timeline
        >>> plot_timeline(timeline(plan), Path("timeline.png"))
    """
    check_suffix(Path(path))
    with matplotlib_ready():
        from matplotlib.figure import Figure

        picture = _Picture(timeline)
        longest = max(len(name) for name in picture.labels.values())
        figure = Figure(figsize=(_WIDTH, _HEIGHT + _LETTER * longest), layout="constrained")
        axes = figure.subplots()
        axes.set_title(_title(timeline), fontsize=10, loc="left", pad=20)
        _draw_bands(axes, picture)
        _draw_areas(axes, picture)
        _draw_budget(axes, picture)
        _draw_peak(axes, picture)
        _draw_axes(axes, picture)
        save_figure(figure, Path(path))


@dataclass(frozen=True)
class _Picture:
    """A timeline in the units of its axes: along x a moment takes 1, or more in a phase of few moments."""

    timeline: Timeline

    @property
    def moments(self) -> Sequence[LiveMoment]:
        return self.timeline.moments

    @cached_property
    def phases(self) -> list[Phase]:
        return [_PHASE_OF[moment.kind] for moment in self.moments]

    @cached_property
    def edges(self) -> NDArray[np.float64]:
        """Where each moment begins, and where the last one ends."""
        number = len(self.phases)
        widths = [max(1.0, _PHASE_WIDTH * number / self.phases.count(phase)) for phase in self.phases]
        return np.concatenate([[0.0], np.cumsum(widths)])

    @cached_property
    def base_bytes(self) -> int:
        """Weights and batch: the same at every moment."""
        return sum(self.moments[0].num_bytes[name] for name in _BASE)

    @cached_property
    def bottom(self) -> float:
        """Where the axis begins, in bytes: 0, or inside weights and batch."""
        peak = self.timeline.peak_bytes
        if self.base_bytes <= _LARGEST_BASE * peak:
            return 0.0
        return self.base_bytes - _BASE_SHOWN * (peak - self.base_bytes)

    @cached_property
    def top(self) -> float:
        """Where the axis ends, in bytes."""
        return self.bottom + _HEADROOM * (max(self.timeline.peak_bytes, self.shown_budget or 0) - self.bottom)

    @cached_property
    def shown_budget(self) -> int | None:
        """The budget, where it holds the peak and is not far above it."""
        settings = self.timeline.plan.settings
        near = settings.budget_bytes - self.bottom <= 1.5 * (self.timeline.peak_bytes - self.bottom)
        return settings.budget_bytes if settings.scope is Scope.PEAK and near else None

    @cached_property
    def peak_place(self) -> int:
        """Number of the moment at which the most lives."""
        return self.moments.index(self.timeline.peak_moment)

    @cached_property
    def labels(self) -> dict[int, str]:
        """Number of a moment -> what runs, as many as can be read; that of the peak is among them."""
        places = thinned_labels(len(self.moments), [self.peak_place], most=_MOST_LABELS)
        return {place: shorten(_name(self.moments[place]), _LONGEST_LABEL) for place in places}

    @property
    def peak_share(self) -> float:
        """Where along the axis the peak is, from 0 to 1."""
        return self.middle(self.peak_place) / float(self.edges[-1])

    def spans(self) -> Iterator[tuple[Phase, float, float]]:
        """Each phase with where it begins and ends."""
        for phase, found in groupby(range(len(self.phases)), key=self.phases.__getitem__):
            places = list(found)
            yield phase, float(self.edges[places[0]]), float(self.edges[places[-1] + 1])

    def middle(self, place: int) -> float:
        return float(self.edges[place] + self.edges[place + 1]) / 2

    def heights(self, name: str) -> NDArray[np.int64]:
        """Bytes of a part at each moment, the last one twice: a step reaches to its end."""
        found = [moment.num_bytes[name] for moment in self.moments]
        return np.array([*found, found[-1]], dtype=np.int64)


def _title(timeline: Timeline) -> str:
    plan = timeline.plan
    settings = plan.settings
    return (
        f"{shorten(plan.model.source, _LONGEST_NAME)}: bytes live during one training step\n"
        f"batch {settings.batch_size}, {settings.optimizer.value}, strategy {plan.strategy.name.value}, "
        f"epoch {timeline.epoch}, seed {timeline.seed}, "
        f"budget {format_bytes(settings.budget_bytes)} in scope {settings.scope.value}"
    )


def _draw_bands(axes: Any, picture: _Picture) -> None:
    for phase, begin, end in picture.spans():
        axes.axvspan(begin, end, color=_BANDS[phase], zorder=0, linewidth=0)
        axes.text(
            (begin + end) / 2, 1.01, phase.value, transform=axes.get_xaxis_transform(), fontsize=9, ha="center",
            color="#333333",
        )  # fmt: skip
        if begin:
            axes.axvline(begin, color="#333333", linewidth=0.8, zorder=3)


def _draw_areas(axes: Any, picture: _Picture) -> None:
    base = np.zeros(len(picture.moments) + 1, dtype=np.int64)
    areas = []
    for name, colour in _COLOURS.items():
        heights = picture.heights(name)
        if heights.any():
            label = f"{name.replace('_', ' ')}  {_extent(heights)}"
            areas.append(
                axes.fill_between(
                    picture.edges, base, base + heights, step="post", facecolor=colour, linewidth=0, label=label,
                    zorder=2,
                )
            )  # fmt: skip
            base = base + heights
    axes.legend(
        handles=areas[::-1], fontsize=8.5, frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.0),
        title="what lives, from the top down", title_fontsize=8.5, alignment="left", labelspacing=0.7,
    )  # fmt: skip


def _extent(heights: NDArray[np.int64]) -> str:
    most = format_bytes(int(heights.max()))
    return most if heights.min() == heights.max() else f"up to {most}"


def _draw_budget(axes: Any, picture: _Picture) -> None:
    """The line, named at the end that is farther from the peak."""
    if picture.shown_budget is None:
        return
    axes.axhline(picture.shown_budget, color="#D55E00", linewidth=1.4, linestyle="--", zorder=4)
    side = "right" if picture.peak_share < 0.5 else "left"
    axes.annotate(
        f"budget {format_bytes(picture.shown_budget)}",
        (float(picture.edges[-1]) if side == "right" else 0.0, picture.shown_budget),
        xytext=(-5 if side == "right" else 5, 5), textcoords="offset points", ha=side, va="bottom",
        fontsize=9, weight="bold", color="#D55E00", zorder=6,
    )  # fmt: skip


def _draw_peak(axes: Any, picture: _Picture) -> None:
    """A dot, and above it and the budget's line its text, to the side where there is room for it."""
    moment, x, y = picture.timeline.peak_moment, picture.middle(picture.peak_place), picture.timeline.peak_bytes
    side, shift = [("left", 9), ("center", 0), ("right", -9)][min(2, int(3 * picture.peak_share))]
    axes.plot([x], [y], marker="o", color="#000000", markersize=6, zorder=5, clip_on=False)
    axes.annotate(
        f"peak {format_bytes(y)} at {shorten(_name(moment), _LONGEST_NAME)} ({moment.kind.value})",
        (x, max(y, picture.shown_budget or 0)), xytext=(shift, 7), textcoords="offset points", ha=side, va="bottom",
        fontsize=9, weight="bold", zorder=6, bbox={"facecolor": "#FFFFFF", "alpha": 0.85, "linewidth": 0, "pad": 1.5},
    )  # fmt: skip


def _draw_axes(axes: Any, picture: _Picture) -> None:
    axes.set_xticks([picture.middle(place) for place in picture.labels], picture.labels.values())
    axes.tick_params(axis="x", rotation=90, labelsize=7.5)
    axes.tick_params(axis="y", labelsize=8.5)
    axes.set(xlim=(0, picture.edges[-1]), ylim=(picture.bottom, picture.top))
    axes.set_xlabel("progress through the step, operation by operation", fontsize=9)
    axes.set_ylabel("live bytes", fontsize=9)
    label_bytes(axes.yaxis)
    tidy_axes(axes)
    if picture.bottom:
        _break_axis(axes, picture)


def _break_axis(axes: Any, picture: _Picture) -> None:
    """Say in words and with two strokes through the axis that it does not begin at zero."""
    begins = format_bytes(math.floor(picture.bottom))
    axes.set_ylabel(f"live bytes (from {begins} up: below lie weights and batch)", fontsize=9)
    axes.plot(
        [0, 0], [0.018, 0.036], transform=axes.transAxes, marker=[(-1, -0.6), (1, 0.6)], markersize=10,
        linestyle="none", color="#000000", markeredgewidth=1.2, clip_on=False, zorder=7,
    )  # fmt: skip


def _name(moment: LiveMoment) -> str:
    """The module's path; what the model itself, the loss or the optimizer runs goes by its operation."""
    return moment.module or moment.target
