"""A study as one HTML page: what each budget buys, at a glance and row by row. No torch."""

import math
import shlex
from collections.abc import Iterable, Iterator, Sequence
from graphlib import TopologicalSorter
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from trady.planner.files import write_atomically
from trady.planner.ledger import PEAK_LINES, SCOPE_LINES
from trady.planner.options import Scope
from trady.planner.reports import ChosenLayer, asset, page
from trady.planner.studies.answers import Measure
from trady.planner.studies.rows import Bought, Curve, Setting, StudyRow
from trady.planner.studies.runs import Study
from trady.planner.units import format_bytes

#: Rows whose layers a page carries; of more rows, only some keep theirs.
MOST_DETAILED_ROWS: Final = 20_000
_FIRST_MODELS: Final = 3
_AXES: Final = {
    "model": "model",
    "input": "input",
    "norm": "norms",
    "dtype": "type",
    "batch_size": "batch size",
    "optimizer": "optimizer",
}
#: Measure -> its name on the page, what it is a share of, and what reaches it: "reaches 30 % of the RGN".
_MEASURES: Final = {
    Measure.RGN_REACHED: ("RGN reached", "of the RGN", "channels drawn at least once by the last epoch"),
    Measure.CAPTURED_SHARE: ("captured share", "of the squared gradient norm", "held by the channels of one draw"),
    Measure.VALUE: ("value", "of the gradient norm", "reached by the solver's horizon of draws: what it maximises"),
}
_FIGURES: Final = (
    "used_bytes",
    "value",
    "gap",
    "rgn_reached",
    "captured_share",
    "next_kilobyte",
    "num_layers",
    "num_channels",
    "all_channels",
    "activation_sparsity",
    "weight_derivative_sparsity",
    "weight_grad_macs",
    "backward_macs",
)
_LAYER_FIGURES: Final = (
    "channels",
    "gradient_bytes",
    "stored_bytes",
    "optimizer_bytes",
    "index_bytes",
    "value_share",
)

Network = tuple[str, str]


def study_page(study: Study) -> str:
    """One page that opens offline.

    Args:
        study: Rows of any number; of more than :data:`MOST_DETAILED_ROWS` some lose their layers, and the page says so.

    Error:
        TradyError: plotly is not installed.
    """
    scripts = [asset(name) for name in ("layers.js", "study_chart.js", "study.js")]
    return page(_title(study), asset("study.html"), _Data(study).as_json(), scripts)


def write_study_page(study: Study, path: str | Path) -> None:
    """Write the page, whole or not at all.

    Error:
        TradyError: plotly is not installed, or the file cannot be written.
    """
    write_atomically(Path(path), study_page(study))


class _Data:
    """A study as arrays that refer to curves, networks and layers by their places."""

    def __init__(self, study: Study) -> None:
        self._study, self._rows = study, study.rows
        self._axes = study.answers.names.axes
        self._settings: dict[Curve, Setting] = {}
        for row in self._rows:
            self._settings.setdefault(row.setting.curve, row.setting)
        self._curve_places = {curve: place for place, curve in enumerate(self._settings)}
        self._row_places = {id(row): place for place, row in enumerate(self._rows)}
        self._layers = _layers_of_networks(self._rows)
        self._layer_places = {
            network: {layer.name: place for place, layer in enumerate(layers)}
            for network, layers in self._layers.items()
        }
        self._step = max(1, math.ceil(len(self._rows) / MOST_DETAILED_ROWS))

    def as_json(self) -> dict[str, Any]:
        study, answers = self._study, self._study.answers
        return {
            "title": _title(study),
            "facts": _facts(study),
            "failures": study.failures,
            "target": study.target,
            "axes": [{"key": name, "name": _AXES[name]} for name in self._axes],
            "measures": [
                {"key": key.value, "name": name, "whole": whole, "what": what}
                for key, (name, whole, what) in _MEASURES.items()
            ],
            "networks": [[[layer.name, layer.kind, layer.in_channels] for layer in found] for found in self._networks],
            "curves": [self._curve(curve, setting) for curve, setting in self._settings.items()],
            "fronts": {key.value: [self._row_places[id(row)] for row in answers.front(key)] for key in Measure},
            "lines": PEAK_LINES,
            "scopes": {scope.value: SCOPE_LINES[scope] for scope in Scope},
            "figures": _FIGURES,
            "layer_figures": _LAYER_FIGURES,
            "rows": [self._row(place, row) for place, row in enumerate(self._rows)],
            "detail_step": self._step,
        }

    @property
    def _networks(self) -> Iterable[Sequence[ChosenLayer]]:
        return self._layers.values()

    def _curve(self, curve: Curve, setting: Setting) -> dict[str, Any]:
        """What the rows of a curve share, and for each measure the row at its knee."""
        knees = {key.value: self._study.answers.knee(curve, key) for key in Measure}
        return {
            "label": self._study.answers.names.of(setting) if self._axes else "",
            "values": {name: _axis_text(setting, name) for name in self._axes},
            "network": list(self._layers).index(_network(setting)),
            "ending": self._ending(setting),
            "scope": setting.scope.value,
            "epochs": setting.epochs,
            "knees": {key: None if row is None else self._row_places[id(row)] for key, row in knees.items()},
        }

    def _ending(self, setting: Setting) -> str:
        """What follows a row's options on the command line."""
        parts = ["--input", setting.input] if "input" in self._axes else []
        return shlex.join([*parts, setting.model])

    def _row(self, place: int, row: StudyRow) -> dict[str, Any]:
        found = {
            "curve": self._curve_places[row.setting.curve],
            "budget": row.setting.budget_bytes,
            "status": row.status,
            "options": row.options,
        }
        if row.bought is None:
            return found | _what_is_missing(row)
        detailed = place % self._step == 0
        return found | self._what_is_bought(row.bought, _network(row.setting), detailed)

    def _what_is_bought(self, bought: Bought, network: Network, detailed: bool) -> dict[str, Any]:
        places = self._layer_places[network]
        layers = [
            [places[layer.name], *(getattr(layer, name) for name in _LAYER_FIGURES)]
            for layer in bought.layers
            if detailed
        ]
        return {
            "figures": [getattr(bought, name) for name in _FIGURES],
            "lines": [bought.lines.get(name) for name in PEAK_LINES],
            "scopes": [bought.scopes.get(scope.value) for scope in Scope],
            "trained": len(bought.layers),
            "layers": layers if detailed else None,
        }


