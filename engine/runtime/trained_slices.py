"""The slices that train: compact copies of the drawn input channels, kept equal to the model's weights.

Held by ``tests/engine/test_engine.py``.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trady.engine.optim import SliceGeometry, SliceMove
from trady.engine.runtime.redirection import DrawnGroup, DrawnLayer, Redirections, StorageNotes
from trady.planner.errors import EngineError
from trady.planner.ledger import CostTable, LayerCosts, Ledger, active_bits
from trady.planner.sampling import ChannelDraw
from trady.planner.units import format_bytes


@dataclass(frozen=True)
class DrawReport:
    """What a draw changed.

    Args:
        epoch: The epoch drawn for.
        entered: Channels that train now and did not before, over all layers.
        left: Channels that trained before and do not now.
        trainable_elements: Elements of the slices.
        ledger: Planned lines and scopes of a step with these channels.
        seconds: How long the draw took, a dense pass for norms included.
        notes: What else happened: optimizer state that restarted, a dense pass.
    """

    epoch: int
    entered: int
    left: int
    trainable_elements: int
    ledger: Ledger
    seconds: float
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        notes = "".join(f"; {note}" for note in self.notes)
        return (
            f"Draw of epoch {self.epoch}: {self.entered} channels in, {self.left} out, "
            f"{self.trainable_elements:,} trainable elements, update {format_bytes(self.ledger.scopes.update)}, "
            f"{self.seconds * 1000:.0f} ms{notes}"
        )


@dataclass
class _Slice:
    """One drawn layer: its costs, channels and slice, and what weight and slice looked like when last equal."""

    costs: LayerCosts
    geometry: SliceGeometry
    channels: Tensor
    layer: DrawnLayer
    weight_seen: tuple[int, int, int] = (0, 0, 0)
    slice_seen: int = 0

    def read(self, weight: Tensor) -> None:
        """Take the channels from the weight; a backward pass under way does not see a change."""
        self.layer.compact.data.copy_(self.geometry.gather(weight, self.channels))
        self._note(weight)

    def write_to(self, weight: Tensor) -> None:
        """Put the channels into the weight."""
        self.geometry.scatter_(weight, self.channels, self.layer.compact.detach())
        self._note(weight)

    def _note(self, weight: Tensor) -> None:
        self.weight_seen, self.slice_seen = _state_of(weight), self.layer.compact._version


def _state_of(tensor: Tensor) -> tuple[int, int, int]:
    """Changes when a tensor is written to, or another one, or other memory, takes its place."""
    return id(tensor), tensor.data_ptr(), tensor._version


def _weight_of(model: nn.Module, costs: LayerCosts) -> nn.Parameter:
    """The weight of a layer, by name: identity breaks under copies and loads.

    Raises:
        EngineError: The weight is sharded.
    """
    weight = model.get_parameter(costs.weight_name)
    if hasattr(weight, "full_tensor"):
        raise EngineError(
            f"Weight {costs.weight_name!r} is drawn from and sharded: no process has the whole of a channel. Leave "
            "such weights whole: fully_shard(model, ignored_params=engine.drawable_weights())."
        )
    return weight


class DrawnSlices:
    """The compact slices of the drawn channels of a model.

    Args:
        table: The plan's cost table.
    """

    def __init__(self, table: CostTable) -> None:
        self._table = table
        self._slices: dict[str, _Slice] = {}

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Slices by the dotted name of the weight they belong to."""
        for found in self._slices.values():
            yield found.costs.weight_name, found.layer.compact

    @property
    def channels(self) -> dict[str, Tensor]:
        """Drawn channels by layer, int32."""
        return {name: found.channels for name, found in self._slices.items()}

    @property
    def num_elements(self) -> int:
        """Elements of all slices."""
        return sum(found.layer.compact.numel() for found in self._slices.values())

    @property
    def bias_names(self) -> tuple[str, ...]:
        """Biases of the drawn layers."""
        return tuple(found.costs.bias_name for found in self._slices.values() if found.costs.bias_name)

    @property
    def index_tensors(self) -> tuple[Tensor, ...]:
        """The draw's index, once for each input group, or member by member where draws are not nested."""
        groups = {id(found.layer.group): found.layer.group for found in self._slices.values()}
        return tuple(
            tensor
            for group in groups.values()
            for tensor in ([group.nested] if group.nested is not None else group.members.values())
        )

    def gather(self, weight_name: str, whole: Tensor) -> Tensor:
        """What a drawn layer's slice is of a tensor of its weight's shape, a dense gradient for instance."""
        found = next(found for found in self._slices.values() if found.costs.weight_name == weight_name)
        return found.geometry.gather(whole, found.channels)

    def apply(self, model: nn.Module, drawn: ChannelDraw) -> list[SliceMove]:
        """Train these channels from now on.

        Slices keep their parameter where its shape stays; what changes is told, so that optimizers can follow.

        Args:
            model: The model the slices are cut from.
            drawn: The channels.

        Returns:
            One move for each layer that was or is drawn.
        """
        self.synchronise(model)
        old, self._slices = self._slices, {}
        groups = self._groups(model, drawn)
        moves = []
        for costs in self._table.layers:
            before = old.get(costs.name)
            if costs.name in drawn.channels:
                weight = _weight_of(model, costs)
                channels = torch.as_tensor(drawn.channels[costs.name], dtype=torch.int32, device=weight.device)
                made = _cut(costs, weight, channels, groups[costs.group], before)
                self._slices[costs.name] = made
                moves.append(_move(costs, before, made))
            elif before is not None:
                moves.append(_move(costs, before, None))
        return moves

    def synchronise(self, model: nn.Module) -> None:
        """Make slices and weights equal: what was changed last, by an optimizer or by the user, goes to the other.

        A weight the user replaced or loaded wins over its slice. Slices are read again even where nothing seems to
        have changed: what is written through ``weight.data`` leaves no trace.
        """
        for found in self._slices.values():
            weight = _weight_of(model, found.costs)
            if _state_of(weight) == found.weight_seen and found.layer.compact._version != found.slice_seen:
                found.write_to(weight)
            else:
                found.read(weight)

    def read_changed(self, model: nn.Module) -> None:
        """Before an optimizer's step: take over weights that were written to since they were last seen."""
        for found in self._slices.values():
            weight = _weight_of(model, found.costs)
            if _state_of(weight) != found.weight_seen:
                found.read(weight)

    def write_back(self, model: nn.Module) -> None:
        """After an optimizer's step: the slices go into the weights, also from optimizers that write to ``.data``."""
        for found in self._slices.values():
            found.write_to(_weight_of(model, found.costs))

    def redirections(self, model: nn.Module, notes: StorageNotes | None) -> Redirections:
        """What a forward pass of the model is redirected to; weights are looked up by name."""
        layers = [(found.layer, _weight_of(model, found.costs)) for found in self._slices.values()]
        return Redirections(layers, notes)

    def channel_norms(self) -> Mapping[str, Tensor]:
        """Gradient norm of each drawn channel, by layer; layers without a gradient are left out."""
        norms = {}
        for name, found in self._slices.items():
            grad = found.layer.compact.grad
            if grad is not None:
                norms[name] = found.geometry.by_channel(grad.detach()).flatten(1).norm(dim=1)
        return norms

    def move_to(self, convert: Callable[[Tensor], Tensor]) -> None:
        """Follow the model to another device or element type."""
        for found in self._slices.values():
            compact = found.layer.compact
            compact.data = convert(compact.data)
            if compact.grad is not None:
                compact.grad.data = convert(compact.grad.data)
            found.channels = found.channels.to(compact.device)
            group = found.layer.group
            group.nested = None if group.nested is None else group.nested.to(compact.device)
            group.members = {name: index.to(compact.device) for name, index in group.members.items()}
            found.weight_seen = (0, 0, 0)

    def _groups(self, model: nn.Module, drawn: ChannelDraw) -> dict[int, DrawnGroup]:
        """Each drawn input group with its index and whether its inputs are kept anyway."""
        active = active_bits(drawn.counts(self._table))
        groups = {}
        for number, members in drawn.by_group(self._table).items():
            first = next(layer for layer in self._table.layers if layer.name in members)
            device = model.get_parameter(first.weight_name).device
            indices = {
                name: torch.as_tensor(channels, dtype=torch.int32, device=device) for name, channels in members.items()
            }
            kept = tuple(
                tensor.kept_by is not None and self._table.upstreams[tensor.kept_by].is_trained(active)
                for tensor in self._table.groups[number].inputs
            )
            longest = max(indices.values(), key=len)
            nested = drawn.is_nested(members)
            groups[number] = DrawnGroup(longest if nested else None, {} if nested else indices, kept)
        return groups


def _cut(costs: LayerCosts, weight: Tensor, channels: Tensor, group: DrawnGroup, before: _Slice | None) -> _Slice:
    """The slice of a layer, in the parameter it had before where the shape is the same."""
    geometry = SliceGeometry.of(costs)
    values = geometry.gather(weight.detach(), channels)
    if before is not None and before.layer.compact.shape == values.shape:
        compact = before.layer.compact
        with torch.no_grad():
            compact.copy_(values)
    else:
        compact = nn.Parameter(values)
    compact.grad = None
    layer = DrawnLayer(costs.name, costs.weight_name, costs.channel_dim, len(channels), compact, group)
    return _Slice(costs, geometry, channels, layer, _state_of(weight), compact._version)


def _move(costs: LayerCosts, before: _Slice | None, after: _Slice | None) -> SliceMove:
    return SliceMove(
        name=costs.weight_name,
        geometry=SliceGeometry.of(costs),
        old_parameter=None if before is None else before.layer.compact,
        old_channels=None if before is None else before.channels,
        new_parameter=None if after is None else after.layer.compact,
        new_channels=None if after is None else after.channels,
    )
