"""Which operand's gradient needs which saved tensor, asked of autograd itself."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from trady.planner.records import Operation
from trady.planner.training_step import input_tensors, map_tensors


class TriggerProbes:
    """Which operand's gradient needs which saved tensor, found by asking autograd.

    Autograd saves the factor of a product only when the other factor needs a gradient, and most operations
    have a rule of their own. Each operation is run again on fake tensors with one operand at a time needing a
    gradient; what is packed then is what that operand's gradient needs. Answers hold per operation and
    pattern of arguments, whatever the shapes.
    """

    def __init__(self) -> None:
        self._known: dict[Any, dict[str, frozenset[str]] | None] = {}

    def triggers(
        self, func: Any, arguments: tuple[Sequence[Any], Mapping[str, Any]], operation: Operation, saved: Sequence[int]
    ) -> dict[int, frozenset[str]]:
        """For each saved storage, the names of the operands whose gradient needs it."""
        names = frozenset(operand.name for operand in operation.operands if operand.differentiable)
        if len(names) < 2 or not saved:
            return dict.fromkeys(saved, names)
        key = (func, tuple((operand.name, operand.differentiable) for operand in operation.operands))
        if key not in self._known:
            self._known[key] = _probe(func, arguments, names)
        needs = self._known[key]
        if needs is None:
            return dict.fromkeys(saved, names)
        roles = _roles(operation)
        return {storage: self._who_needs(roles[storage], needs, names) for storage in saved}

    @staticmethod
    def _who_needs(roles: frozenset[str], needs: Mapping[str, frozenset[str]], names: frozenset[str]) -> frozenset[str]:
        found = frozenset(name for name, needed in needs.items() if roles & needed)
        return found or names


def _probe(
    func: Any, arguments: tuple[Sequence[Any], Mapping[str, Any]], names: frozenset[str]
) -> dict[str, frozenset[str]] | None:
    """Roles packed when only one operand needs a gradient, by operand; ``None`` where the call cannot be repeated."""
    needs = {}
    for name in sorted(names):
        try:
            needs[name] = _packed_roles(func, arguments, name)
        except (RuntimeError, TypeError, ValueError):
            return None
    return needs


def _packed_roles(func: Any, arguments: tuple[Sequence[Any], Mapping[str, Any]], trained: str) -> frozenset[str]:
    args, kwargs = arguments
    schema = func._schema.arguments
    roles: dict[int, set[str]] = defaultdict(set)
    alive: list[Any] = []

    def fresh(name: str, value: Any) -> Any:
        def one(tensor: Tensor) -> Tensor:
            new = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
            if name == trained and tensor.requires_grad:
                new = new.requires_grad_().clone()
            alive.append(new)
            roles[new.untyped_storage()._cdata].add(name)
            return new

        return map_tensors(one, value) if any(True for _ in input_tensors(value)) else value

    new_args = [fresh(argument.name, value) for argument, value in zip(schema, args, strict=False)]
    new_kwargs = {name: fresh(name, value) for name, value in kwargs.items()}
    packed: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor)
        return tensor

    with torch.enable_grad(), saved_tensors_hooks(pack, lambda tensor: tensor):
        results = list(input_tensors(func(*new_args, **new_kwargs)))
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
