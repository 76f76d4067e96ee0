"""Redirecting a forward pass: which weight is drawn, what each drawn layer stores, and the mode that does it.

The user's model is not rewritten. While the engine's forward runs, a torch-function mode hands every operation that
has a lean form to it, so that functional calls, in-place activations and weights used several times are covered.

Held by ``tests/engine/ops/test_ops.py``.
"""

import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils.weak import TensorWeakRef

from trady.engine.ops import Handler, activation, cast_for_autocast, conv, linear, norm, pool
from trady.planner.lean import select_channels

HANDLERS: Final[dict[Any, Handler]] = {
    **activation.HANDLERS,
    **conv.HANDLERS,
    **linear.HANDLERS,
    **norm.HANDLERS,
    **pool.HANDLERS,
}


@dataclass(frozen=True)
class NestedPick:
    """The first channels of the group's draw.

    Args:
        number: How many.
        whole: Whether the whole input is at hand instead of the drawn channels.
    """

    number: int
    whole: bool

    def channels(self, index: Tensor) -> Tensor:
        """Indices of the drawn channels."""
        return index[: self.number]

    def from_stored(self, stored: Tensor, index: Tensor, dim: int) -> Tensor:
        """The layer's channels of what the group stored."""
        if self.whole:
            return select_channels(stored, self.channels(index), dim)
        return stored if stored.shape[dim] == self.number else stored.narrow(dim, 0, self.number)


@dataclass(frozen=True)
class UnionPick:
    """A layer's own channels among those that any member of its group drew.

    Args:
        group: The group, which knows all members' channels.
        whole: Whether the whole input is at hand.
    """

    group: "DrawnGroup"
    whole: bool

    def channels(self, index: Tensor) -> Tensor:
        """Indices of the drawn channels."""
        return index

    def from_stored(self, stored: Tensor, index: Tensor, dim: int) -> Tensor:
        """The layer's channels of what the group stored, in their order in the sorted union."""
        if self.whole:
            return select_channels(stored, index, dim)
        return select_channels(stored, torch.searchsorted(self.group.union(), index), dim)


@dataclass
class DrawnGroup:
    """Drawn layers that read the same tensors.

    Args:
        nested: The longest draw, int32 ``[n]``, of which each member takes the first; ``None`` where the members'
            channels are not nested.
        members: Each member's own channels, int32, where they are not nested.
        kept: For each input of the group, in order of use, whether it is kept whole anyway.
    """

    nested: Tensor | None
    members: dict[str, Tensor]
    kept: tuple[bool, ...]
    _met: list["_Met"] = field(default_factory=list)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles know nothing of the tensors met: a weak reference belongs to one owner."""
        return {**self.__dict__, "_met": []}

    def union(self) -> Tensor:
        """All drawn channels, sorted, int32."""
        drawn: Tensor = torch.cat(list(self.members.values())).unique()
        return drawn

    def forget(self) -> None:
        """Start a new forward pass."""
        self._met.clear()

    def store(self, inputs: Tensor, dim: int) -> tuple[Tensor, bool]:
        """What the group keeps of an input, made once, and whether that is the whole input."""
        if torch.compiler.is_compiling():
            return (inputs, True) if self.kept[:1] == (True,) else (self._select(inputs, dim), False)
        key = _key(inputs, dim)
        known = next((known for known in self._met if known.is_of(key)), None)
        if known is None:
            position = len(self._met)
            whole = position < len(self.kept) and self.kept[position]
            known = _Met(StorageWeakRef(inputs.untyped_storage()), key, whole)
            self._met.append(known)
        if known.whole:
            return inputs, True
        stored = known.stored()
        if stored is None:
            stored = self._select(inputs, dim)
            known.stored = TensorWeakRef(stored)
        return stored, False

    def _select(self, inputs: Tensor, dim: int) -> Tensor:
        with torch.no_grad():
            return select_channels(inputs, self.union() if self.nested is None else self.nested, dim)


@dataclass
class _Met:
    """A tensor met in this forward pass, recognised without keeping it alive, and what was stored of it."""

    storage: StorageWeakRef
    key: tuple[Any, ...]
    whole: bool
    stored: Callable[[], Tensor | None] = lambda: None

    def is_of(self, key: tuple[Any, ...]) -> bool:
        return self.key == key and not self.storage.expired()


def _key(inputs: Tensor, dim: int) -> tuple[Any, ...]:
    """What tells two tensors apart while both live; where channels come last, ``[B, T, C]`` and its rows agree."""
    layout = list(zip(inputs.shape, inputs.stride(), strict=True))
    if dim == inputs.dim() - 1:
        layout = [*_merged(layout[:-1]), layout[-1]]
    return inputs.data_ptr(), tuple(layout), inputs.dtype, inputs._version


def _merged(layout: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sizes and strides with neighbours that lie one behind the other taken as one dimension."""
    merged: list[tuple[int, int]] = []
    for size, stride in layout:
        if merged and merged[-1][1] == size * stride:
            merged[-1] = (merged[-1][0] * size, stride)
        elif size != 1:
            merged.append((size, stride))
    return merged


