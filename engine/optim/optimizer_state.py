"""The registered optimizers: at each draw their state and their parameter groups follow the slices."""

import itertools
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer
from torch.utils.hooks import RemovableHandle

from trady.engine.optim.carried_state import CarriedState
from trady.engine.optim.slice_geometry import SliceGeometry
from trady.planner.errors import EngineError

ParameterState: TypeAlias = dict[str, Any]
_NAMES_SHOWN: Final = 3
#: Attribute of a gradient: its version when a step used it.
_USED: Final = "_trady_used_version"


@dataclass(frozen=True, eq=False)
class SliceMove:
    """What a draw does to one trained tensor.

    Args:
        name: Its name among the engine's parameters.
        geometry: Where its channels lie; ``None`` for a parameter that trains whole or not at all (a bias).
        old_parameter: The slice until now; ``None`` where the layer had none.
        old_channels: Its channels, in order; unread if it had none or has no geometry.
        new_parameter: The slice from now on, the same object where the count stays; ``None`` where there is none.
        new_channels: Its channels, in order.
    """

    name: str
    geometry: SliceGeometry | None
    old_parameter: nn.Parameter | None
    old_channels: Tensor | NDArray[np.int64] | None
    new_parameter: nn.Parameter | None
    new_channels: Tensor | NDArray[np.int64] | None

    @cached_property
    def old(self) -> list[int]:
        """Channels until now."""
        return _channel_list(self.old_parameter, self.old_channels)

    @cached_property
    def new(self) -> list[int]:
        """Channels from now on."""
        return _channel_list(self.new_parameter, self.new_channels)

    def by_channel(self, values: Tensor) -> Tensor:
        """A view with channels first of a tensor of the slice's shape."""
        return values[None] if self.geometry is None else self.geometry.by_channel(values)


@dataclass(frozen=True)
class _Home:
    """A parameter group of a registered optimizer, both by index."""

    optimizer: int
    group: int


