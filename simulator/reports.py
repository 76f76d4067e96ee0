"""Replays as text for the terminal: what the end of training has reached, policy beside policy.

Held by ``tests/simulator/test_cli.py``.
"""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from trady.planner.ledger import UPDATE_LINES
from trady.planner.reports import headed_table, heading, item
from trady.planner.units import format_bytes, format_count, format_share
from trady.simulator.results import Series, SimulationReport

#: What is worth its value at the end, and what its mean over the epochs.
_AT_THE_END = ("rgn_reached", "channels_reached", "running_cosine")
_NAMES = {
    "channels_reached": "channels reached",
    "rgn_reached": "RGN reached",
    "waiting_time": "epochs waited",
    "captured_share": "captured share",
}
_LINES = {"saved_activations": "stored inputs", "optimizer_state": "state", "draw_index": "index"}
_COSTS = {
    "activation_sparsity": "inputs saved",
    "weight_derivative_sparsity": "grads saved",
    "weight_grad_macs": "grad MACs",
    "backward_macs": "backward MACs",
}
_FIRST_COLUMN = 16
_ERRORS = 1.96


def simulation_report(reports: Sequence[SimulationReport]) -> RenderableType:
    """What the draws reach, how good their gradient is, what they cost; closed forms beside what was counted."""
    first = reports[0]
    parts: list[RenderableType] = [_headline(first), "", heading("Reached and followed")]
    parts += [_reach_table(reports), Text(_reach_note(first), style="dim")]
    parts += ["", heading("Counted beside closed forms, after the last epoch"), *map(_theory_table, reports)]
    parts += ["", heading("Cost of an epoch's step"), *_cost_tables(reports)]
    parts += ["", heading("To know"), *(item(note) for note in notes(reports))]
    return Group(*parts)


def _headline(report: SimulationReport) -> RenderableType:
    title = Text.assemble((report.source, "bold"), f": {report.epochs} epochs in {format_count(report.trials)} trials")
    budget = f"Budget {format_bytes(report.budget_bytes)} in scope {report.scope}"
    return Group(title, Text(f"{budget}; {report.num_channels:,} channels in {report.num_layers} layers."))


def _reach_table(reports: Sequence[SimulationReport]) -> RenderableType:
    columns = {
        "rgn_reached": "RGN",
        "channels_reached": "channels",
        "waiting_time": "waits",
        "captured_share": "captured",
        "running_cosine": "running cosine",
    }
    table = headed_table(("policy", "<"), ("layers", ">"), *((name, ">") for name in columns.values()))
    for report in reports:
        values = (measure_text(name, shown_value(report, name)) for name in columns)
        table.add_row(report.policy, str(report.num_eligible), *values)
    return table


def _reach_note(report: SimulationReport) -> str:
    return (
        f"RGN and channels: shares drawn at least once in {report.epochs} epochs. Waits: epochs between a channel's "
        "updates. Captured: share of the squared gradient norm in an epoch. Running cosine: of all drawn gradients' "
        "sum with all full ones'. Waits and captured are means over the epochs."
    )


def _theory_table(report: SimulationReport) -> RenderableType:
    rows = [(name, report.measures[name]) for name in _NAMES if _has_theory(report.measures[name])]
    if not rows:
        return Text(f"{report.policy}: its draw has no closed form.", style="dim")
    table = headed_table((report.policy, "<"), ("counted", ">"), ("closed form", ">"), ("5 to 95 % of trials", ">"))
    table.columns[0].min_width = _FIRST_COLUMN
    for name, series in rows:
        assert series.theory is not None and series.mean[-1] is not None
        counted = f"{measure_text(name, series.mean[-1])} ±{_error_text(name, series)}"
        spread = f"{measure_text(name, series.low[-1])} to {measure_text(name, series.high[-1])}"
        table.add_row(_NAMES[name], counted, measure_text(name, series.theory[-1]), spread)
    return table


def _has_theory(series: Series) -> bool:
    return series.theory is not None and series.mean[-1] is not None and series.theory[-1] is not None


def _error_text(name: str, series: Series) -> str:
    error = _ERRORS * (series.standard_error[-1] or 0.0)
    return f"{error:.3f}" if name == "waiting_time" else f"{100 * error:.3f} %"


def _cost_tables(reports: Sequence[SimulationReport]) -> list[RenderableType]:
    scope = reports[0].scope
    used = headed_table(
        ("policy", "<"), (f"scope {scope}", ">"), ("highest", ">"), *((line, ">") for line in _line_heads(reports[0]))
    )
    saved = headed_table(("policy", "<"), *((name, ">") for name in _COSTS.values()))
    for report in reports:
        mean = _bytes_text(report.measures["used_bytes"].over_epochs)
        lines = (_bytes_text(report.lines[line].over_epochs) for line in _shown_lines(report))
        used.add_row(report.policy, mean, _bytes_text(report.highest_used_bytes), *lines)
        saved.add_row(report.policy, *(measure_text(name, shown_value(report, name)) for name in _COSTS))
    note = "Saved: of the inputs stored and of the weight gradients, against drawing every channel."
    return [used, "", saved, Text(note, style="dim")]


def _line_heads(report: SimulationReport) -> list[str]:
    return [_LINES.get(line, line.replace("_", " ")) for line in _shown_lines(report)]


def _shown_lines(report: SimulationReport) -> list[str]:
    """The lines of the smallest scope: those that the draw decides."""
    return [line for line in UPDATE_LINES if line in report.lines]


def shown_value(report: SimulationReport, name: str) -> float | None:
    """A measure as tables show it: its value at the end, or its mean over the epochs."""
    series = report.measures[name]
    return series.last if name in _AT_THE_END else series.over_epochs


def measure_text(name: str, value: float | None) -> str:
    """A measure's value with its unit; a dash where there is none."""
    if value is None:
        return "-"
    if name == "used_bytes":
        return format_bytes(round(value))
    if name.endswith("macs"):
        return format_count(round(value))
    if name.endswith("cosine"):
        return f"{value:.3f}"
    return f"{value:.2f}" if name == "waiting_time" else format_share(value)


def _bytes_text(value: float | None) -> str:
    return "-" if value is None else format_bytes(round(value))


def notes(reports: Sequence[SimulationReport]) -> list[str]:
    """What the reader should know, and whether the budget holds in every trial."""
    found = dict.fromkeys(note for report in reports for note in report.notes)
    over = [report for report in reports if report.highest_used_bytes > report.budget_bytes]
    held = "No epoch of any trial passes the budget."
    return [*found, *(f"{report.policy} passes the budget." for report in over), *([] if over else [held])]