@dataclass
class DrawnLayer:
    """A layer of which some input channels train.

    Args:
        name: Its name in the plan.
        weight_name: Dotted name of its weight.
        channel_dim: Dimension of the weight that input channels run along.
        number: Drawn channels.
        compact: The slice that trains.
        group: The group it stores its input with.
    """

    name: str
    weight_name: str
    channel_dim: int
    number: int
    compact: nn.Parameter
    group: DrawnGroup


@dataclass(frozen=True)
class Kept:
    """What a drawn layer saves for backward; no tensor where that is its whole input."""

    tensor: Tensor | None
    index: Tensor
    pick: NestedPick | UnionPick


@dataclass
class StorageNotes:
    """Which ledger line each storage that the lean operations keep belongs to.

    Args:
        line_of: Storage -> ``saved_activations``, ``draw_index`` or ``always_trained``.
    """

    line_of: dict[int, str] = field(default_factory=dict)

    def note(self, tensor: Tensor, line: str) -> None:
        """Assign a tensor's storage to a line; a drawn layer's claim gives way to an always-trained one."""
        storage = int(tensor.untyped_storage()._cdata)
        if self.line_of.get(storage) != "always_trained":
            self.line_of[storage] = line


class Redirections:
    """What the operations of one forward pass are redirected to.

    Args:
        layers: The drawn layers and their weights, looked up by name for this pass.
        notes: Where to tell what is stored for what, if anybody asks.
    """

    def __init__(self, layers: Sequence[tuple[DrawnLayer, Tensor]], notes: StorageNotes | None = None) -> None:
        self._by_tensor = {weight: layer for layer, weight in layers}
        self._by_storage: Mapping[int, tuple[DrawnLayer, Tensor]] = {}
        if not torch.compiler.is_compiling():
            self._by_storage = {int(weight.untyped_storage()._cdata): (layer, weight) for layer, weight in layers}
        self._notes = notes
        self._hooks = _saved_tensor_hooks()
        self.used: set[str] = set()
        self.is_checkpointed = False
        for layer, _ in layers:
            layer.group.forget()

    def look_for_checkpointing(self) -> None:
        """Notice a region that will be computed again: without gradients, or under saved-tensor hooks of its own."""
        if not torch.is_grad_enabled() or _saved_tensor_hooks() != self._hooks:
            self.is_checkpointed = True

    def drawn(self, weight: Tensor) -> DrawnLayer | None:
        """The drawn layer a tensor is the whole weight of."""
        layer = self._by_tensor.get(weight)
        if layer is None and self._by_storage and not weight.requires_grad:
            found = self._by_storage.get(int(weight.untyped_storage()._cdata))
            layer = found[0] if found is not None and weight.shape == found[1].shape else None
        return layer

    def drawn_part(self, weight: Tensor) -> tuple[DrawnLayer, Tensor] | None:
        """The drawn layer a matrix is the weight of, or some output rows, and the slice for those rows."""
        layer = self._by_tensor.get(weight)
        if layer is not None:
            return layer, layer.compact
        if not self._by_storage or weight.requires_grad:
            return None
        found = self._by_storage.get(int(weight.untyped_storage()._cdata))
        return None if found is None else _rows_of(found[0], found[1], weight)

    def is_always_trained(self, weight: Tensor) -> bool:
        """Whether a weight trains as a whole."""
        return weight.requires_grad and torch.is_grad_enabled()

    def is_parameter(self, weight: Tensor) -> bool:
        """Whether a tensor is a parameter, or a view of one."""
        if torch.compiler.is_compiling():
            return isinstance(weight, nn.Parameter)
        return isinstance(weight._base if weight._is_view() else weight, nn.Parameter)

    def keep(self, layer: DrawnLayer, inputs: Tensor, dim: int) -> Kept:
        """Store what a drawn layer needs of its input."""
        stored, whole = layer.group.store(inputs, dim)
        channels = None if whole else stored
        if layer.group.nested is None:
            kept = Kept(channels, layer.group.members[layer.name], UnionPick(layer.group, whole))
        else:
            kept = Kept(channels, layer.group.nested, NestedPick(layer.number, whole))
        self.used.add(layer.name)
        if self._notes is not None:
            if not whole:
                self._notes.note(stored, "saved_activations")
            self._notes.note(kept.index, "draw_index")
        return kept

    def keep_for_always_trained(self, inputs: Tensor) -> Tensor:
        """The input of an always-trained weight, copied where it is a small view of something large.

        Autograd would keep the storage it lies on: all tokens for the class token's sake.
        """
        inputs = cast_for_autocast(inputs)
        if torch.compiler.is_compiling():
            return inputs
        if 2 * inputs.numel() * inputs.element_size() <= inputs.untyped_storage().nbytes():
            inputs = inputs.clone()
        if self._notes is not None:
            self._notes.note(inputs, "always_trained")
        return inputs


