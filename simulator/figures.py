"""The replay as a figure: what is reached, how good the gradient is, what it costs, epoch by epoch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from trady.planner.plotting import COLOURS, check_suffix, label_bytes, matplotlib_ready, save_figure, spread, tidy_axes
from trady.planner.units import format_bytes
from trady.simulator.outcomes import Series, SimulationReport

#: Measure -> title of its panel, and what its height is.
_PANELS: Final[Mapping[str, tuple[str, str]]] = {
    "rgn_reached": ("RGN drawn at least once", "share of all layers'"),
    "channels_reached": ("channels drawn at least once", "share of all layers'"),
    "waiting_time": ("epochs between updates of a channel", "epochs"),
    "captured_share": ("squared gradient norm captured", "share of all layers'"),
    "running_cosine": ("sum of drawn gradients against the full sum", "cosine"),
    "used_bytes": ("bytes of the step", "bytes"),
}
_MOST_THEORY: Final = 12


def plot_replay(reports: Sequence[SimulationReport], path: str | Path) -> None:
    """Draw means with their 5 to 95 % bands, policy beside policy, and closed forms as open circles.

    Args:
        reports: One for each policy, of the same plan.
        path: ``.png`` or ``.svg``.

    Raises:
        TradyError: Another suffix, no matplotlib, or a file that cannot be written.
    """
    check_suffix(Path(path))
    with matplotlib_ready():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(13.5, 7.4), layout="constrained")
        figure.suptitle(_title(reports[0]), fontsize=11)
        for axes, name in zip(figure.subplots(2, 3).flat, _PANELS, strict=True):
            _draw_panel(axes, name, reports)
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
    if name == "used_bytes":
        _draw_budget(axes, reports[0])
    elif name not in ("waiting_time",):
        axes.set_ylim(bottom=0)
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


def _draw_budget(axes: Any, report: SimulationReport) -> None:
    axes.axhline(report.budget_bytes, color="#555555", linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate("budget", (1, report.budget_bytes), (2, 3), textcoords="offset points", fontsize=8, color="#555555")
    axes.set_ylim(0, 1.12 * report.budget_bytes)
    label_bytes(axes.yaxis)


def _label_ends(axes: Any, ends: Sequence[tuple[float, str, str]], epochs: int) -> None:
    """Each line's name at its end, pushed apart where they would meet."""
    low, high = axes.get_ylim()
    upwards = sorted(ends)
    heights = [(value - low) / ((high - low) or 1.0) for value, _, _ in upwards]
    for height, (_, policy, colour) in zip(spread(heights, 0.055, 1.0), upwards, strict=True):
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
