"""A study as a figure for papers: what budgets reach, and where the bytes go along the network's depth."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from trady.planner.reports import (
    COLOURS,
    check_figure_path,
    label_bytes,
    matplotlib_ready,
    save_figure,
    shorten,
    tidy_axes,
    with_most_bytes,
)
from trady.planner.studies.answers import Answers, Measure, bought
from trady.planner.studies.rows import Curve, StudyRow
from trady.planner.studies.runs import Study
from trady.planner.units import format_bytes

#: Curves told apart by colour; what goes beyond shares the line styles below them.
_MOST_CURVES: Final = len(COLOURS) * 3
_STYLES: Final = ("-", "--", ":")
_MOST_LAYERS: Final = 40
_PARTS: Final = {
    "stored inputs": "stored_bytes",
    "gradients": "gradient_bytes",
    "optimizer state": "optimizer_bytes",
    "indices": "index_bytes",
}
_AXIS_NAMES: Final = {
    Measure.RGN_REACHED: "RGN reached by the last epoch",
    Measure.VALUE: "value",
    Measure.CAPTURED_SHARE: "squared gradient norm captured",
}


def plot_study(study: Study, *paths: str | Path, measure: Measure = Measure.RGN_REACHED) -> None:
    """Draw a study: every curve over its budgets with knees and front, and below the bytes of one budget by layer.

    Args:
        study: With one row at least that trains something.
        paths: Files of the same drawing, ``.png`` or ``.svg``.
        measure: What the curves show.

    Error:
        TradyError: A path cannot be written, or matplotlib is not installed.
    """
    for path in paths:
        check_figure_path(path)
    shown = example_row(study.answers)
    with matplotlib_ready():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8.5, 8.0), layout="constrained")
        above, below = figure.subplots(2, 1, height_ratios=(3, 2))
        _draw_curves(above, study.answers, measure)
        _draw_layers(below, study.answers, shown)
        for path in paths:
            save_figure(figure, Path(path))


def example_row(answers: Answers) -> StudyRow:
    """The row whose bytes are shown: the knee of the first curve, or its middle."""
    curve = next(iter(answers.curves))
    rows = answers.curves[curve]
    return answers.knee(curve) or rows[len(rows) // 2]


def _draw_curves(axes: Any, answers: Answers, measure: Measure) -> None:
    for place, (curve, rows) in enumerate(list(answers.curves.items())[:_MOST_CURVES]):
        _draw_curve(axes, answers, curve, rows, place, measure)
    front = answers.front(measure)
    axes.plot(
        [row.setting.budget_bytes for row in front],
        [100 * measure.of(row) for row in front],
        color="#888888",
        linewidth=4,
        alpha=0.3,
        zorder=0,
        label="front",
    )
    from matplotlib.ticker import LogLocator

    setting = answers.rows[0].setting
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    label_bytes(axes.xaxis)
    axes.set_xlabel(f"budget, scope {setting.scope.value}")
    axes.set_ylabel(f"{_AXIS_NAMES[measure]}, %")
    axes.set_ylim(0, 102)
    axes.set_title(
        "What a budget buys" if "model" in answers.names.axes else f"{answers.names.model(setting)}: what a budget buys"
    )
    tidy_axes(axes)
    left = len(answers.curves) - _MOST_CURVES
    title = f"and {left} more curves in the table" if left > 0 else None
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7, frameon=False, title=title, title_fontsize=7)


def _draw_curve(
    axes: Any,
    answers: Answers,
    curve: Curve,
    rows: Sequence[StudyRow],
    place: int,
    measure: Measure,
) -> None:
    colour = COLOURS[place % len(COLOURS)]
    style = _STYLES[place // len(COLOURS)]
    budgets = [row.setting.budget_bytes for row in rows]
    axes.plot(
        budgets,
        [100 * measure.of(row) for row in rows],
        style,
        color=colour,
        linewidth=1.4,
        marker="o" if len(rows) == 1 else None,
        label=answers.names.of(rows[0].setting),
    )
    knee = answers.knee(curve, measure)
    if knee is not None:
        axes.plot(knee.setting.budget_bytes, 100 * measure.of(knee), "D", color=colour, markersize=5)


def _draw_layers(axes: Any, answers: Answers, row: StudyRow) -> None:
    """Bytes of each layer that trains, stacked by kind, in the model's order."""
    found = bought(row)
    layers = with_most_bytes(found.layers, _MOST_LAYERS)
    base = [0] * len(layers)
    for (label, field), colour in zip(_PARTS.items(), COLOURS, strict=False):
        sizes = [getattr(layer, field) for layer in layers]
        if any(sizes):
            axes.bar(range(len(layers)), sizes, bottom=base, color=colour, label=label, width=0.8)
        base = [below + size for below, size in zip(base, sizes, strict=True)]
    axes.set_xticks(range(len(layers)), [shorten(layer.name, 22) for layer in layers], rotation=60, ha="right")
    axes.tick_params(axis="x", labelsize=7)
    axes.set_xlim(-0.6, len(layers) - 0.4)
    label_bytes(axes.yaxis)
    tidy_axes(axes)
    left = f", {len(found.layers) - len(layers)} smaller ones left out" if len(layers) < len(found.layers) else ""
    setting = row.setting
    name = answers.names.of(setting, ("model", "batch_size", "optimizer"))
    axes.set_title(
        f"{name}: {format_bytes(setting.budget_bytes)} train {len(found.layers)} of {found.num_layers} layers{left}",
        fontsize=9,
    )
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
