"""The replay as a figure: what is reached, how good the gradient is, what it costs, epoch by epoch."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, Final

from trady.planner.ledger import SCOPE_LINES
from trady.planner.options import Scope
from trady.planner.reports import COLOURS, check_suffix, label_bytes, matplotlib_ready, save_figure, spread, tidy_axes
from trady.planner.units import format_bytes
from trady.simulator.results import Series, SimulationReport

#: Measure -> title of its panel, and what its height is.
_PANELS: Final[Mapping[str, tuple[str, str]]] = {
    "rgn_reached": ("RGN drawn at least once", "share of all layers'"),
    "channels_reached": ("channels drawn at least once", "share of all layers'"),
    "waiting_time": ("epochs between updates of a channel", "epochs"),
    "captured_share": ("squared gradient norm captured", "share of all layers'"),
    "running_cosine": ("sum of drawn gradients against the full sum", "cosine"),
}
#: From dark to light, told apart in grey: the policies have the colours.
_LINE_GREYS: Final = ("#333333", "#8A8A8A", "#BDBDBD", "#E3E3E3", "#5E5E5E", "#A5A5A5", "#D0D0D0")
_MOST_THEORY: Final = 12
#: Least distance of two names at the lines' ends, as a share of the height.
_GAP: Final = 0.055


def plot_replay(reports: Sequence[SimulationReport], path: str | Path) -> None:
    """Draw means with their 5 to 95 % bands, policy beside policy, and closed forms as open circles.

    Args:
        reports: One for each policy, of the same plan.
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
        >>> from trady.simulator import simulate
        >>> plot_replay([simulate(plan, trials=20, epochs=4, workers=1)], Path("replay.png"))
    """
    check_suffix(Path(path))
    with matplotlib_ready():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(13.5, 7.4), layout="constrained")
        figure.suptitle(_title(reports[0]), fontsize=11)
        *panels, last = figure.subplots(2, 3).flat
        for axes, name in zip(panels, _PANELS, strict=True):
            _draw_panel(axes, name, reports)
        _draw_bytes(last, reports)
        save_figure(figure, Path(path))


def _title(report: SimulationReport) -> str:
    return (
        f"{report.source}: {format_bytes(report.budget_bytes)} in scope {report.scope}, {report.epochs} epochs, "
        f"{report.trials:,} trials, {report.gradients} gradients\n"
        "lines: means; bands: 5 to 95 % of the trials; circles: closed forms"
    )


def _draw_panel(axes: Any, name: str, reports: Sequence[SimulationReport]) -> None:
    title, unit = _PANELS[name]
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel("epoch", fontsize=9)
    axes.set_ylabel(unit, fontsize=9)
    ends = []
    for place, report in enumerate(reports):
        colour = COLOURS[place % len(COLOURS)]
        _draw_series(axes, report.measures[name], colour)
        last = report.measures[name].last
        if last is not None:
            ends.append((last, report.policy, colour))
    if name != "waiting_time":
        axes.set_ylim(bottom=0)
    epochs = reports[0].epochs
    axes.set_xlim(1 - 0.02 * epochs, max(1.02 * epochs, 1.5))
    axes.xaxis.get_major_locator().set_params(integer=True)
    tidy_axes(axes)
    _label_ends(axes, ends, reports[0].epochs)


def _draw_series(axes: Any, series: Series, colour: str) -> None:
    epochs = [place + 1 for place, value in enumerate(series.mean) if value is not None]
    mean, low, high = ([row[epoch - 1] for epoch in epochs] for row in (series.mean, series.low, series.high))
    axes.fill_between(epochs, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(epochs, mean, color=colour, linewidth=1.6, marker="o" if len(epochs) == 1 else None)
    if series.theory is not None:
        shown = epochs[:: max(1, len(epochs) // _MOST_THEORY)]
        axes.plot(
            shown,
            [series.theory[epoch - 1] for epoch in shown],
            linestyle="none",
            marker="o",
            markersize=4.5,
            markerfacecolor="none",
            markeredgecolor=colour,
        )


def _draw_bytes(axes: Any, reports: Sequence[SimulationReport]) -> None:
    """Where the bytes of the scope go on average, policy below policy, and the budget they keep to."""
    axes.set_title("bytes of a step, by line of the ledger", fontsize=10, loc="left")
    lines = [line for line in SCOPE_LINES[Scope(reports[0].scope)] if any(_mean(report, line) for report in reports)]
    rows = range(len(reports))
    starts = [0.0] * len(reports)
    for line, grey in zip(lines, cycle(_LINE_GREYS), strict=False):
        widths = [_mean(report, line) for report in reports]
        axes.barh(rows, widths, left=starts, color=grey, height=0.62, label=line.replace("_", " "))
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    budget = reports[0].budget_bytes
    axes.axvline(budget, color="#D55E00", linewidth=1.2, linestyle=(0, (4, 3)))
    axes.annotate(
        "budget", (budget, -0.5), (-3, 2), textcoords="offset points", fontsize=8, color="#D55E00", ha="right"
    )
    axes.set_yticks(rows, [report.policy for report in reports], fontsize=8)
    for label, colour in zip(axes.get_yticklabels(), cycle(COLOURS), strict=False):
        label.set_color(colour)
    axes.set_ylim(len(reports) - 0.4, -0.9)
    axes.set_xlim(0, 1.05 * max(budget, *starts))
    axes.xaxis.get_major_locator().set_params(nbins=5)
    label_bytes(axes.xaxis)
    tidy_axes(axes)
    axes.legend(fontsize=8, frameon=False, ncols=2, loc="upper left", bbox_to_anchor=(0, -0.12))


def _mean(report: SimulationReport, line: str) -> float:
    return (report.lines[line].over_epochs or 0.0) if line in report.lines else 0.0


def _label_ends(axes: Any, ends: Sequence[tuple[float, str, str]], epochs: int) -> None:
    """Each line's name at its end, pushed apart where they would meet."""
    low, high = axes.get_ylim()
    upwards = sorted(ends)
    heights = [(value - low) / ((high - low) or 1.0) for value, _, _ in upwards]
    apart = [max(height, _GAP * place) for place, height in enumerate(spread(heights, _GAP, 1.0))]
    for height, (_, policy, colour) in zip(apart, upwards, strict=True):
        place = (epochs, low + height * (high - low))
        axes.annotate(
            policy,
            place,
            (6, 0),
            textcoords="offset points",
            fontsize=8,
            color=colour,
            va="center",
            annotation_clip=False,
        )
