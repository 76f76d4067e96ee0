"""Gradient norms against dense autograd, and the model left as it was."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trady.planner.errors import CalibrationError
from trady.planner.priorities.calibration import (
    calibrate,
    calibration_peak_bytes,
    channel_norms,
    synthetic_batches,
    uniform_priorities,
)
from trady.planner.priorities.priorities import Priorities, PrioritySource, rounded_norms
from trady.planner.tracing.layers import Layer
from trady.planner.tracing.tracing import trace


class OneOfEach(nn.Module):
    """Every kind of layer once, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 12, 3, groups=4)
        self.depthwise = nn.Conv2d(12, 12, 3, groups=12)
        self.multiplied = nn.Conv2d(12, 24, 1, groups=12)
        self.transposed = nn.ConvTranspose2d(24, 6, 2)
        self.linear = nn.Linear(6, 5)
        self.dropout = nn.Dropout(0.4)
        self.head = nn.Linear(5, 4)

    def forward(self, images: Tensor) -> Tensor:
        features = self.depthwise(self.grouped(F.relu(self.norm(self.plain(images)))))
        features = self.transposed(F.relu(self.multiplied(features)))
        logits: Tensor = self.head(self.dropout(F.relu(self.linear(features.mean(dim=(2, 3))))))
        return logits


def images(seed: int = 0, size: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 3, 8, 8, generator=generator), torch.randint(4, (size,), generator=generator)


def slice_norms(gradient: Tensor, layer: Layer) -> list[float]:
    """Norm of what each input channel multiplies, slice by slice."""
    norms = []
    per_group = layer.in_channels // layer.groups
    rows = gradient.shape[0] // layer.groups
    for channel in range(layer.in_channels):
        if layer.name == "transposed":
            part = gradient[channel]
        elif layer.groups > 1:
            group = channel // per_group
            part = gradient[group * rows : (group + 1) * rows, channel % per_group]
        else:
            part = gradient[:, channel]
        norms.append(part.double().norm().item())
    return norms


def test_norms_are_those_of_dense_autograd_slices() -> None:
    """Mean over batches of each slice's norm, layer by layer; the norm frozen, no dropout."""
    net = OneOfEach()
    net.dropout.p = 0.0
    net.norm.eval()
    batches = [images(0), images(1, size=3)]
    found = calibrate(net, batches).by_weight
    expected: dict[str, list[list[float]]] = {}
    layers = trace(net, batches[0][0], batch_sizes=(4,)).layers
    for inputs, targets in batches:
        net.zero_grad()
        F.cross_entropy(net(inputs), targets).backward()
        for layer in layers:
            gradient = net.get_parameter(layer.weight_name).grad
            assert gradient is not None
            expected.setdefault(layer.weight_name, []).append(slice_norms(gradient, layer))
            assert channel_norms(gradient, layer).tolist() == pytest.approx(expected[layer.weight_name][-1], rel=1e-5)
    assert (
        set(expected)
        == set(found)
        == {f"{name}.weight" for name in ("plain", "grouped", "depthwise", "multiplied", "transposed", "linear")}
    )
    for name, norms in expected.items():
        mean = [sum(column) / 2 for column in zip(*norms, strict=True)]
        assert list(found[name].channel_norms) == pytest.approx(mean, rel=1e-4)


def snapshot(net: nn.Module) -> tuple[Any, ...]:
    return (
        {name: value.clone() for name, value in net.state_dict().items()},
        [parameter.requires_grad for parameter in net.parameters()],
        [parameter.grad for parameter in net.parameters()],
        [module.training for module in net.modules()],
        [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in net.modules()],
        torch.random.get_rng_state(),
        torch.is_grad_enabled(),
    )


def assert_same(before: tuple[Any, ...], after: tuple[Any, ...]) -> None:
    for name, value in before[0].items():
        assert torch.equal(value, after[0][name]), name
    assert all(one is two for one, two in zip(before[2], after[2], strict=True))
    assert torch.equal(before[5], after[5])
    assert (before[1], before[3], before[4], before[6]) == (after[1], after[3], after[4], after[6])


@pytest.fixture
def used_net() -> nn.Module:
    """A net in the middle of something: mixed modes and flags, a gradient, statistics of its own."""
    net = OneOfEach()
    net(images()[0])
    net.train()
    net.norm.eval()
    net.grouped.weight.requires_grad_(False)
    net.plain.weight.grad = torch.ones_like(net.plain.weight)
    return net


