"""Figures of the accuracy benchmark: policies beside ``trady``, accuracy over budgets, accuracy over step time."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from benchmarks.accuracy.rows import Row, scores_by_policy
from benchmarks.accuracy.statistics import mean_of
from trady.planner.reports import COLOURS, matplotlib_ready, save_figure, tidy_axes

_BASELINE: Final = "trady"
_FULL: Final = ("full", "full AdamW")
#: Points to either side; what lies beyond is drawn as an arrow at the edge.
_WIDEST: Final = 5.0


def draw_policies(rows: Sequence[Row], networks: Sequence[str], path: Path) -> None:
    """Points of each policy ahead of the paper's rule, on the same network, data and seed; mean and 95 % interval."""
    differences = _differences([row for row in rows if row["network"] in networks], _BASELINE)
    names = sorted(differences, key=lambda name: mean_of(differences[name]).value)
    with matplotlib_ready():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.5, 0.28 * len(names) + 1.2), layout="constrained")
        axes = figure.subplots()
        for place, name in enumerate(names):
            found = mean_of(differences[name])
            colour = COLOURS[0] if name.startswith("solver") else COLOURS[3] if name == _BASELINE else "#777777"
            axes.plot(differences[name], [place] * found.count, "|", color=colour, alpha=0.4, markersize=7)
            if found.count > 2:
                axes.plot(
                    [found.value - found.half_width, found.value + found.half_width], [place] * 2, "-", color=colour
                )
            inside = max(found.value, -_WIDEST)
            axes.plot([inside], [place], "o" if inside == found.value else "<", color=colour, markersize=5)
        axes.set_yticks(range(len(names)), [f"{name} ({len(differences[name])})" for name in names], fontsize=8)
        axes.axvline(0, color=COLOURS[3], linewidth=0.8)
        axes.set_xlim(-_WIDEST - 0.2, _WIDEST + 0.2)
        axes.set_xlabel(f"top-1 minus that of {_BASELINE} on the same network, data and seed (points)")
        tidy_axes(axes)
        axes.grid(axis="x", color="#E5E5E5", linewidth=0.6)
        save_figure(figure, path)


def draw_budgets(rows: Sequence[Row], path: Path) -> None:
    """Accuracy over the budget, mbv2-w0.35 on food10, first seed."""
    mine = [row for row in rows if row["network"] == "mbv2-w0.35" and row["data"] == "food10" and row["seed"] == 0]
    curves: dict[str, dict[int, float]] = defaultdict(dict)
    for row in mine:
        curves[row["policy"]["name"]][row["budget_elements"]] = 100 * row["accuracy"]
    with matplotlib_ready():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.5, 3.6), layout="constrained")
        axes = figure.subplots()
        shown = {name: curve for name, curve in curves.items() if len(curve) > 1}
        for place, (name, curve) in enumerate(shown.items()):
            axes.plot(sorted(curve), [curve[b] for b in sorted(curve)], "o-", label=name, color=COLOURS[place])
        for name in ("head", *_FULL):
            if name in curves:
                axes.axhline(next(iter(curves[name].values())), linestyle=":", color="#555555", linewidth=1)
                axes.annotate(
                    name, (1, next(iter(curves[name].values()))), xycoords=("axes fraction", "data"), fontsize=8
                )
        axes.set_xlabel("budget (elements of weights and of one sample's activations)")
        axes.set_ylabel("top-1 (%)")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        if shown:
            axes.legend(frameon=False, fontsize=8)
        tidy_axes(axes)
        save_figure(figure, path)


def draw_depth(rows: Mapping[str, Row], step_ms: Mapping[str, float], path: Path) -> None:
    """Accuracy over the time of a step, for policies that reach back to different depths.

    Args:
        rows: One run by policy.
        step_ms: Time of a step by policy.
        path: Of the figure.
    """
    with matplotlib_ready():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.5, 3.6), layout="constrained")
        axes = figure.subplots()
        for name in (name for name in step_ms if name in rows):
            point = step_ms[name], 100 * rows[name]["accuracy"]
            axes.plot(*point, "o", color=COLOURS[0] if name.startswith("solver") else "#777777", markersize=5)
            axes.annotate(name, point, xytext=(5, 3), textcoords="offset points", fontsize=8)
        axes.set_xlabel("time of a step of 32 samples (ms, median, one thread)")
        axes.set_ylabel("top-1 (%), one run each")
        axes.margins(x=0.15)
        tidy_axes(axes)
        save_figure(figure, path)


def _differences(rows: Sequence[Row], baseline: str) -> dict[str, list[float]]:
    """Points ahead of the baseline, by policy, where both ran on the same network, data, budget and seed."""
    scores = scores_by_policy(rows)
    known = scores[baseline]
    found = {
        policy: [score - known[where] for where, score in mine.items() if where in known]
        for policy, mine in scores.items()
    }
    return {policy: points for policy, points in found.items() if points}