def _what_is_missing(row: StudyRow) -> dict[str, Any]:
    remedy = row.remedies[0] if row.remedies else None
    return {
        "why": row.why,
        "needed": row.needed_bytes,
        "remedy": None if remedy is None else [remedy.change, remedy.options, remedy.needed_bytes],
    }


def _layers_of_networks(rows: Sequence[StudyRow]) -> dict[Network, list[ChosenLayer]]:
    """Every layer that some row trains, in the model's order, by model and input."""
    orders: dict[Network, TopologicalSorter[str]] = {}
    known: dict[Network, dict[str, ChosenLayer]] = {}
    for row in rows:
        network = _network(row.setting)
        order, layers = orders.setdefault(network, TopologicalSorter()), known.setdefault(network, {})
        found = row.bought.layers if row.bought else ()
        layers.update((layer.name, layer) for layer in found)
        for layer in found[:1]:
            order.add(layer.name)
        for before, after in pairwise(found):
            order.add(after.name, before.name)
    return {network: [known[network][name] for name in order.static_order()] for network, order in orders.items()}


def _network(setting: Setting) -> Network:
    return setting.model, setting.input


def _axis_text(setting: Setting, name: str) -> str:
    value = getattr(setting, name)
    return "the model's own" if value is None else str(value)


def _title(study: Study) -> str:
    models = list(dict.fromkeys(study.answers.names.model(row.setting) for row in study.rows))
    if not models:
        return "Study without rows"
    more = f" and {len(models) - _FIRST_MODELS} more" if len(models) > _FIRST_MODELS else ""
    return "What budgets buy: " + ", ".join(models[:_FIRST_MODELS]) + more


def _facts(study: Study) -> str:
    return " · ".join(_fact_parts(study))


def _fact_parts(study: Study) -> Iterator[str]:
    """The study's size, what varies, and what all rows have in common."""
    if not study.rows:
        return
    budgets, first = study.answers.budgets, study.rows[0].setting
    yield f"{len(study.rows):,} rows" if len(study.rows) > 1 else "1 row"
    least, most = format_bytes(budgets[0]), format_bytes(budgets[-1])
    yield f"budgets {least} to {most}" if len(budgets) > 1 else f"budget {least}"
    yield f"scope {first.scope.value}"
    yield f"{first.epochs} epochs" if first.epochs > 1 else "1 epoch"
    for name, word in _AXES.items():
        shared = len({getattr(row.setting, name) for row in study.rows}) == 1
        if shared and name != "model" and getattr(first, name):
            yield f"{word} {_axis_text(first, name)}"
    if study.target is not None:
        yield f"smallest budgets that reach {100 * study.target:g} % of the RGN"
