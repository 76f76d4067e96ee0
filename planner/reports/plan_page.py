"""A plan as one HTML page: what trains, what it costs, what it saves. No torch.

Held by ``tests/planner/reports/test_plan_page_in_browser.py``.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from trady.planner.files import write_atomically
from trady.planner.ledger import SCOPE_LINES, Lines
from trady.planner.options import Scope
from trady.planner.plan import Plan
from trady.planner.reports.pages import asset, page
from trady.planner.reports.summary import ChosenLayer, PartOf, PlanFigures, plan_figures
from trady.planner.reports.text_report import (
    dense_bytes,
    dense_footnote,
    given_up,
    proof,
    remarks,
    step_line,
    value_note,
)
from trady.planner.units import format_bytes, format_share

_SAVINGS: Final = {
    "activation_elements": ("stored inputs (activation sparsity)", "elements a sample"),
    "weight_grad_elements": ("weight gradients (weight-derivative sparsity)", "elements"),
    "weight_grad_macs": ("weight-derivative MACs", "MACs a step"),
    "backward_macs": ("backward MACs", "MACs a step"),
}


def plan_page(plan: Plan) -> str:
    """One page that opens offline.

    Error:
        TradyError: plotly is not installed.
    """
    scripts = [asset("layers.js"), asset("plan.js")]
    return page(f"Plan for {plan.model.source}", asset("plan.html"), _page_data(plan), scripts)


def write_plan_page(plan: Plan, path: str | Path) -> None:
    """Write the page, whole or not at all.

    Error:
        TradyError: plotly is not installed, or the file cannot be written.
    """
    write_atomically(Path(path), plan_page(plan))


def _page_data(plan: Plan) -> dict[str, Any]:
    figures = plan_figures(plan)
    return {
        "title": f"Plan for {plan.model.source}",
        "said": _said(plan, figures),
        "detail": step_line(plan),
        "tiles": _tiles(plan, figures),
        "names": [layer.name for layer in plan.table.layers],
        "layers": _layers(plan, figures.layers),
        "value_note": value_note(plan),
        "ledger": _ledger(plan, figures),
        "ledger_note": dense_footnote(plan, figures),
        "saved": [[name, *_part(getattr(figures, key)), unit] for key, (name, unit) in _SAVINGS.items()],
        "saved_note": f"Against fine-tuning all channels of the {len(plan.table.layers)} layers.",
        "notes": list(remarks(plan)),
    }


def _said(plan: Plan, figures: PlanFigures) -> str:
    """What the budget buys, in one sentence."""
    return (
        f"{format_bytes(plan.settings.budget_bytes)} trains {len(figures.layers)} of {len(plan.table.layers)} layers, "
        f"{figures.channels.drawn:,} of {figures.channels.full:,} channels, "
        f"for {format_share(plan.solver.value, 1)} of the value of training all ({proof(plan)}).{given_up(plan)}"
    )


def _tiles(plan: Plan, figures: PlanFigures) -> list[tuple[str, str]]:
    scopes, asked = plan.ledger.scopes, plan.settings.scope
    peak = "not predicted" if scopes.peak is None else format_bytes(scopes.peak)
    return [
        (f"used in scope {asked.value}", f"{format_bytes(figures.used_bytes)} ({format_share(figures.budget_share)})"),
        ("scope training", format_bytes(scopes.training)),
        ("full fine-tuning", format_bytes(figures.training_bytes.full)),
        ("predicted peak", peak),
        ("inputs saved", format_share(figures.activation_elements.saved_share, 1)),
        ("weight gradients saved", format_share(figures.weight_grad_elements.saved_share, 1)),
    ]


def _layers(plan: Plan, layers: tuple[ChosenLayer, ...]) -> list[dict[str, Any]]:
    """The chosen layers with their places in the table."""
    places = {layer.name: place for place, layer in enumerate(plan.table.layers)}
    return [asdict(layer) | {"place": places[layer.name], "bytes": layer.update_bytes} for layer in layers]


def _ledger(plan: Plan, figures: PlanFigures) -> dict[str, Any]:
    """Each line with the scopes that hold it, then the scopes."""
    dense = dense_bytes(plan, figures)
    lines = [
        {
            "name": name,
            "bytes": getattr(plan.ledger.lines, name),
            "scopes": [scope.value for scope in Scope if name in SCOPE_LINES[scope]],
            "dense": dense.get(name),
        }
        for name in Lines.model_fields
    ]
    scopes = [
        {"name": scope.value, "bytes": getattr(plan.ledger.scopes, scope.value), "dense": dense.get(f"scope_{scope}")}
        for scope in Scope
    ]
    return {"lines": lines, "scopes": scopes, "asked": plan.settings.scope.value}


def _part(part: PartOf) -> tuple[float, int, int]:
    return part.saved_share, part.drawn, part.full
