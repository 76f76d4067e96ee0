"""Optimizers that follow draws, against dense references and PyTorch's own optimizers."""

import copy
import gc
import io
import pickle
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer

from trady.engine.optim.optimizer_state import OptimizerFollower, SliceMove
from trady.engine.optim.slice_geometry import SliceGeometry
from trady.planner.errors import EngineError
from trady.planner.ledger.cost_records import LayerKind

LINEAR = SliceGeometry(LayerKind.LINEAR, 1, 6, 3, 1)
GEOMETRIES = {
    "linear": (LINEAR, (3, 6)),
    "conv": (SliceGeometry(LayerKind.CONV, 1, 6, 4, 1), (4, 6, 3, 3)),
    "depthwise": (SliceGeometry(LayerKind.DEPTHWISE_CONV, 1, 6, 12, 6), (12, 1, 3, 3)),
    "grouped": (SliceGeometry(LayerKind.GROUPED_CONV, 1, 6, 4, 2), (4, 3, 2)),
    "transposed": (SliceGeometry(LayerKind.TRANSPOSED_CONV, 0, 6, 4, 2), (6, 2, 3)),
}
#: Draws of six channels: reordered, overlapping, disjoint, growing, gone, back.
FIXED = ([0, 1, 2], [2, 0, 4], [4, 0, 2], [1, 3, 5], [1, 3, 0])
VARYING: tuple[list[int], ...] = ([0, 1, 2], [2, 0, 4, 5], [5], [], [], [5, 1], [1, 5])

Make = Callable[[Any], Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "SGD": lambda p: SGD(p, 0.1),
    "SGD momentum": lambda p: SGD(p, 0.1, momentum=0.9),
    "SGD nesterov foreach": lambda p: SGD(p, 0.1, momentum=0.9, nesterov=True, foreach=True),
    "SGD fused": lambda p: SGD(p, 0.1, momentum=0.9, fused=True),
    "Adam": lambda p: Adam(p, 0.1),
    "Adam amsgrad foreach": lambda p: Adam(p, 0.1, amsgrad=True, foreach=True),
    "AdamW fused": lambda p: AdamW(p, 0.1, fused=True),
    "Adagrad": lambda p: Adagrad(p, 0.1, initial_accumulator_value=0.5, lr_decay=0.1),
    "Adagrad fused": lambda p: Adagrad(p, 0.1, fused=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.1, momentum=0.9, centered=True),
    "Adadelta": lambda p: torch.optim.Adadelta(p),
    "NAdam": lambda p: torch.optim.NAdam(p, 0.1),
    "RAdam": lambda p: torch.optim.RAdam(p, 0.1),
    "Adamax": lambda p: torch.optim.Adamax(p, 0.1),
    "ASGD": lambda p: torch.optim.ASGD(p, 0.1, t0=1),
    "Rprop": lambda p: torch.optim.Rprop(p, 0.1),
    "Adafactor": lambda p: torch.optim.Adafactor(p, 0.1),
    "LBFGS": lambda p: torch.optim.LBFGS(p, 0.1, max_iter=2),
}


def no_loss() -> Any:
    """A closure as users write it: it gives a tensor, where PyTorch's types ask for a float."""
    return torch.zeros(())


