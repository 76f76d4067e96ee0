"""Plan memory-budgeted fine-tuning: trace a model, calibrate priorities, solve for the channels to train.

Exports are lazy: reading a plan needs neither torch nor ortools.
"""

import importlib
from typing import Any

_EXPORTS: dict[str, str] = {
    "GradientRecording": "gradient_recordings",
    "Plan": "plan",
    "Priorities": "priorities",
    "Study": "studies.runs",
    "calibrate": "calibration",
    "load_model": "loading",
    "make_plan": "planning",
    "open_data": "data",
    "record_gradients": "rehearsal",
    "study": "studies.runs",
    "trace": "tracing",
}

__all__ = [
    "GradientRecording",
    "Plan",
    "Priorities",
    "Study",
    "calibrate",
    "load_model",
    "make_plan",
    "open_data",
    "record_gradients",
    "study",
    "trace",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
