"""Execute a plan in real PyTorch training: lean operations, slices that train, bytes that are measured.

Exports are lazy: reading ``trady.engine`` imports no torch.
"""

import importlib
from typing import Any

_EXPORTS: dict[str, str] = {
    "Engine": "running",
    "SinkGD": "sinkgd",
    "measure_step": "meter",
}

__all__ = ["Engine", "SinkGD", "measure_step"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
