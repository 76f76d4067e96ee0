"""Holding a plan against a model: the same tensors, the planned types and layout, what always trains.

Held by ``tests/engine/test_engine.py``.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Final

import torch
from torch import nn

from trady.planner.errors import EngineError
from trady.planner.models import tensor_lines, torch_dtype
from trady.planner.options import DType, MemoryFormat
from trady.planner.plan import Plan

_SHOWN: Final = 5


def prepare_model(model: nn.Module, plan: Plan) -> None:
    """Check that a plan is of this model, and give the model the planned element type and layout.

    Raises:
        EngineError: Names, shapes or types differ (they are named), or the plan is accounting only.
    """
    if plan.settings.dtype is DType.INT8:
        raise EngineError(
            "The plan is for int8, which is accounting: PyTorch trains in floating point. "
            "Plan again without --dtype int8."
        )
    _check_tensors(model, plan)
    if plan.settings.dtype is not None:
        model.to(torch_dtype(plan.settings.dtype))
    if plan.settings.memory_format is MemoryFormat.CHANNELS_LAST:
        model.to(memory_format=torch.channels_last)


def _check_tensors(model: nn.Module, plan: Plan) -> None:
    found, planned = tensor_lines(model), plan.model.tensors
    cast = "" if plan.settings.dtype is None else plan.settings.dtype.value
    differing = [
        f"{name} ({planned.get(name, 'absent')} in the plan, {found.get(name, 'absent')} in the model)"
        for name in sorted(found.keys() | planned.keys())
        if not _agree(planned.get(name), found.get(name), cast)
    ]
    if differing:
        more = f" and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
        head = plan.model.head
        hint = f" The plan's head {', '.join(head.layers)} has {head.classes} classes." if head.classes else ""
        raise EngineError(
            f"The plan is of another model: {len(differing)} parameters and buffers differ: "
            f"{', '.join(differing[:_SHOWN])}{more}.{hint} Plan this model, or load the planned one."
        )


def _agree(planned: str | None, found: str | None, cast: str) -> bool:
    """Whether two descriptions ``float32[8, 3]`` are equal, a cast to the planned type allowed."""
    if planned is None or found is None or planned == found:
        return planned == found
    (kind, shape), (planned_kind, planned_shape) = (text.split("[", 1) for text in (found, planned))
    return shape == planned_shape and "float" in planned_kind and kind == cast


def always_trained_names(model: nn.Module, plan: Plan) -> frozenset[str]:
    """Parameters that train whatever is drawn: the head's weight and bias and the plan's ``--train`` patterns."""
    known = [name for name, _ in model.named_parameters()]
    head = set()
    for layer in plan.model.head.layers:
        head |= {name for name in (layer, f"{layer}.weight", f"{layer}.bias", _sibling_bias(layer)) if name in known}
    return frozenset(head | _matching(known, plan.settings.train))


def _sibling_bias(name: str) -> str:
    """``in_proj_bias`` for ``in_proj_weight``."""
    parent, _, leaf = name.rpartition(".")
    return f"{parent}.{leaf.replace('weight', 'bias')}".removeprefix(".")


def _matching(names: Iterable[str], patterns: Iterable[str]) -> set[str]:
    patterns = list(patterns)
    return {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}


def norms_with_statistics(model: nn.Module) -> list[nn.Module]:
    """Modules that hold running statistics."""
    return [module for module in model.modules() if hasattr(module, "running_mean")]


@contextmanager
def frozen(norms: Iterable[nn.Module]) -> Iterator[None]:
    """Statistics stay as they are whatever mode the user's ``model.train()`` set, batch counter included."""
    training = [norm for norm in norms if norm.training]
    for norm in training:
        norm.training = False
    try:
        yield
    finally:
        for norm in training:
            norm.training = True