@pytest.mark.parametrize("norm", ["frozen", "train"])
def test_the_model_is_left_exactly_as_it_was(used_net: nn.Module, norm: str) -> None:
    before = snapshot(used_net)
    with torch.no_grad():
        calibrate(used_net, [images(0), images(1)], norm=norm)
    assert_same(before, snapshot(used_net))
    hooks = [parameter._post_accumulate_grad_hooks for parameter in used_net.parameters()]
    assert not any(hooks)


@pytest.mark.parametrize("failing", ["data", "loss", "gradient", "interrupt"])
def test_the_model_is_left_as_it_was_after_an_error(used_net: nn.Module, failing: str) -> None:
    def broken_batches() -> Iterator[Any]:
        yield images(0)
        if failing == "data":
            raise OSError("gone")
        if failing == "interrupt":
            raise KeyboardInterrupt
        yield (torch.full((4, 3, 8, 8), float("nan")), images(0)[1]) if failing == "gradient" else images(1)

    calls: list[int] = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        calls.append(0)
        if failing == "loss" and len(calls) > 4:
            raise ZeroDivisionError
        return F.cross_entropy(outputs, targets)

    before = snapshot(used_net)
    with pytest.raises((OSError, ZeroDivisionError, CalibrationError, KeyboardInterrupt)):
        batches = broken_batches()
        if failing == "loss":
            batches = iter([images(seed) for seed in range(9)])
        calibrate(used_net, batches, loss=loss)
    assert_same(before, snapshot(used_net))
    assert not any(parameter._post_accumulate_grad_hooks for parameter in used_net.parameters())


def test_a_gradient_that_is_not_finite_names_layer_and_batch() -> None:
    net = OneOfEach()
    poisoned = images(1)[0].clone()
    poisoned[0] = float("nan")
    with pytest.raises(CalibrationError, match=r"Gradient of layer 'linear' is not finite in batch 1\. Check the data"):
        calibrate(net, [images(0), (poisoned, images(1)[1])])


def test_no_batch_is_an_error() -> None:
    with pytest.raises(CalibrationError, match=r"Calibration got no batch. Give at least one"):
        calibrate(OneOfEach(), [])


def test_the_seed_decides_dropout() -> None:
    net = OneOfEach()
    torch.manual_seed(0)
    first = calibrate(net, [images()], seed=1)
    torch.manual_seed(5)
    assert calibrate(net, [images()], seed=1) == first
    assert calibrate(net, [images()], seed=2) != first


def test_frozen_norms_use_and_keep_their_statistics() -> None:
    """In training mode the norms of the batch would hide a shift of the inputs; frozen ones let it through."""
    net = OneOfEach()
    net.dropout.p = 0.0
    inputs, targets = images()
    frozen = calibrate(net, [(inputs, targets)])
    trained = calibrate(net, [(inputs, targets)], norm="train")
    assert frozen != trained
    assert net.norm.running_mean is not None
    assert net.norm.num_batches_tracked == 0 and torch.equal(net.norm.running_mean, torch.zeros(8))


