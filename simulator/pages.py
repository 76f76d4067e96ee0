"""A replay as one HTML page: every measure epoch by epoch, policy beside policy, and the bytes of one step."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from trady.planner.files import write_atomically
from trady.planner.reports import asset, page
from trady.planner.units import format_bytes
from trady.simulator.reports import measure_text, notes, shown_value
from trady.simulator.results import MEASURES, Series, SimulationReport
from trady.simulator.timelines import Timeline

#: Parts of the timeline from the bottom up, what always lives first -> place among the page's colours.
_PARTS: Final = {
    "weights": 7,
    "inputs": 8,
    "active_weights": 1,
    "optimizer_state": 2,
    "draw_index": 6,
    "always_trained": 9,
    "gradients": 0,
    "saved_activations": 4,
    "residuals": 3,
    "workspace": 5,
    "margin": 10,
}
#: Digits that a curve on a page needs.
_DIGITS: Final = 6


def replay_page(reports: Sequence[SimulationReport], timeline: Timeline | None) -> str:
    """One page that opens offline.

    Args:
        reports: One for each policy, of the same plan.
        timeline: One step of the plan; ``None`` where lifetimes are not known.

    Error:
        TradyError: plotly is not installed.
    """
    skeleton, script = (asset(name, "trady.simulator") for name in ("replay.html", "replay.js"))
    return page(_title(reports[0]), skeleton, _page_data(reports, timeline), [script])


def write_replay_page(reports: Sequence[SimulationReport], timeline: Timeline | None, path: str | Path) -> None:
    """Write the page, whole or not at all.

    Error:
        TradyError: plotly is not installed, or the file cannot be written.
    """
    write_atomically(Path(path), replay_page(reports, timeline))


def _title(report: SimulationReport) -> str:
    return f"Replay of {report.source}"


def _page_data(reports: Sequence[SimulationReport], timeline: Timeline | None) -> dict[str, Any]:
    first = reports[0]
    names = [name for name in MEASURES if all(name in report.measures for report in reports)]
    return {
        "title": _title(first),
        "said": _said(reports),
        "detail": f"{first.trials:,} trials from seed {first.seed}, {first.gradients} gradients.",
        "epochs": first.epochs,
        "budget": first.budget_bytes,
        "measures": [{"key": name, "what": MEASURES[name], "unit": _unit(name)} for name in names],
        "policies": [_policy(report, names) for report in reports],
        "notes": notes(reports),
        "timeline": None if timeline is None else _timeline(timeline),
    }


def _said(reports: Sequence[SimulationReport]) -> str:
    """What the policies reach within the budget, in one sentence."""
    first, key = reports[0], "rgn_reached"
    reached = [f"{measure_text(key, report.measures[key].last)} with {report.policy}" for report in reports]
    reached[0] = reached[0].replace(" with", " of the RGN with", 1)
    return f"By epoch {first.epochs}, {format_bytes(first.budget_bytes)} reach {', '.join(reached)}."


def _policy(report: SimulationReport, names: Sequence[str]) -> dict[str, Any]:
    return {
        "name": report.policy,
        "eligible": report.num_eligible,
        "highest": report.highest_used_bytes,
        "series": {name: _series(report.measures[name]) for name in names},
        "shown": {name: [shown_value(report, name), measure_text(name, shown_value(report, name))] for name in names},
    }


def _series(series: Series) -> dict[str, Any]:
    found = {name: _rounded(getattr(series, name)) for name in ("mean", "low", "high")}
    return {**found, "theory": None if series.theory is None else _rounded(series.theory)}


def _rounded(values: Sequence[float | None]) -> list[float | None]:
    return [None if value is None else float(f"{value:.{_DIGITS}g}") for value in values]


def _unit(name: str) -> str:
    """How a measure's values are written."""
    if name == "used_bytes":
        return "bytes"
    if name.endswith("macs"):
        return "count"
    return "number" if name.endswith("cosine") or name == "waiting_time" else "share"


def _timeline(timeline: Timeline) -> dict[str, Any]:
    """Moments in order, and the parts that ever live."""
    parts = [name for name in _PARTS if any(moment.num_bytes[name] for moment in timeline.moments)]
    peak = timeline.peak_moment
    return {
        "parts": [[name, _PARTS[name]] for name in parts],
        "moments": [
            [moment.kind.value, moment.module or moment.target, *(moment.num_bytes[name] for name in parts)]
            for moment in timeline.moments
        ],
        "peak": timeline.moments.index(peak),
        "said": (
            f"The most lives at {peak.module or peak.target} ({peak.kind.value}): {format_bytes(timeline.peak_bytes)}, "
            f"epoch {timeline.epoch}, seed {timeline.seed}, batch {timeline.plan.settings.batch_size}."
        ),
    }