class Trained:
    """Layers whose slices train on made-up gradients and are written back after each step, as the engine does."""

    def __init__(self, **layers: tuple[SliceGeometry, tuple[int, ...]]) -> None:
        self.geometries = {name: geometry for name, (geometry, _) in layers.items()}
        self.weights = {name: torch.randn(shape, dtype=torch.float64) for name, (_, shape) in layers.items()}
        self.slices: dict[str, nn.Parameter] = {}
        self.channels: dict[str, Tensor] = {}

    def draw(self, *, keep_objects: bool = True, **channels: Sequence[int]) -> list[SliceMove]:
        """Make the slices of a draw; where the count stays the parameter does too."""
        moves = []
        for name, geometry in self.geometries.items():
            old, old_channels = self.slices.pop(name, None), self.channels.pop(name, None)
            new = new_channels = None
            if len(channels.get(name, ())):
                new_channels = torch.tensor(channels[name], dtype=torch.int32)
                new = nn.Parameter(geometry.gather(self.weights[name], new_channels))
                if keep_objects and old is not None and old.shape == new.shape:
                    old.data.copy_(new)
                    new = old
                self.slices[name], self.channels[name] = new, new_channels
            if old is not None or new is not None:
                moves.append(SliceMove(name, geometry, old, old_channels, new, new_channels))
        return moves

    def parameters(self) -> list[nn.Parameter]:
        return list(self.slices.values())

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return iter(self.slices.items())

    def step(self, optimizer: Optimizer, gradients: dict[str, Tensor]) -> None:
        for name, parameter in self.slices.items():
            parameter.grad = self.geometries[name].gather(gradients[name], self.channels[name])
        optimizer.step(no_loss)
        optimizer.zero_grad()
        for name, parameter in self.slices.items():
            self.geometries[name].scatter_(self.weights[name], self.channels[name], parameter.detach())

    def random_gradients(self) -> dict[str, Tensor]:
        return {name: torch.randn_like(weight) for name, weight in self.weights.items()}


def draw_and_follow(trained: Trained, follower: OptimizerFollower, **draw: Any) -> list[str]:
    follower.check_before_draw(trained.named_parameters())
    return follower.move(trained.draw(**draw))


def start(make: Make, channels: Sequence[int], *, carry: bool = False) -> tuple[Trained, Optimizer, OptimizerFollower]:
    trained, follower = Trained(layer=GEOMETRIES["linear"]), OptimizerFollower(carry=carry)
    trained.draw(layer=channels)
    optimizer = make(trained.parameters())
    follower.register(optimizer)
    return trained, optimizer, follower


def elements_of_drawn(geometry: SliceGeometry, weight: Tensor, channels: Sequence[int]) -> Tensor:
    """Mask of a weight's elements that belong to some channels."""
    mask = torch.zeros_like(weight)
    drawn = torch.tensor(channels, dtype=torch.int64)
    geometry.scatter_(mask, drawn, torch.ones_like(geometry.gather(mask, drawn)))
    return mask.bool()


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("draws", [FIXED, VARYING], ids=["fixed", "varying"])
@pytest.mark.parametrize("kind", GEOMETRIES)
def test_momentum_is_that_of_a_dense_buffer_cleared_where_channels_leave(
    kind: str, draws: Sequence[Sequence[int]], nesterov: bool
) -> None:
    trained, follower = Trained(layer=GEOMETRIES[kind], other=GEOMETRIES["linear"]), OptimizerFollower()
    trained.draw(layer=draws[0], other=[0])
    optimizer = SGD(trained.parameters(), 0.1, momentum=0.9, nesterov=nesterov)
    follower.register(optimizer)
    geometry, weight = trained.geometries["layer"], trained.weights["layer"].clone()
    buffer = torch.zeros_like(weight)
    for drawn in draws:
        assert draw_and_follow(trained, follower, layer=drawn, other=[0]) == []
        mask = elements_of_drawn(geometry, weight, drawn)
        buffer[~mask] = 0
        for _ in range(3):
            gradients = trained.random_gradients()
            trained.step(optimizer, gradients)
            gradient = gradients["layer"] * mask
            buffer = 0.9 * buffer + gradient
            weight -= 0.1 * (gradient + 0.9 * buffer if nesterov else buffer)
        torch.testing.assert_close(trained.weights["layer"], weight)