class OptimizerFollower:
    """Moves the state of the registered optimizers at each draw.

    ================================  ================================================================
    state of a slice                  at a draw that changes its channels
    ================================  ================================================================
    tensors of the slice's shape      kept for each channel that stays, zero for one that enters
    the same and a step count         starts anew; with ``carry``, each channel finds its own again
    tensors of other shapes, LBFGS    starts anew, which is noted once
    ================================  ================================================================

    A slice whose channels stay the same keeps all its state. Optimizers are held weakly; a copy or a pickle of a
    follower follows none.

    Args:
        carry: Keep the state of channels that leave, on the CPU (see :class:`CarriedState`).
    """

    def __init__(self, *, carry: bool = False) -> None:
        self._carried = CarriedState() if carry else None
        self._homes: dict[str, _Home | None] = {}
        self._forget_optimizers()

    @property
    def is_registered(self) -> bool:
        """Whether the user said which optimizers there are, or that there is none."""
        return self._told

    def register(self, optimizer: Optimizer | None) -> None:
        """Follow one more optimizer, or with ``None`` no longer any."""
        if optimizer is None:
            self.release()
        elif all(reference() is not optimizer for reference in self._optimizers):
            self._homes = {name: home for name, home in self._homes.items() if home is not None}
            self._optimizers.append(weakref.ref(optimizer))
            self._hooks.append(optimizer.register_step_post_hook(self._remember_gradients))
        self._told = True

    def release(self) -> None:
        """Forget the optimizers and take the hooks off them."""
        for hook in self._hooks:
            hook.remove()
        self._forget_optimizers()

    def check_before_draw(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        """Refuse a draw the optimizers could not follow.

        Args:
            named_parameters: The engine's.

        Raises:
            EngineError: No optimizer was registered, the registered ones hold none of the parameters, or some hold
                gradients that no step has used (a draw between accumulated micro-batches).
        """
        if not self._told:
            raise EngineError(
                "The optimizer of this engine is not known, so its state cannot follow the draw. Call "
                "engine.register(optimizer) once, or engine.register(None) if there is none."
            )
        named = list(named_parameters)
        self.check_held([parameter for _, parameter in named])
        held = self._held()
        self._check_gradients([(name, parameter) for name, parameter in named if id(parameter) in held])

    def check_held(self, parameters: Sequence[nn.Parameter]) -> None:
        """Refuse optimizers that were built from other parameters.

        Raises:
            EngineError: The registered optimizers hold none of these.
        """
        held = self._held()
        if held and parameters and not any(id(parameter) in held for parameter in parameters):
            raise EngineError(
                "The registered optimizer holds none of the engine's slices, so no drawn channel would train. "
                "Build it from engine.parameters(), not from model.parameters()."
            )

    def move(self, moves: Sequence[SliceMove], order: Iterable[nn.Parameter] = ()) -> list[str]:
        """Let state and parameter groups follow a draw, and drop gradients of changed slices.

        A new slice takes the place of the old one of its layer. A layer that had none joins the group it was in
        before, or else the one that holds most slices. Where slices come or go, a group is sorted as ``order``, so
        that ``optimizer.state_dict()`` fits an optimizer built afresh from the engine's parameters. Groups left empty
        stay, and no group changes its index.

        Args:
            moves: One for each slice before or after the draw, in the order of the engine's parameters.
            order: The engine's parameters after the draw, all of them; the moves' order if left out.

        Returns:
            Notes for the log, each once in the life of the follower.
        """
        changed = [move for move in moves if move.old_parameter is not move.new_parameter or move.old != move.new]
        self._find_homes(moves)
        notes = [note for move in changed for note in self._follow(move)]
        slices = [move.new_parameter for move in moves if move.new_parameter is not None]
        self._rearrange(changed, list(order) or slices)
        for move in changed:
            for parameter in (move.old_parameter, move.new_parameter):
                if parameter is not None:
                    parameter.grad = None
        return notes

    def state_dict(self) -> dict[str, Any]:
        """Groups of the slices and carried state: tensors and plain containers, for ``weights_only`` loading."""
        homes = {name: None if home is None else [home.optimizer, home.group] for name, home in self._homes.items()}
        return {"homes": homes, "carried": None if self._carried is None else self._carried.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave, once the slices are those of its draw.

        The optimizers' own ``state_dict`` holds the state of the drawn channels and is loaded by itself.
        """
        self._homes = {name: None if home is None else _Home(*home) for name, home in state["homes"].items()}
        if self._carried is not None:
            self._carried = CarriedState()
            if state["carried"] is not None:
                self._carried.load_state_dict(state["carried"])

    def __getstate__(self) -> dict[str, Any]:
        unlinked = {"_optimizers": [], "_hooks": [], "_told": False, "_said": set()}
        return self.__dict__ | unlinked

    def _forget_optimizers(self) -> None:
        self._told = False
        self._optimizers: list[weakref.ref[Optimizer]] = []
        self._hooks: list[RemovableHandle] = []
        self._said: set[str] = set()
        self._homes.clear()

    def _groups(self) -> Iterator[tuple[_Home, dict[str, Any]]]:
        for place, reference in enumerate(self._optimizers):
            optimizer = reference()
            for index, group in enumerate([] if optimizer is None else optimizer.param_groups):
                yield _Home(place, index), group

    def _held(self) -> set[int]:
        """Identities of the parameters of all registered optimizers."""
        return {id(parameter) for _, group in self._groups() for parameter in group["params"]}

    def _remember_gradients(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """After a step: mark the gradients it has used, with their version; a new gradient carries no mark."""
        parameters = itertools.chain.from_iterable(group["params"] for group in optimizer.param_groups)
        for parameter in parameters:
            if parameter.grad is not None:
                setattr(parameter.grad, _USED, parameter.grad._version)

    def _check_gradients(self, named: Sequence[tuple[str, nn.Parameter]]) -> None:
        waiting = {
            name: parameter.grad
            for name, parameter in named
            if parameter.grad is not None
            and getattr(parameter.grad, _USED, None) != parameter.grad._version
            and bool(parameter.grad.any())
        }
        # A step that a GradScaler skipped for an overflow has used its gradients up.
        if waiting and all(bool(gradient.isfinite().all()) for gradient in waiting.values()):
            shown = ", ".join(repr(name) for name in list(waiting)[:_NAMES_SHOWN])
            raise EngineError(
                f"A draw between accumulated micro-batches would lose the gradients of {len(waiting)} parameters "
                f"({shown}{', ...' if len(waiting) > _NAMES_SHOWN else ''}), which no step has used. Call "
                "optimizer.step() before the draw, or optimizer.zero_grad() to drop them."
            )

    def _find_homes(self, moves: Sequence[SliceMove]) -> None:
        """The group of each slice: where it is, where it was, or where most others are."""
        located = {id(parameter): home for home, group in self._groups() for parameter in group["params"]}
        known = {home for home, _ in self._groups()}
        if not known:
            return
        for move in moves:
            if move.old_parameter is not None:
                self._homes[move.name] = located.get(id(move.old_parameter))
        counted = Counter(home for home in self._homes.values() if home in known)
        usual = counted.most_common(1)[0][0] if counted else None
        for move in moves:
            home = self._homes.setdefault(move.name, usual)
            if home is not None and home not in known:
                self._homes[move.name] = usual

    def _follow(self, move: SliceMove) -> Iterator[str]:
        """Move the state of one changed slice."""
        home = self._homes.get(move.name)
        optimizer = None if home is None else self._optimizers[home.optimizer]()
        if home is None or optimizer is None:
            return
        if isinstance(optimizer, LBFGS):
            optimizer.state.clear()
            optimizer._numel_cache = None
            yield from self._say_restart(optimizer, "is one vector over all parameters")
            return
        old = {} if move.old_parameter is None else optimizer.state.pop(move.old_parameter, {})
        obstacle = "" if move.old == move.new else _obstacle(old, move, self._carried is not None)
        if obstacle:
            yield from self._say_restart(optimizer, obstacle)
        new = {} if obstacle else self._state_after(old, move, optimizer.param_groups[home.group])
        if new and move.new_parameter is not None:
            optimizer.state[move.new_parameter] = new

    def _say_restart(self, optimizer: Optimizer, reason: str) -> Iterator[str]:
        name = type(optimizer).__name__
        if name not in self._said:
            self._said.add(name)
            yield f"{name}: the state of a slice starts anew at each draw that changes its channels, as it {reason}."

    def _state_after(self, old: ParameterState, move: SliceMove, group: Mapping[str, Any]) -> ParameterState:
        if move.old == move.new:
            return old
        if self._carried is not None:
            return _carried_over(self._carried, old, move, group)
        if "step" in old and set(move.old) != set(move.new):
            return {}
        return _kept_per_channel(old, move)

    def _rearrange(self, changed: Sequence[SliceMove], order: Sequence[nn.Parameter]) -> None:
        """Put new parameters into the groups and take the old ones out."""
        successors = {id(move.old_parameter): move for move in changed if move.old_parameter is not None}
        arrivals = [move for move in changed if move.old_parameter is None]
        for home, group in self._groups():
            names = group.get("param_names") or [""] * len(group["params"])
            old = list(zip(group["params"], names, strict=True))
            moved = [(_successor(parameter, successors), name) for parameter, name in old]
            moved += [(move.new_parameter, move.name) for move in arrivals if self._homes[move.name] == home]
            found = [(parameter, name) for parameter, name in moved if parameter is not None]
            if len(found) != len(old) or len(moved) != len(old):
                found = _sorted_as(order, moved)
            group["params"][:] = [parameter for parameter, _ in found]
            if "param_names" in group:
                group["param_names"][:] = [name for _, name in found]


def _channel_list(parameter: nn.Parameter | None, channels: Tensor | NDArray[np.int64] | None) -> list[int]:
    """Channels of a slice; a parameter without channels counts as one."""
    if parameter is None:
        return []
    return [0] if channels is None else channels.tolist()


def _successor(parameter: nn.Parameter, successors: Mapping[int, SliceMove]) -> nn.Parameter | None:
    move = successors.get(id(parameter))
    return parameter if move is None else move.new_parameter


def _sorted_as(
    order: Sequence[nn.Parameter], moved: Sequence[tuple[nn.Parameter | None, str]]
) -> list[tuple[nn.Parameter, str]]:
    """Sort what ``order`` knows, from the place of the first that it knows or that is gone; the others keep theirs."""
    ranks = {id(parameter): rank for rank, parameter in enumerate(order)}
    strangers = [parameter is not None and id(parameter) not in ranks for parameter, _ in moved]
    first = strangers.index(False) if False in strangers else len(moved)
    found = [(parameter, name) for parameter, name in moved[first:] if parameter is not None]
    found.sort(key=lambda pair: ranks.get(id(pair[0]), len(ranks)))
    return [(parameter, name) for parameter, name in moved[:first] if parameter is not None] + found


def _obstacle(state: ParameterState, move: SliceMove, carry: bool) -> str:
    """Why the state of a slice cannot follow its channels; empty if it can, or has only to start anew."""
    shape = None if move.old_parameter is None else move.old_parameter.shape
    for name, entry in state.items():
        if isinstance(entry, Tensor) and entry.shape == shape:
            continue
        if isinstance(entry, (Tensor, list, tuple, dict)) and not _is_number(entry):
            return f"is not elementwise ({name!r})"
        if carry and name != "step" and isinstance(entry, Tensor):
            return f"has one {name!r} for all channels of a slice"
    return ""


def _is_number(entry: Any) -> bool:
    return isinstance(entry, Tensor) and entry.dim() == 0


def _elementwise(state: ParameterState) -> dict[str, Tensor]:
    return {name: entry for name, entry in state.items() if isinstance(entry, Tensor) and not _is_number(entry)}


def _kept_per_channel(old: ParameterState, move: SliceMove) -> ParameterState:
    """State with each channel's part at its new place and zeros for channels that enter."""
    places = {channel: place for place, channel in enumerate(move.old)}
    stays = [(places[channel], place) for place, channel in enumerate(move.new) if channel in places]
    if not stays or move.new_parameter is None:
        return {}
    sources, targets = torch.tensor(stays, device=move.new_parameter.device).unbind(1)
    new = dict(old)
    for name, entry in _elementwise(old).items():
        moved = torch.zeros_like(move.new_parameter, dtype=entry.dtype)
        move.by_channel(moved).index_copy_(0, targets, move.by_channel(entry).index_select(0, sources))
        new[name] = entry.copy_(moved) if move.new_parameter is move.old_parameter else moved
    return new


def _carried_over(
    carried: CarriedState, old: ParameterState, move: SliceMove, group: Mapping[str, Any]
) -> ParameterState:
    """Put the old channels' state away and find that of the new ones."""
    if old and move.old_parameter is not None:
        rows = {name: move.by_channel(entry) for name, entry in _elementwise(old).items()}
        carried.put(move.name, move.old, rows, _count(old.get("step")))
    found = carried.take(move.name, move.new, group)
    if found is None or move.new_parameter is None:
        return {}
    new = {name: entry for name, entry in old.items() if not isinstance(entry, Tensor)}
    for name, values in found.entries.items():
        entry = torch.zeros_like(move.new_parameter, dtype=values.dtype)
        move.by_channel(entry).copy_(values)
        new[name] = entry
    if found.step is not None:
        new["step"] = _step_like_torch(found.step, move.new_parameter, group)
    return new


def _count(step: Any) -> float | None:
    return step.item() if isinstance(step, Tensor) else step


def _step_like_torch(step: float, parameter: nn.Parameter, group: Mapping[str, Any]) -> float | Tensor:
    """A step count as ``torch.optim`` makes it; a Python integer stays one."""
    if isinstance(step, int):
        return step
    fused, capturable = group.get("fused"), group.get("capturable")
    double = torch.get_default_dtype() == torch.float64 and not fused
    device = parameter.device if fused or capturable else "cpu"
    return torch.tensor(step, dtype=torch.float64 if double else torch.float32, device=device)
