"""Figures of observations: where the RGN lies, whether layers and channels keep their ranks, how heavy tails are."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from trady.planner.errors import TradyError
from trady.planner.reports import COLOURS, matplotlib_ready, save_figure, shorten, spread, thinned_labels, tidy_axes
from trady.planner.units import format_share
from trady.simulator.observations import ChannelRanks, Course, LayerRanks, Observations, RgnCurve

_MARKERS: Final = "osD^vPX"
_REFERENCE: Final = "#777777"
#: What the paper finds between tasks, at the least.
_PAPERS_CORRELATION: Final = 0.8
_GAUSSIAN: Final = 2.0
_LONGEST_LABEL: Final = 28
_LONGEST_NAME: Final = 40
_MOST_NUMBERS: Final = 12
#: Least distance of two labels, as a share of the height.
_LABEL_GAP: Final = 0.075

Line = tuple[str, Sequence[float | None], str]


def draw_observations(observations: Observations, folder: str | Path) -> list[Path]:
    """Draw every figure there is something for, as PNG and as SVG.

    Args:
        observations: What :func:`trady.simulator.observations.observe` gave.
        folder: Where the files go; made where it is missing.

    Returns:
        The files written: ``rgn-cumulative``, ``layer-ranks``, ``channel-ranks`` and ``tail-index``.

    Raises:
        TradyError: No matplotlib, or a file that cannot be written.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 4))
        >>> pictures = torch.randn(2, 3, 8, 8)
        >>> from trady.planner import make_plan
        >>> plan = make_plan(net, pictures, budget="4KB", optimizer="sgd")
        >>> from trady.simulator import observe
        >>> [path.name for path in draw_observations(observe(plan), Path("figures"))]
        ['rgn-cumulative.png', 'rgn-cumulative.svg']
    """
    place = Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TradyError(f"Folder {place} cannot be made: {error.strerror}. Choose another place.") from error
    drawers: list[tuple[str, Any, Callable[[Any, Any, Observations], None]]] = [
        ("rgn-cumulative", observations.rgn, _draw_rgn),
        ("layer-ranks", observations.layer_ranks, _draw_layer_ranks),
        ("channel-ranks", observations.channel_ranks, _draw_channel_ranks),
        ("tail-index", observations.courses, _draw_courses),
    ]
    written: list[Path] = []
    with matplotlib_ready():
        from matplotlib.figure import Figure

        for name, found, draw in drawers:
            if found is not None:
                figure = Figure(layout="constrained")
                draw(figure, found, observations)
                for suffix in (".png", ".svg"):
                    written.append(place / f"{name}{suffix}")
                    save_figure(figure, written[-1])
    return written


def _draw_rgn(figure: Any, curve: RgnCurve, of: Observations) -> None:
    number = len(curve.layers)
    width = min(20.0, max(7.0, 2.0 + 0.17 * number))
    figure.set_size_inches(width, 4.6 + 0.05 * min(_LONGEST_NAME, max(map(len, curve.layers))))
    axes = figure.subplots()
    places = range(number)
    shares = [share - before for share, before in zip(curve.cumulative, (0.0, *curve.cumulative), strict=False)]
    colours = [COLOURS[0] if place < curve.num_top else "#BBBBBB" for place in places]
    axes.bar(places, shares, width=0.8, color=colours)
    axes.plot(places, curve.cumulative, color=COLOURS[3], linewidth=1.8)
    axes.axhline(curve.top_share, color=_REFERENCE, linewidth=0.8, linestyle="--")
    axes.axvline(curve.num_top - 0.5, color=_REFERENCE, linewidth=0.8, linestyle="--")
    _note(axes, (curve.num_top - 1, curve.top_share), (-8, -14), f"{curve.num_top} of {number} layers\nhold "
          f"{format_share(curve.top_share, 0)}", ha="right", va="top")  # fmt: skip
    middle = number // 3
    _note(axes, (middle, curve.cumulative[middle]), (4, -6), "sum so far", color=COLOURS[3], va="top")
    _note(axes, (0, shares[0]), (10, 0), "share of each layer", color=COLOURS[0], va="top")
    labelled = thinned_labels(number, (0,), most=int((width - 1.5) / 0.16))
    axes.set_xticks(labelled, [shorten(curve.layers[place], _LONGEST_NAME) for place in labelled])
    axes.tick_params(axis="x", rotation=90, labelsize=7)
    axes.set(xlim=(-0.7, number - 0.3), ylim=(0, 1.04), ylabel="share of the total RGN")
    axes.set_xlabel("layers, the largest RGN first", fontsize=9)
    _shares_along_y(axes)
    _finish(axes, f"Where the reweighted gradient norm (RGN) lies\n{of.model}, norms of the plan: {of.priorities}")


def _draw_layer_ranks(figure: Any, ranks: LayerRanks, of: Observations) -> None:
    size = len(ranks.labels)
    figure.set_size_inches(9.0 + 0.55 * min(size, _MOST_NUMBERS), 3.4 + 0.28 * min(size, _MOST_NUMBERS))
    left, right = figure.subplots(1, 2, width_ratios=(1.0 + 0.06 * size, 1.2))
    _draw_matrix(figure, left, ranks)
    _finish(left, "Spearman correlation of the layers' RGN", grid=False)
    lines = list(zip(ranks.labels[1:], ranks.with_plan, _cycled(), strict=False))
    lowest = min(value for row in ranks.with_plan for value in (*row, _PAPERS_CORRELATION) if value is not None)
    _draw_lines(right, lines, lowest=max(-1.0, lowest - 0.1), highest=1.0)
    _reference(right, _PAPERS_CORRELATION, f"the paper: {_PAPERS_CORRELATION} or more between tasks")
    right.set_ylabel("correlation with the plan's own RGN")
    _finish(right, "Each epoch against the plan")
    figure.suptitle(f"Do layers keep their ranks? {of.model}, norms of the plan: {of.priorities}", fontsize=10)


def _draw_matrix(figure: Any, axes: Any, ranks: LayerRanks) -> None:
    values = [[float("nan") if value is None else value for value in row] for row in ranks.across]
    lowest = min([0.0, *(value for row in values for value in row if value == value)])
    image = axes.imshow(values, cmap="viridis", vmin=min(0.0, lowest), vmax=1.0)
    labels = [shorten(label, _LONGEST_LABEL) for label in ranks.labels]
    axes.set_xticks(range(len(labels)), labels, rotation=30, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.tick_params(length=0)
    if len(labels) > _MOST_NUMBERS:
        figure.colorbar(image, ax=axes, shrink=0.8).outline.set_visible(False)
        return
    for row, found in enumerate(ranks.across):
        for column, value in enumerate(found):
            text = "none" if value is None else f"{value:.3f}"
            dark = value is not None and (value - lowest) / (1 - lowest) < 0.6
            axes.text(column, row, text, ha="center", va="center", fontsize=9, color="white" if dark else "black")


def _draw_channel_ranks(figure: Any, ranks: Sequence[ChannelRanks], of: Observations) -> None:
    figure.set_size_inches(11.0, 4.0)
    left, right = figure.subplots(1, 2)
    coloured = list(zip(ranks, _cycled(), strict=False))
    for found, colour in coloured:
        pairs = [(epoch, low, high) for epoch, (low, high) in enumerate(zip(found.low, found.high, strict=True), 1)]
        known = [(epoch, low, high) for epoch, low, high in pairs if low is not None and high is not None]
        if known:
            epochs, lows, highs = zip(*known, strict=True)
            left.vlines(
                [epoch + _aside(colour) for epoch in epochs], lows, highs, color=colour, alpha=0.45, linewidth=3
            )
    medians = [(found.label, found.median, colour) for found, colour in coloured]
    lowest = min((low for found in ranks for low in found.low if low is not None), default=0.0)
    _draw_lines(left, medians, lowest=min(0.0, lowest - 0.05), highest=1.0, first=1)
    left.set_ylabel("Spearman correlation with the epoch before")
    _finish(left, "Channels inside their layer: median and 5-95 % of layers")
    overlaps = [(found.label, found.overlap, colour) for found, colour in coloured]
    _draw_lines(right, overlaps, lowest=0.0, highest=1.0, first=1)
    _reference(right, ranks[0].chance, f"by chance {format_share(ranks[0].chance, 0)}")
    _shares_along_y(right)
    right.set_ylabel("still in the top tenth one epoch later")
    _finish(right, "Top tenth of each layer's channels")
    figure.suptitle(f"Do channels keep their ranks? {of.model}", fontsize=10)


def _draw_courses(figure: Any, courses: Sequence[Course], of: Observations) -> None:
    figure.set_size_inches(11.0, 3.8)
    left, right = figure.subplots(1, 2)
    coloured = list(zip(courses, _cycled(), strict=False))
    measured = [alpha for course in courses for alpha in course.tail_index if alpha is not None]
    tails = [(course.label, course.tail_index, colour) for course, colour in coloured]
    _draw_lines(left, tails, lowest=min([1.0, *(alpha - 0.1 for alpha in measured)]), highest=max([2.1, *measured]))
    _reference(left, _GAUSSIAN, "Gaussian noise")
    left.set_ylabel("tail index alpha of the gradients")
    _finish(left, "The lower, the heavier the tails")
    losses = [(course.label, course.losses, colour) for course, colour in coloured]
    highest = max(max(course.losses) for course in courses)
    _draw_lines(right, losses, lowest=min(0.0, *(min(course.losses) for course in courses)), highest=1.05 * highest)
    right.set_ylabel("mean loss of the epoch")
    _finish(right, "The recorded training")
    figure.suptitle(f"How heavy are the tails? {of.model}", fontsize=10)


def _draw_lines(axes: Any, lines: Iterable[Line], *, lowest: float, highest: float, first: int = 0) -> None:
    """Lines over epochs, each labelled at its end; values that are not known are left out."""
    ends: list[tuple[float, str, str]] = []
    last = first
    for label, values, colour in lines:
        known = [(epoch, value) for epoch, value in enumerate(values, first) if value is not None]
        if known:
            epochs, heights = zip(*known, strict=True)
            marker = _MARKERS[COLOURS.index(colour)]
            places = [epoch + _aside(colour) for epoch in epochs] if first else epochs
            axes.plot(places, heights, color=colour, marker=marker, markersize=4, linewidth=1.5)
            ends.append((heights[-1], label, colour))
            last = max(last, *epochs)
    axes.set(ylim=(lowest, highest + 0.02 * (highest - lowest)), xlim=(first - 0.35, last + 0.35))
    axes.set_xlabel("epoch", fontsize=9)
    axes.xaxis.get_major_locator().set_params(integer=True)
    gap = _LABEL_GAP * (highest - lowest)
    placed = spread([end[0] for end in sorted(ends)], gap, highest)
    for height, (_, label, colour) in zip(placed, sorted(ends), strict=True):
        axes.annotate(
            shorten(label, _LONGEST_LABEL),
            (1.01, height),
            xycoords=axes.get_yaxis_transform(),
            color=colour,
            fontsize=8,
            va="center",
        )


def _aside(colour: str) -> float:
    """Bars of several recordings stand beside each other."""
    return 0.05 * (COLOURS.index(colour) - 1)


def _cycled() -> Iterable[str]:
    while True:
        yield from COLOURS


def _reference(axes: Any, height: float, text: str) -> None:
    axes.axhline(height, color=_REFERENCE, linewidth=0.9, linestyle="--", zorder=1)
    axes.annotate(
        text, (0.01, height), xytext=(0, 2), xycoords=axes.get_yaxis_transform(), textcoords="offset points",
        color=_REFERENCE, fontsize=8, va="bottom",
    )  # fmt: skip


def _note(axes: Any, point: tuple[float, float], offset: tuple[float, float], text: str, **options: Any) -> None:
    axes.annotate(text, point, xytext=offset, textcoords="offset points", fontsize=9, **options)


def _shares_along_y(axes: Any) -> None:
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")


def _finish(axes: Any, title: str, *, grid: bool = True) -> None:
    axes.set_title(title, fontsize=9, loc="left")
    axes.yaxis.label.set_size(9)
    if grid:
        tidy_axes(axes)
    else:
        axes.spines[:].set_visible(False)
