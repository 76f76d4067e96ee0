"""Replay a plan before anyone trains: what it touches, when, at what cost, and how good its gradient is.

Exports are lazy: reading ``trady.simulator`` imports neither numpy nor torch.
"""

import importlib
from typing import Any

_EXPORTS: dict[str, str] = {
    "SimulationReport": "outcomes",
    "Timeline": "moments",
    "draw_observations": "observation_figures",
    "observe": "observations",
    "plot_replay": "figures",
    "plot_timeline": "timeline_figures",
    "simulate": "replay",
    "timeline": "moments",
}

__all__ = [
    "SimulationReport",
    "Timeline",
    "draw_observations",
    "observe",
    "plot_replay",
    "plot_timeline",
    "simulate",
    "timeline",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