@pytest.mark.parametrize("carry", [False, True])
@pytest.mark.parametrize("draws", [FIXED, VARYING], ids=["fixed", "varying"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_on_and_keeps_only_what_is_drawn(
    name: str, draws: Sequence[Sequence[int]], carry: bool
) -> None:
    trained, optimizer, follower = start(OPTIMIZERS[name], draws[0], carry=carry)
    for drawn in draws:
        draw_and_follow(trained, follower, layer=drawn)
        assert optimizer.param_groups[0]["params"] == trained.parameters()
        before = trained.weights["layer"].clone()
        for _ in range(3):
            trained.step(optimizer, trained.random_gradients())
        mask = elements_of_drawn(LINEAR, before, drawn)
        assert torch.equal(trained.weights["layer"] != before, mask)
        assert trained.weights["layer"].isfinite().all()
        assert set(optimizer.state) <= set(trained.parameters())


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if not name.startswith("SGD")])
def test_a_restarted_slice_trains_like_a_fresh_optimizer(name: str) -> None:
    """The judge is an optimizer made at the draw."""
    trained, optimizer, follower = start(OPTIMIZERS[name], [0, 1, 2])
    trained.step(optimizer, trained.random_gradients())
    draw_and_follow(trained, follower, layer=[2, 3, 4])
    twin = copy.deepcopy(trained)
    fresh = OPTIMIZERS[name](twin.parameters())
    for _ in range(4):
        gradients = trained.random_gradients()
        trained.step(optimizer, gradients)
        twin.step(fresh, gradients)
    torch.testing.assert_close(trained.weights, twin.weights, rtol=0, atol=0)


