"""Figures and graph files: bytes by layer, the model drawn by what it keeps. matplotlib is loaded when one is drawn."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import networkx as nx

from trady.planner.files import check_writable, write_atomically
from trady.planner.plan import Plan
from trady.planner.reports.module_graphs import MODEL, Place, layered_places, module_graph
from trady.planner.reports.plotting import (
    DPI,
    check_suffix,
    label_bytes,
    matplotlib_ready,
    save_figure,
    thinned_labels,
    tidy_axes,
)
from trady.planner.reports.summary import PlanFigures, layer_rgn, plan_figures
from trady.planner.reports.text_parts import shorten
from trady.planner.units import format_bytes, format_share

if TYPE_CHECKING:
    from trady.planner.tracing import Trace

GRAPH_SUFFIXES: Final = (".json", ".graphml")
#: Okabe and Ito's colours, told apart with any colour vision.
_LINE_COLOURS: Final = {"gradients": "#0072B2", "stored inputs": "#E69F00", "optimizer state": "#009E73"}
_TRAINED, _FROZEN = "#D55E00", "#BBBBBB"
_MOST_PIXELS: Final = 30_000
_COLUMN, _ROW = 3.0, 0.34
_BOX_WIDTH, _BOX_HEIGHT = 2.6, 0.24
_LONGEST_LABEL: Final = 40


def check_graph_path(path: str | Path) -> None:
    """Fail before the work: an unknown suffix, or a place that cannot be written.

    Error:
        TradyError: With what to do about it.
    """
    check_suffix(Path(path), GRAPH_SUFFIXES, "Graph")
    check_writable(Path(path))


def plot_plan(plan: Plan, path: str | Path) -> None:
    """Draw what each layer's drawn channels cost, and below it the RGN of all layers, in the model's order.

    Args:
        plan: The plan.
        path: ``.png`` or ``.svg``.

    Error:
        TradyError: Another suffix, no matplotlib, or a file that cannot be written.
    """
    figures = plan_figures(plan)
    names = [layer.name for layer in plan.table.layers]
    positions = [plan.table.index_of(layer.name) for layer in figures.layers]
    check_suffix(Path(path))
    with matplotlib_ready():
        from matplotlib.figure import Figure

        width = min(20.0, max(8.0, 2.0 + 0.19 * len(names)))
        longest = min(_LONGEST_LABEL, max(map(len, names)))
        figure = Figure(figsize=(width, 5.5 + 0.06 * longest), layout="constrained")
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        figure.suptitle(_plot_title(plan, figures), fontsize=11)
        _plot_bytes(top, figures, positions)
        _plot_rgn(bottom, layer_rgn(plan), set(positions))
        labelled = thinned_labels(len(names), positions, most=int((width - 1.5) / 0.16))
        bottom.set_xticks(labelled, [shorten(names[index], _LONGEST_LABEL) for index in labelled])
        bottom.tick_params(axis="x", rotation=90, labelsize=7)
        bottom.set_xlim(-0.7, len(names) - 0.3)
        save_figure(figure, Path(path))


def draw_graph(trace: "Trace", path: str | Path) -> None:
    """Draw the model from top to bottom: one box per module, coloured by what dense training keeps in it.

    Args:
        trace: The trace.
        path: ``.png`` or ``.svg``.

    Error:
        TradyError: Another suffix, no matplotlib, or a file that cannot be written.
    """
    check_suffix(Path(path))
    graph = module_graph(trace)
    places = layered_places(graph)
    rows = 1 + max(place.row for place in places.values())
    columns = 1 + max(place.column for place in places.values())
    arcs = _longest_arc(graph, places)
    width, height = columns * _COLUMN + arcs, (rows + 3.4) * _ROW
    with matplotlib_ready():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(max(width, 5.5), height))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        right = max(width, 5.5) - arcs - _COLUMN / 2
        axes.set(xlim=(-_COLUMN / 2 - arcs, right), ylim=(-(rows - 0.3) * _ROW, 3.1 * _ROW))
        scale = _ColourScale([kept for _, kept in graph.nodes(data="kept_bytes")])
        _draw_edges(axes, graph, places)
        _draw_boxes(axes, graph, places, scale)
        title = f"Kept for backward by dense training, batch {trace.batch_size}: {format_bytes(trace.saved_bytes)}"
        axes.text(-_BOX_WIDTH / 2, 2.5 * _ROW, title, fontsize=9, weight="bold")
        scale.draw_bar(figure, (-_BOX_WIDTH / 2, 1.7 * _ROW, 4.0, 0.4 * _ROW), axes)
        save_figure(figure, Path(path), min(DPI, _MOST_PIXELS / max(width, height)))


def save_graph(trace: "Trace", path: str | Path) -> None:
    """Write the graph of operations and tensors for other tools.

    Args:
        trace: The trace.
        path: ``.json`` (networkx node-link data) or ``.graphml``.

    Error:
        TradyError: Another suffix, or a file that cannot be written.
    """
    check_suffix(Path(path), GRAPH_SUFFIXES, "Graph")
    if Path(path).suffix == ".json":
        content = json.dumps(nx.node_link_data(trace.graph, edges="edges")) + "\n"
    else:
        content = "\n".join(nx.generate_graphml(trace.graph)) + "\n"
    write_atomically(Path(path), content)


def _plot_title(plan: Plan, figures: PlanFigures) -> str:
    settings = plan.settings
    return (
        f"{plan.model.source}: {format_bytes(figures.used_bytes)} of {format_bytes(settings.budget_bytes)} "
        f"({format_share(figures.budget_share)}) in scope {settings.scope.value}\n"
        f"strategy {plan.strategy.name.value}, batch {settings.batch_size}, {settings.optimizer.value}: "
        f"{len(figures.layers)} of {len(plan.table.layers)} layers train"
    )


def _plot_bytes(axes: Any, figures: PlanFigures, positions: Sequence[int]) -> None:
    parts = {
        "gradients": [layer.gradient_bytes for layer in figures.layers],
        "stored inputs": [layer.stored_bytes + layer.index_bytes for layer in figures.layers],
        "optimizer state": [layer.optimizer_bytes for layer in figures.layers],
    }
    base = [0] * len(positions)
    for name, heights in parts.items():
        if any(heights):
            axes.bar(positions, heights, bottom=base, width=0.8, color=_LINE_COLOURS[name], label=name)
            base = [low + height for low, height in zip(base, heights, strict=True)]
    label_bytes(axes.yaxis)
    axes.set_ylabel("bytes of the drawn channels", fontsize=9)
    _legend(axes)
    tidy_axes(axes)


def _plot_rgn(axes: Any, rgn: Sequence[float], trained: set[int]) -> None:
    for label, colour, chosen in (("trains", _TRAINED, True), ("frozen", _FROZEN, False)):
        places = [index for index in range(len(rgn)) if (index in trained) is chosen]
        axes.bar(places, [rgn[index] for index in places], width=0.8, color=colour, label=label)
    positive = [value for value in rgn if value > 0]
    if positive and max(positive) > 30 * min(positive):
        axes.set_yscale("log")
        axes.set_ylim(bottom=min(positive) / 2)
    axes.set_ylabel("RGN (norm per element)", fontsize=9)
    _legend(axes)
    tidy_axes(axes)


def _legend(axes: Any) -> None:
    axes.legend(fontsize=8, frameon=False, ncols=3, loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.1)


class _ColourScale:
    """Bytes to colours, light to dark; logarithmic where they span more than a factor of 100."""

    def __init__(self, kept: Sequence[int]) -> None:
        from matplotlib import colormaps
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import LogNorm, Normalize

        positive = [num_bytes for num_bytes in kept if num_bytes]
        low, high = min(positive, default=1), max(positive, default=1)
        norm = LogNorm(low, max(high, low + 1)) if high > 100 * low else Normalize(0, high)
        self._mappable: Any = ScalarMappable(norm, colormaps["viridis_r"])

    def colours(self, num_bytes: int) -> tuple[Any, str]:
        """Fill and text colour of a box."""
        if not num_bytes:
            return "white", "black"
        fill = self._mappable.to_rgba(num_bytes)
        luminance = 0.2126 * fill[0] + 0.7152 * fill[1] + 0.0722 * fill[2]
        return fill, "black" if luminance > 0.45 else "white"

    def draw_bar(self, figure: Any, bounds: tuple[float, float, float, float], axes: Any) -> None:
        bar = figure.colorbar(
            self._mappable, cax=axes.inset_axes(bounds, transform=axes.transData), orientation="horizontal"
        )
        label_bytes(bar.ax.xaxis)
        bar.ax.tick_params(labelsize=7)
        bar.ax.minorticks_off()
        bar.outline.set_visible(False)


def _draw_boxes(axes: Any, graph: nx.DiGraph, places: Mapping[str, Place], scale: _ColourScale) -> None:
    from matplotlib.patches import Rectangle

    for node, attributes in graph.nodes(data=True):
        x, y = _centre(places[node])
        fill, text = scale.colours(attributes["kept_bytes"])
        corner = (x - _BOX_WIDTH / 2, y - _BOX_HEIGHT / 2)
        axes.add_patch(
            Rectangle(corner, _BOX_WIDTH, _BOX_HEIGHT, facecolor=fill, edgecolor="#666666", linewidth=0.5, zorder=2)
        )
        amount = format_bytes(attributes["kept_bytes"])
        name = shorten(_label(node, attributes), _LONGEST_LABEL - len(amount))
        axes.text(x, y, f"{name}  {amount}", fontsize=6.5, color=text, ha="center", va="center_baseline", zorder=3)


def _label(node: str, attributes: Mapping[str, Any]) -> str:
    """The module's path; what the model itself and the loss run is named by its first operation."""
    return node if attributes["module"] else f"{MODEL}: {attributes['operations'].split(', ')[0].strip('_')}"