def _rows_of(layer: DrawnLayer, weight: Tensor, view: Tensor) -> tuple[DrawnLayer, Tensor] | None:
    """The part of a layer's slice that belongs to a view of its weight by output rows; ``None`` for other views."""
    if view.dim() != 2 or weight.dim() != 2 or not weight.is_contiguous():
        return None
    step = weight.shape[1]
    upright = view.stride() == (step, 1)
    if not upright and view.stride() != (1, step):
        return None
    rows, columns = view.shape if upright else view.shape[::-1]
    first_row, first_column = divmod(int(view.storage_offset() - weight.storage_offset()), step)
    if layer.channel_dim == 1 and columns == step and first_column == 0:
        return layer, layer.compact.narrow(0, first_row, rows)
    if layer.channel_dim == 0 and rows == weight.shape[0] and first_row == 0:
        return layer, layer.compact.narrow(1, first_column, columns)
    return None


class LeanMode(TorchFunctionMode):
    """Hands operations to their lean forms while a forward pass records gradients.

    Args:
        redirections: What this pass is redirected to.
    """

    def __init__(self, redirections: Redirections) -> None:
        super().__init__()
        self._redirections = redirections

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Redirect one operation; Python functions of several operations run on under the mode."""
        kwargs = kwargs or {}
        handler = HANDLERS.get(func)
        if handler is not None and not self._redirections.is_checkpointed:
            self._redirections.look_for_checkpointing()
        if not torch.is_grad_enabled():
            return func(*args, **kwargs)
        if handler is not None:
            return handler(self._redirections, func, *args, **kwargs)
        opened = _OPENED.get(func)
        if opened is None:
            return func(*args, **kwargs)
        with self:
            return opened(*args, **kwargs)


def _saved_tensor_hooks() -> Any:
    """The saved-tensor hooks in force, which checkpointing sets; none while a graph is compiled."""
    if torch.compiler.is_compiling():
        return None
    return torch._C._autograd._top_saved_tensors_default_hooks(True)


def _no_torch_function(*_: Any) -> bool:
    return False


def _opened_functions() -> dict[Any, Callable[..., Any]]:
    """Twins of ``torch.nn.functional``'s Python functions that go straight to their bodies.

    Such a function asks for a torch-function mode first and would be handed to it again and again; its twin does
    not ask, so that the operations inside meet the mode one by one.
    """
    scope = {
        **vars(F),
        "has_torch_function": _no_torch_function,
        "has_torch_function_unary": _no_torch_function,
        "has_torch_function_variadic": _no_torch_function,
    }
    opened: dict[Any, Callable[..., Any]] = {}
    for found in vars(F).values():
        if isinstance(found, types.FunctionType) and found.__globals__ is vars(F) and found not in HANDLERS:
            twin = types.FunctionType(found.__code__, scope, found.__name__, found.__defaults__, found.__closure__)
            twin.__kwdefaults__ = found.__kwdefaults__
            opened[found] = twin
    return opened


_OPENED: Final = _opened_functions()