class OwnLoss(nn.Module):
    """A model in the way of Hugging Face: keywords in, a mapping with a loss out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.body, self.head = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.head(self.body(self.embedding(input_ids)).mean(dim=1).relu())
        return {"logits": logits} | ({} if labels is None else {"loss": F.cross_entropy(logits, labels)})


def test_dict_batches_and_a_loss_of_the_models_own() -> None:
    net = OwnLoss()
    ids, labels = torch.arange(8).view(2, 4), torch.tensor([0, 2])
    own = calibrate(net, [{"input_ids": ids, "labels": labels}])
    given = calibrate(net, [({"input_ids": ids}, labels)])
    assert [layer.name for layer in own.layers] == ["body"]
    assert own.layers[0].channel_norms == pytest.approx(given.layers[0].channel_norms, rel=1e-5)
    net.zero_grad()
    net(ids, labels)["loss"].backward()
    gradient = net.body.weight.grad
    assert gradient is not None
    assert list(own.layers[0].channel_norms) == pytest.approx(gradient.norm(dim=0).tolist(), rel=1e-5)


def test_several_positional_inputs_and_a_loss_of_the_users() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.head = nn.Linear(3, 4), nn.Linear(2, 4), nn.Linear(4, 2)

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            logits: Tensor = self.head((self.left(left) * self.right(right)).tanh())
            return logits

    def squared(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().sum()

    net = Pair()
    inputs, targets = (torch.randn(5, 3), torch.randn(5, 2)), torch.randn(5, 2)
    found = calibrate(net, [(inputs, targets)], loss=squared).by_weight
    squared(net(*inputs), targets).backward()
    for name in ("left", "right"):
        gradient = net.get_parameter(f"{name}.weight").grad
        assert gradient is not None
        assert list(found[f"{name}.weight"].channel_norms) == pytest.approx(gradient.norm(dim=0).tolist(), rel=1e-5)


def test_synthetic_batches_follow_the_seed_and_the_example() -> None:
    net = OwnLoss()
    example = {"input_ids": torch.tensor([[1, 5, 5, 8]])}
    first, second = (list(synthetic_batches(net, example, 3, seed=0)) for _ in range(2))
    for one, two in zip(first, second, strict=True):
        assert isinstance(one.inputs, dict) and isinstance(two.inputs, dict)
        assert torch.equal(one.inputs["input_ids"], two.inputs["input_ids"])
        assert sorted(one.inputs["input_ids"].flatten().tolist()) == [1, 5, 5, 8]
        assert one.targets.shape == (1,) and 0 <= one.targets.item() < 3
    assert calibrate(net, first, source="synthetic").source is PrioritySource.SYNTHETIC


def test_uniform_priorities_count_weight_elements() -> None:
    found = uniform_priorities(trace(OneOfEach(), images()[0], batch_sizes=(4,))).by_weight
    assert found["plain.weight"].channel_norms == pytest.approx([72**0.5] * 3)
    assert set(found["depthwise.weight"].channel_norms) == {3.0}


def test_the_stated_peak_covers_weights_and_what_autograd_keeps() -> None:
    net, inputs = OneOfEach(), images()[0]
    traced = trace(net, inputs, norm="train", batch_sizes=(4,))
    weights = sum(value.numel() * value.element_size() for value in [*net.parameters(), *net.buffers()])
    assert calibration_peak_bytes(traced) >= weights + inputs.numel() * 4 + traced.saved_bytes


def test_priorities_survive_the_file_and_give_the_same_bytes(tmp_path: Path) -> None:
    found = calibrate(OneOfEach(), [images(seed) for seed in range(3)], origin="made up")
    assert (found.num_batches, found.batch_size, found.origin) == (3, 4, "made up")
    found.save(tmp_path / "a.json")
    loaded = Priorities.load(tmp_path / "a.json")
    loaded.save(tmp_path / "b.json")
    assert loaded == found and loaded.digest == found.digest
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No such file"), ("", "cannot be read"), ("{}", "source: Field required"), ("[1]", "cannot be read")],
)
def test_files_that_hold_no_priorities_are_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "p.json").write_text(content)
    with pytest.raises(CalibrationError, match=rf"Priorities .*p.json.*{message}.*Make them with trady-profile"):
        Priorities.load(tmp_path / "p.json")


@pytest.mark.parametrize("norm", [-1.0, float("nan"), float("inf")])
def test_norms_must_be_finite_and_not_negative(tmp_path: Path, norm: float) -> None:
    found = calibrate(OneOfEach(), [images()])
    text = found.model_dump_json().replace(
        str(found.layers[0].channel_norms[0]), str(norm).replace("inf", "Infinity").replace("nan", "NaN"), 1
    )
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(CalibrationError, match=r"layers\.0\.channel_norms\.0"):
        Priorities.load(tmp_path / "p.json")


def test_rgn_lara_and_ranks_by_their_definitions() -> None:
    found = calibrate(OneOfEach(), [images()])
    for layer in found.layers:
        cost = layer.weight_elements + layer.sample_elements
        assert layer.rgn == pytest.approx(sum(layer.channel_norms) / cost)
        whole = sum(norm**2 for norm in layer.channel_norms) ** 0.5
        assert layer.lara == pytest.approx(whole / (cost * len(layer.channel_norms)))
    order = found.ranked("lara")
    assert [layer.lara for layer in order] == sorted((layer.lara for layer in found.layers), reverse=True)
    assert found.top(1.0)[0] == found.ranked()[0]


def test_norms_keep_seven_digits() -> None:
    values = [random.Random(0).random() * 10**power for power in range(-20, 20)]
    assert list(rounded_norms(values)) == pytest.approx(values, rel=1e-6)
    assert max(len(f"{value:e}".split("e")[0]) for value in rounded_norms(values)) <= 8