def _draw_edges(axes: Any, graph: nx.DiGraph, places: Mapping[str, Place]) -> None:
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path as Curve

    taken = set(places.values())
    for start, end in graph.edges:
        points, codes = _route(places[start], places[end], taken)
        axes.add_patch(
            FancyArrowPatch(
                path=Curve(points, codes),
                arrowstyle="-|>,head_length=2.5,head_width=1.5",
                color="#777777",
                linewidth=0.7,
                zorder=1,
            )
        )


def _route(start: Place, end: Place, taken: set[Place]) -> tuple[list[tuple[float, float]], list[int]]:
    """A line from box to box: straight down, or around the boxes between on the left."""
    move, line, curve = 1, 2, 4
    (x1, y1), (x2, y2) = _centre(start), _centre(end)
    half = _BOX_HEIGHT / 2
    between = range(start.row + 1, end.row)
    if start.column != end.column and between and not any(Place(row, start.column) in taken for row in between):
        bend = _centre(Place(end.row - 1, start.column))
        return [(x1, y1 - half), bend, (x2, y2 + half)], [move, line, line]
    if any(Place(row, end.column) in taken for row in between):
        left1, left2 = x1 - _BOX_WIDTH / 2, x2 - _BOX_WIDTH / 2
        out = min(left1, left2) - _arc(end.row - start.row)
        return [(left1, y1), (out, y1), (out, y2), (left2, y2)], [move, curve, curve, curve]
    return [(x1, y1 - half), (x2, y2 + half)], [move, line]


def _arc(span: int) -> float:
    return 0.35 + 0.25 * math.log2(span)


def _longest_arc(graph: nx.DiGraph, places: Mapping[str, Place]) -> float:
    """Room that the lines around boxes need on the left: a curve reaches three quarters of the way to its handles."""
    spans = [places[end].row - places[start].row for start, end in graph.edges]
    return max((0.75 * _arc(span) - 0.2 for span in spans if span > 1), default=0.0)


def _centre(place: Place) -> tuple[float, float]:
    return place.column * _COLUMN, -place.row * _ROW
