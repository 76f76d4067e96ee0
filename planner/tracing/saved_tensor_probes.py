"""Which operand's gradient needs which saved tensor, asked of autograd itself.

Held by ``tests/integration/test_saved_bytes.py``.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from trady.planner.models import input_tensors
from trady.planner.tracing.calls import Call, Shape
from trady.planner.tracing.records import Operation


class TriggerProbes:
    """Which operand's gradient needs which saved tensor, found by asking autograd.

    Autograd saves the factor of a product only when the other factor needs a gradient, and most operations
    have a rule of their own. Each operation is run again on fake tensors with one operand at a time needing a
    gradient; what is packed then is what that operand's gradient needs. Answers hold per operation, flags and
    pattern of operands, whatever the shapes, so that one collection serves all recordings of a model.
    """

    def __init__(self) -> None:
        self._calls: dict[Any, Call] = {}
        self._known: dict[Any, dict[str, frozenset[str]] | None] = {}

    def note(self, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any], operation: Operation) -> None:
        """Remember how an operation was called, in case it saves something."""
        if len(_differentiable(operation)) < 2:
            return
        key = _key(operation)
        if key not in self._calls:
            self._calls[key] = Call.of(function, args, kwargs)

    def triggers(self, operation: Operation, saved: Sequence[int]) -> dict[int, frozenset[str]]:
        """For each saved storage, the names of the operands whose gradient needs it."""
        names = _differentiable(operation)
        if len(names) < 2 or not saved:
            return dict.fromkeys(saved, names)
        key = _key(operation)
        if key not in self._known:
            self._known[key] = _probe(self._calls[key], names)
        needs = self._known[key]
        if needs is None:
            return dict.fromkeys(saved, names)
        roles = _roles(operation)
        return {storage: self._who_needs(roles[storage], needs, names) for storage in saved}

    @staticmethod
    def _who_needs(roles: frozenset[str], needs: Mapping[str, frozenset[str]], names: frozenset[str]) -> frozenset[str]:
        found = frozenset(name for name, needed in needs.items() if roles & needed)
        return found or names


def _differentiable(operation: Operation) -> frozenset[str]:
    return frozenset(operand.name for operand in operation.operands if operand.differentiable)


def _key(operation: Operation) -> Any:
    flags = tuple((name, value) for name, value in operation.attributes.items() if isinstance(value, bool))
    operands = tuple((operand.name, operand.differentiable) for operand in operation.operands)
    return operation.target, flags, operands


def _probe(call: Call, names: frozenset[str]) -> dict[str, frozenset[str]] | None:
    """Roles packed when only one operand needs a gradient, by operand; ``None`` where the call cannot be repeated."""
    needs = {}
    for name in sorted(names):
        try:
            needs[name] = _packed_roles(call, name)
        except (RuntimeError, TypeError, ValueError):
            return None
    return needs


def _packed_roles(call: Call, trained: str) -> frozenset[str]:
    roles: dict[int, set[str]] = defaultdict(set)
    alive: list[Any] = []

    def fresh(name: str, shape: Shape) -> Tensor:
        new = shape.new()
        if name == trained and shape.requires_grad:
            new = new.requires_grad_().clone()
        alive.append(new)
        roles[new.untyped_storage()._cdata].add(name)
        return new

    args, kwargs = call.with_tensors(fresh)
    packed: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor)
        return tensor

    with torch.enable_grad(), saved_tensors_hooks(pack, lambda tensor: tensor):
        results = list(input_tensors(call.function(*args, **kwargs)))
    for position, result in enumerate(results):
        roles[result.untyped_storage()._cdata].add(f"output {position}")
    return frozenset(role for tensor in packed for role in roles.get(tensor.untyped_storage()._cdata, ()))


def _roles(operation: Operation) -> dict[int, frozenset[str]]:
    roles: dict[int, set[str]] = defaultdict(set)
    for operand in operation.operands:
        roles[operand.tensor.storage].add(operand.name)
    for position, output in enumerate(operation.outputs):
        roles[output.storage].add(f"output {position}")
    return defaultdict(frozenset, {storage: frozenset(names) for storage, names in roles.items()})