@pytest.mark.parametrize("carry", [False, True])
@pytest.mark.parametrize("keep_objects", [True, False], ids=["same parameter", "new parameter"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_draw_of_the_same_channels_changes_nothing(name: str, keep_objects: bool, carry: bool) -> None:
    """Static strategies: bit for bit the run without draws."""
    trained, optimizer, follower = start(OPTIMIZERS[name], [3, 1], carry=carry)
    twin = copy.deepcopy(trained)
    undisturbed = OPTIMIZERS[name](twin.parameters())
    for _ in range(4):
        gradients = trained.random_gradients()
        trained.step(optimizer, gradients)
        twin.step(undisturbed, gradients)
        if name != "LBFGS" or keep_objects:
            assert draw_and_follow(trained, follower, layer=[3, 1], keep_objects=keep_objects) == []
    torch.testing.assert_close(trained.weights, twin.weights, rtol=0, atol=0)


def test_a_fixed_count_keeps_the_tensors_of_the_state() -> None:
    """What a compiled or captured step has seen stays where it is."""
    trained, optimizer, follower = start(OPTIMIZERS["SGD momentum"], [0, 1])
    trained.step(optimizer, trained.random_gradients())
    buffer = optimizer.state[trained.slices["layer"]]["momentum_buffer"]
    draw_and_follow(trained, follower, layer=[1, 2])
    assert optimizer.state[trained.slices["layer"]]["momentum_buffer"] is buffer


@pytest.mark.parametrize("carry", [False, True])
@pytest.mark.parametrize("name", ["SGD momentum", "Adam", "Adafactor"])
def test_nothing_of_the_old_slice_remains(name: str, carry: bool) -> None:
    before = {id(found) for found in tensors_alive()}
    trained, optimizer, follower = start(OPTIMIZERS[name], [0, 1, 2, 3, 4], carry=carry)
    trained.step(optimizer, trained.random_gradients())
    draw_and_follow(trained, follower, layer=[4, 5])
    gc.collect()
    assert all(found.shape != (3, 5) for found in tensors_alive() if id(found) not in before)


def tensors_alive() -> list[Tensor]:
    return [found for found in gc.get_objects() if issubclass(type(found), Tensor)]


def test_gradients_of_left_channels_are_dropped() -> None:
    trained, optimizer, follower = start(OPTIMIZERS["SGD"], [0, 1])
    trained.slices["layer"].grad = torch.ones(3, 2, dtype=torch.float64)
    optimizer.step()
    draw_and_follow(trained, follower, layer=[1, 2])
    assert trained.slices["layer"].grad is None


# Carrying


class OneOptimizerPerChannel:
    """The exact reference: each channel has an optimizer of its own, which steps when the channel is drawn."""

    def __init__(self, make: Make, weight: Tensor) -> None:
        self.columns = [nn.Parameter(column.clone()) for column in weight.unbind(1)]
        self.optimizers = [make([column]) for column in self.columns]

    def step(self, channels: Sequence[int], gradient: Tensor) -> None:
        for channel in channels:
            self.columns[channel].grad = gradient[:, channel].clone()
            self.optimizers[channel].step()

    @property
    def weight(self) -> Tensor:
        return torch.stack([column.detach() for column in self.columns], 1)


CARRIED = ["SGD momentum", "Adam", "Adam amsgrad foreach", "AdamW fused", "Adagrad", "Adagrad fused"]
CARRIED += ["RMSprop", "Adadelta", "RAdam", "Adamax", "Rprop"]


@pytest.mark.parametrize("name", CARRIED)
def test_carried_channels_go_on_as_if_they_had_never_left(name: str) -> None:
    trained, optimizer, follower = start(OPTIMIZERS[name], [0, 1, 2], carry=True)
    reference = OneOptimizerPerChannel(OPTIMIZERS[name], trained.weights["layer"])
    for drawn in ([0, 1, 2], [3, 4, 5], [2, 0, 1], [3, 4, 5], [4, 5], [3], [0, 3, 5, 1], [2, 4]):
        draw_and_follow(trained, follower, layer=drawn)
        for _ in range(2):
            gradients = trained.random_gradients()
            trained.step(optimizer, gradients)
            reference.step(drawn, gradients["layer"])
        if drawn == [0, 3, 5, 1]:
            break  # from here the channels' counts differ
        torch.testing.assert_close(trained.weights["layer"], reference.weight)


def corrected_averages(state: dict[str, Any], group: dict[str, Any]) -> list[Tensor]:
    """Adam's bias-corrected averages."""
    averages = (state["exp_avg"], state["exp_avg_sq"])
    return [
        average / (1 - beta ** float(state["step"])) for average, beta in zip(averages, group["betas"], strict=True)
    ]


@pytest.mark.parametrize("steps", [3, 40])
def test_corrected_averages_survive_a_change_of_the_step_count(steps: int) -> None:
    trained, optimizer, follower = start(OPTIMIZERS["Adam"], [0, 1], carry=True)
    for _ in range(steps):
        trained.step(optimizer, trained.random_gradients())
    group = optimizer.param_groups[0]
    before = corrected_averages(optimizer.state[trained.slices["layer"]], group)
    draw_and_follow(trained, follower, layer=[1, 5, 0])
    state = optimizer.state[trained.slices["layer"]]
    assert float(state["step"]) == min(steps, 10)
    for old, new in zip(before, corrected_averages(state, group), strict=True):
        torch.testing.assert_close(new[:, [2, 0]], old)
        assert not new[:, 1].any()


@pytest.mark.parametrize("known_steps", [1, 5, 10, 50, 500])
def test_a_fresh_channel_among_carried_ones_moves_like_a_fresh_adam(known_steps: int) -> None:
    """Between half and 1.13 times as far at each step, however long the others have trained."""
    trained, optimizer, follower = start(lambda p: Adam(p, 0.1, eps=0), [0], carry=True)
    ones = {"layer": torch.ones(3, 6, dtype=torch.float64)}
    for _ in range(known_steps):
        trained.step(optimizer, ones)
    draw_and_follow(trained, follower, layer=[0, 1])
    for _ in range(60):
        before = trained.weights["layer"].clone()
        trained.step(optimizer, ones)
        moved = (before - trained.weights["layer"])[:, 1] / 0.1
        assert moved.min() >= 0.48
        assert moved.max() <= 1.13


def test_a_fresh_channel_counts_its_own_steps() -> None:
    """Once it is drawn again its averages are corrected for what it has seen."""
    trained, optimizer, follower = start(OPTIMIZERS["Adam"], [0], carry=True)
    reference = Adam([own := nn.Parameter(torch.zeros(3, dtype=torch.float64))])
    for drawn, steps in (([0], 7), ([0, 1], 4), ([0], 1), ([1], 0)):
        draw_and_follow(trained, follower, layer=drawn)
        for _ in range(steps):
            gradients = trained.random_gradients()
            trained.step(optimizer, gradients)
            if 1 in drawn:
                own.grad = gradients["layer"][:, 1]
                reference.step()
    state, group = optimizer.state[trained.slices["layer"]], optimizer.param_groups[0]
    assert float(state["step"]) == 4
    for found, expected in zip(
        corrected_averages(state, group), corrected_averages(reference.state[own], group), strict=True
    ):
        torch.testing.assert_close(found[:, 0], expected)


def test_a_carried_run_goes_on_from_a_checkpoint() -> None:
    draws = ([0, 1, 2], [2, 3], [4, 0, 1], [5, 2], [3, 4, 5], [0, 2, 3])
    trained, optimizer, follower = start(OPTIMIZERS["AdamW fused"], draws[0], carry=True)
    gradients = [trained.random_gradients() for _ in draws]
    for drawn, gradient in zip(draws[:3], gradients[:3], strict=True):
        draw_and_follow(trained, follower, layer=drawn)
        trained.step(optimizer, gradient)
    file = io.BytesIO()
    torch.save({"weights": trained.weights, "optimizer": optimizer.state_dict(), "draw": follower.state_dict()}, file)
    file.seek(0)
    checkpoint = torch.load(file, weights_only=True)

    resumed, other, other_follower = start(OPTIMIZERS["AdamW fused"], draws[0], carry=True)
    resumed.weights = checkpoint["weights"]
    draw_and_follow(resumed, other_follower, layer=draws[2])
    other_follower.load_state_dict(checkpoint["draw"])
    other.load_state_dict(checkpoint["optimizer"])
    for drawn, gradient in zip(draws[3:], gradients[3:], strict=True):
        for run, its_optimizer, its_follower in ((trained, optimizer, follower), (resumed, other, other_follower)):
            draw_and_follow(run, its_follower, layer=drawn)
            run.step(its_optimizer, gradient)
        torch.testing.assert_close(resumed.weights, trained.weights, rtol=0, atol=0)


def test_carried_state_of_an_optimizer_that_counts_in_python() -> None:
    class CountsInPython(SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for parameter in self.param_groups[0]["params"]:
                state = self.state[parameter]
                state["step"] = state.get("step", 0) + 1
                state["exp_avg"] = state.get("exp_avg", 0) + parameter.grad

    trained, optimizer, follower = start(lambda p: CountsInPython(p, 0.1), [0, 1], carry=True)
    trained.step(optimizer, {"layer": torch.ones(3, 6, dtype=torch.float64)})
    draw_and_follow(trained, follower, layer=[2])
    assert not optimizer.state
    draw_and_follow(trained, follower, layer=[1])
    state = optimizer.state[trained.slices["layer"]]
    assert state["step"] == 1 and isinstance(state["step"], int)
    assert torch.equal(state["exp_avg"], torch.ones(3, 1, dtype=torch.float64))


# Notes


@pytest.mark.parametrize(
    ("name", "carry", "reason"),
    [
        ("Adafactor", False, "is not elementwise"),
        ("LBFGS", False, "is one vector over all parameters"),
        ("NAdam", True, "has one 'mu_product' for all channels"),
        ("ASGD", True, "has one '(eta|mu)' for all channels"),
    ],
)
def test_a_state_that_cannot_follow_restarts_and_says_so_once(name: str, carry: bool, reason: str) -> None:
    trained, optimizer, follower = start(OPTIMIZERS[name], [0, 1], carry=carry)
    trained.step(optimizer, trained.random_gradients())
    (note,) = draw_and_follow(trained, follower, layer=[1, 2])
    with pytest.raises(ValueError, match=f"{name}: the state of a slice starts anew .* {reason}"):
        raise ValueError(note)
    assert not optimizer.state
    trained.step(optimizer, trained.random_gradients())
    assert draw_and_follow(trained, follower, layer=[2, 3]) == []


@pytest.mark.parametrize("name", ["SGD momentum", "Adam", "NAdam", "ASGD", "Adagrad"])
def test_what_is_documented_is_not_noted(name: str) -> None:
    trained, optimizer, follower = start(OPTIMIZERS[name], [0, 1])
    trained.step(optimizer, trained.random_gradients())
    assert draw_and_follow(trained, follower, layer=[1, 2]) == []


def test_muon_keeps_momentum() -> None:
    trained, optimizer, follower = start(lambda p: torch.optim.Muon(p, 0.1), [0, 1])
    trained.step(optimizer, trained.random_gradients())
    buffer = optimizer.state[trained.slices["layer"]]["momentum_buffer"].clone()
    draw_and_follow(trained, follower, layer=[5, 1])
    moved = optimizer.state[trained.slices["layer"]]["momentum_buffer"]
    assert torch.equal(moved[:, 1], buffer[:, 1])
    assert not moved[:, 0].any()


# Groups


def three_layers() -> tuple[Trained, OptimizerFollower]:
    trained = Trained(**dict.fromkeys("abc", GEOMETRIES["linear"]))
    trained.draw(a=[0], b=[1, 2], c=[3])
    return trained, OptimizerFollower()


def names_by_group(trained: Trained, optimizer: Optimizer) -> list[list[str]]:
    names = {id(parameter): name for name, parameter in trained.slices.items()}
    return [[names.get(id(parameter), "?") for parameter in group["params"]] for group in optimizer.param_groups]


def test_slices_come_back_to_their_group() -> None:
    trained, follower = three_layers()
    slices = trained.slices
    head = nn.Parameter(torch.zeros(2))
    groups: list[dict[str, Any]] = [{"params": [slices["c"]], "lr": 1.0}, {"params": [slices["a"], slices["b"], head]}]
    optimizer = SGD(groups, 0.1, momentum=0.9)
    follower.register(optimizer)
    head.grad = torch.ones(2)
    trained.step(optimizer, trained.random_gradients())
    state = optimizer.state[head]
    draw_and_follow(trained, follower, a=[1, 2])
    assert names_by_group(trained, optimizer) == [[], ["a", "?"]]
    draw_and_follow(trained, follower, b=[0], c=[1, 2, 3])
    assert names_by_group(trained, optimizer) == [["c"], ["b", "?"]]
    draw_and_follow(trained, follower, a=[0], b=[0], c=[1])
    assert names_by_group(trained, optimizer) == [["c"], ["a", "b", "?"]]
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 0.1]
    assert optimizer.state[head] is state
    assert optimizer.param_groups[1]["params"][2] is head


def test_a_layer_never_seen_joins_where_most_slices_are() -> None:
    trained, follower = three_layers()
    trained.draw(a=[0], b=[1])
    head = nn.Parameter(torch.zeros(2))
    optimizer = SGD([{"params": [head]}, {"params": trained.parameters()}], 0.1)
    follower.register(optimizer)
    draw_and_follow(trained, follower, a=[0], c=[1])
    assert names_by_group(trained, optimizer) == [["?"], ["a", "c"]]


def test_what_the_user_left_out_stays_out() -> None:
    trained, follower = three_layers()
    optimizer = SGD([trained.slices["a"], trained.slices["c"]], 0.1)
    follower.register(optimizer)
    draw_and_follow(trained, follower, b=[1], c=[1, 2])
    draw_and_follow(trained, follower, a=[1], b=[1, 2], c=[1, 2])
    assert names_by_group(trained, optimizer) == [["a", "c"]]


def test_two_optimizers_keep_their_own_layers() -> None:
    trained, follower = three_layers()
    first = SGD([trained.slices["a"]], 0.1, momentum=0.9)
    second = Adam([trained.slices["b"], trained.slices["c"]], 0.1)
    follower.register(first)
    follower.register(second)
    follower.register(second)
    draw_and_follow(trained, follower, b=[2])
    draw_and_follow(trained, follower, a=[3, 4], b=[2, 5], c=[0])
    assert names_by_group(trained, first) == [["a"]]
    assert names_by_group(trained, second) == [["b", "c"]]


def test_groups_are_ordered_as_a_fresh_optimizer_would_be() -> None:
    """So that ``optimizer.state_dict()`` fits after a restart at any draw."""
    trained, follower = three_layers()
    bias = nn.Parameter(torch.zeros(2))
    optimizer = SGD([trained.slices["a"], bias, trained.slices["b"], trained.slices["c"]], 0.1)
    follower.register(optimizer)
    follower.move(trained.draw(c=[1]), [bias, trained.slices["c"]])
    assert names_by_group(trained, optimizer) == [["?", "c"]]
    moves = trained.draw(a=[1], b=[2], c=[3])
    follower.move(moves, [trained.slices["a"], bias, trained.slices["b"], trained.slices["c"]])
    assert names_by_group(trained, optimizer) == [["a", "?", "b", "c"]]


def test_names_in_groups_follow() -> None:
    trained, follower = three_layers()
    optimizer = SGD(trained.named_parameters(), 0.1)
    follower.register(optimizer)
    draw_and_follow(trained, follower, c=[1])
    draw_and_follow(trained, follower, a=[1, 2], c=[2, 3])
    assert optimizer.param_groups[0]["param_names"] == ["a", "c"]
    assert names_by_group(trained, optimizer) == [["a", "c"]]


def test_a_bias_that_trains_with_its_layer_keeps_its_state_while_it_stays() -> None:
    trained, follower = three_layers()
    bias = nn.Parameter(torch.zeros(3))
    optimizer = SGD([*trained.parameters(), bias], 0.1, momentum=0.9)
    follower.register(optimizer)
    bias.grad = torch.ones(3)
    trained.step(optimizer, trained.random_gradients())
    follower.move([*trained.draw(a=[1]), SliceMove("bias", None, bias, None, bias, None)])
    assert torch.equal(optimizer.state[bias]["momentum_buffer"], torch.ones(3))
    follower.move([*trained.draw(b=[1]), SliceMove("bias", None, bias, None, None, None)])
    assert bias not in optimizer.state
    assert names_by_group(trained, optimizer) == [["b"]]
    follower.move([*trained.draw(b=[1]), SliceMove("bias", None, None, None, bias, None)])
    assert names_by_group(trained, optimizer) == [["b", "?"]]


def test_a_carried_bias_finds_its_momentum_again() -> None:
    trained, optimizer, follower = start(OPTIMIZERS["SGD momentum"], [0], carry=True)
    bias = nn.Parameter(torch.zeros(3))
    optimizer.add_param_group({"params": [bias]})
    bias.grad = torch.ones(3)
    trained.step(optimizer, trained.random_gradients())
    follower.move([SliceMove("bias", None, bias, None, None, None)])
    follower.move([SliceMove("bias", None, None, None, bias, None)])
    assert torch.equal(optimizer.state[bias]["momentum_buffer"], torch.ones(3))
    assert optimizer.param_groups[1]["params"] == [bias]


def test_schedulers_and_scalers_go_on() -> None:
    trained, follower = three_layers()
    optimizer = SGD([{"params": [trained.slices["a"]]}, {"params": [trained.slices["b"], trained.slices["c"]]}], 1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda epoch: 0.5**epoch, lambda epoch: 0.1**epoch])
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    follower.register(optimizer)
    for epoch, drawn in enumerate(({"b": [0]}, {"a": [1, 2]}, {"a": [1], "b": [2], "c": [5]})):
        draw_and_follow(trained, follower, **drawn)
        before = {name: weight.clone() for name, weight in trained.weights.items()}
        total = sum(parameter.sum() for parameter in trained.parameters())
        assert isinstance(total, Tensor)
        scaler.scale(total).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        for name, parameter in trained.slices.items():
            trained.geometries[name].scatter_(trained.weights[name], trained.channels[name], parameter.detach())
            rate = 0.5**epoch if name == "a" else 0.1**epoch
            moved = trained.geometries[name].gather(before[name] - trained.weights[name], trained.channels[name])
            torch.testing.assert_close(moved, torch.full_like(moved, rate))
        scheduler.step()
    assert len(optimizer.param_groups) == 2


# Refusals


def test_a_draw_needs_to_know_the_optimizer() -> None:
    trained, follower = Trained(layer=GEOMETRIES["linear"]), OptimizerFollower()
    was_registered = follower.is_registered
    assert not was_registered
    with pytest.raises(EngineError, match=r"optimizer .* is not known.*engine\.register\(None\) if there is none"):
        draw_and_follow(trained, follower, layer=[1])
    follower.register(None)
    assert follower.is_registered
    assert draw_and_follow(trained, follower, layer=[1]) == []


def test_an_optimizer_of_the_plain_model_is_refused() -> None:
    trained, _, follower = start(lambda _: SGD([nn.Parameter(torch.zeros(2))], 0.1), [0])
    with pytest.raises(EngineError, match=r"holds none of the engine's slices.*engine\.parameters\(\)"):
        draw_and_follow(trained, follower, layer=[1])


def test_a_draw_between_micro_batches_is_refused() -> None:
    trained, optimizer, follower = start(OPTIMIZERS["SGD"], [0, 1])
    parameter = trained.slices["layer"]
    parameter.sum().backward()
    with pytest.raises(EngineError, match=r"gradients of 1 parameters \('layer'\), which no step has used"):
        draw_and_follow(trained, follower, layer=[1, 2])
    optimizer.step()
    draw_and_follow(trained, follower, layer=[1, 2])  # zero_grad() comes first in many loops
    parameter.sum().backward()
    optimizer.step()
    parameter.sum().backward()
    with pytest.raises(EngineError, match="between accumulated micro-batches"):
        draw_and_follow(trained, follower, layer=[2, 3])
    optimizer.zero_grad(set_to_none=False)
    draw_and_follow(trained, follower, layer=[2, 3])
    for _ in range(20):  # a new gradient often lies where a used one lay
        parameter.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        parameter.sum().backward()
        with pytest.raises(EngineError, match="between accumulated micro-batches"):
            follower.check_before_draw(trained.named_parameters())
        optimizer.zero_grad()


def test_a_step_the_scaler_skipped_does_not_forbid_the_draw() -> None:
    trained, optimizer, follower = start(OPTIMIZERS["SGD"], [0, 1])
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(trained.slices["layer"].sum() * torch.inf).backward()
    scaler.step(optimizer)
    draw_and_follow(trained, follower, layer=[1, 2])


# Life


def test_released_optimizers_are_left_alone() -> None:
    trained, optimizer, follower = start(OPTIMIZERS["SGD"], [0, 1])
    old = trained.parameters()
    assert len(optimizer._optimizer_step_post_hooks) == 1
    follower.release()
    assert not optimizer._optimizer_step_post_hooks
    follower.move(trained.draw(layer=[2]))
    assert optimizer.param_groups[0]["params"] == old


def test_an_optimizer_can_go() -> None:
    trained, optimizer, follower = start(OPTIMIZERS["SGD momentum"], [0, 1])
    gone = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert gone() is None
    assert draw_and_follow(trained, follower, layer=[2]) == []


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda follower: pickle.loads(pickle.dumps(follower))])
def test_a_copy_follows_no_optimizer(duplicate: Callable[[OptimizerFollower], OptimizerFollower]) -> None:
    trained, optimizer, follower = start(OPTIMIZERS["Adam"], [0, 1], carry=True)
    trained.step(optimizer, trained.random_gradients())
    draw_and_follow(trained, follower, layer=[2])
    other = duplicate(follower)
    assert not other.is_registered
    assert follower.is_registered
    torch.testing.assert_close(other.state_dict(), follower.state_dict())
