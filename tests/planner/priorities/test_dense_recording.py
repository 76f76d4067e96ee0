"""Recorded gradients against plain PyTorch training on the same batches, and the model left as it was."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trady.planner.errors import CalibrationError, DataError
from trady.planner.models.state_dicts import fingerprint
from trady.planner.planning.planning import make_plan
from trady.planner.planning.preparation import Prepared, record_from_data
from trady.planner.priorities.dense_recording import record_gradients
from trady.planner.priorities.gradient_sketches import channel_rows, sketch
from trady.planner.tracing.tracing import trace

EPOCHS, BATCHES, RATE = 3, 2, 0.05


class Net(nn.Module):
    """A plain, a grouped and a depthwise convolution around a norm, a linear layer and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.plain = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 12, 3, groups=4)
        self.depthwise = nn.Conv2d(12, 12, 3, groups=12)
        self.linear = nn.Linear(12, 10)
        self.head = nn.Linear(10, 4)

    def forward(self, images: Tensor) -> Tensor:
        features = self.depthwise(self.grouped(F.relu(self.norm(self.plain(images)))))
        logits: Tensor = self.head(F.relu(self.linear(features.mean(dim=(2, 3)))))
        return logits


def batches(epoch: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(epoch)
    return [
        (torch.randn(6, 3, 8, 8, generator=generator), torch.randint(4, (6,), generator=generator))
        for _ in range(BATCHES)
    ]


def plain_training(net: Net, norm: str) -> tuple[list[float], list[dict[str, list[Tensor]]]]:
    """Losses, and every weight's gradients of every epoch, of torch's own SGD on all weights of layers."""
    net = copy.deepcopy(net).train()
    net.norm.train(norm == "train")
    trained = [f"{name}.weight" for name in ("plain", "grouped", "depthwise", "linear", "head")] + ["head.bias"]
    optimizer = torch.optim.SGD([net.get_parameter(name) for name in trained], lr=RATE)
    losses, gradients = [], []
    for epoch in range(EPOCHS):
        found: dict[str, list[Tensor]] = {name: [] for name in trained}
        total = 0.0
        for inputs, targets in batches(epoch):
            net.zero_grad()
            loss = F.cross_entropy(net(inputs), targets)
            loss.backward()
            for name in trained:
                gradient = net.get_parameter(name).grad
                assert gradient is not None
                found[name].append(gradient.clone())
            optimizer.step()
            total += loss.item()
        losses.append(total / BATCHES)
        gradients.append(found)
    return losses, gradients


@pytest.mark.parametrize("norm", ["frozen", "train"])
def test_norms_sketches_and_losses_are_those_of_plain_training(norm: str) -> None:
    net = Net()
    found = record_gradients(net, batches, epochs=EPOCHS, learning_rate=RATE, norm=norm)
    losses, gradients = plain_training(net, norm)
    assert found.losses == pytest.approx(losses, rel=1e-5)
    assert losses[0] != pytest.approx(losses[-1], rel=1e-3)
    assert found.layers == ("plain", "grouped", "depthwise", "linear")
    layers = {layer.name: layer for layer in trace(net, batches(0)[0][0], batch_sizes=(6,)).layers}
    for index, name in enumerate(found.layers):
        layer = layers[name]
        for epoch in range(EPOCHS):
            rows = [
                channel_rows(gradient, layer.channel_dim, layer.groups)
                for gradient in gradients[epoch][layer.weight_name]
            ]
            norms = torch.stack([row.norm(dim=1) for row in rows]).mean(dim=0)
            assert found.norms[index][epoch].tolist() == pytest.approx(norms.tolist(), rel=1e-4)
            mean = torch.stack(rows).mean(dim=0)
            expected = sketch(mean, layer.weight_name).flatten().tolist()
            assert found.sketches[index][epoch].flatten().tolist() == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_the_header_says_which_training_it_was() -> None:
    net = Net()
    done: list[tuple[int, float]] = []
    found = record_gradients(
        net,
        batches,
        epochs=2,
        learning_rate=RATE,
        source="nets:net",
        origin="noise",
        seed=7,
        progress=lambda epoch, loss: done.append((epoch, loss)),
    )
    header = found.header
    assert header.fingerprint == fingerprint(net)
    assert (header.source, header.origin, header.seed, header.norm) == ("nets:net", "noise", 7, "frozen")
    assert (header.num_batches, header.batch_size, header.learning_rate) == (BATCHES, 6, RATE)
    assert [(layer.name, layer.channels) for layer in header.layers][:2] == [("plain", 3), ("grouped", 8)]
    assert done == list(enumerate(found.losses, start=1))
    assert all(alpha is not None and 0.2 < alpha < 3 for alpha in found.tail_index)
    found.check_fits(*make_plan(net, batches(0)[0][0], budget="1KB").recorded_model)


def test_the_head_that_trains_is_the_one_asked_for() -> None:
    found = record_gradients(Net(), batches, epochs=1, head="linear")
    assert "linear" not in found.layers


def test_models_with_a_loss_of_their_own() -> None:
    class OwnLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.body, self.head = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.head(self.body(self.embedding(input_ids)).mean(dim=1).relu())
            return {"logits": logits, "loss": F.cross_entropy(logits, labels)}

    ids = {"input_ids": torch.arange(8).view(2, 4), "labels": torch.tensor([0, 2])}
    found = record_gradients(OwnLoss(), lambda _: [ids], epochs=2)
    assert found.layers == ("body",)
    assert found.tail_index == (None, None)


def snapshot(net: nn.Module) -> tuple[Any, ...]:
    return (
        {name: value.clone() for name, value in net.state_dict().items()},
        [parameter.requires_grad for parameter in net.parameters()],
        [parameter.grad for parameter in net.parameters()],
        [module.training for module in net.modules()],
        torch.random.get_rng_state(),
    )


def assert_same(before: tuple[Any, ...], after: tuple[Any, ...]) -> None:
    for name, value in before[0].items():
        assert torch.equal(value, after[0][name]), name
    assert all(one is two for one, two in zip(before[2], after[2], strict=True))
    assert torch.equal(before[4], after[4])
    assert (before[1], before[3]) == (after[1], after[3])


@pytest.fixture
def used_net() -> Net:
    """A net in the middle of something: mixed modes and flags, a gradient, statistics of its own."""
    net = Net()
    net(batches(0)[0][0])
    net.norm.eval()
    net.grouped.weight.requires_grad_(False)
    net.plain.weight.grad = torch.ones_like(net.plain.weight)
    return net


@pytest.mark.parametrize("norm", ["frozen", "train"])
def test_the_model_is_left_exactly_as_it_was(used_net: Net, norm: str) -> None:
    before = snapshot(used_net)
    with torch.no_grad():
        record_gradients(used_net, batches, epochs=2, norm=norm)
    assert_same(before, snapshot(used_net))
    assert not any(parameter._post_accumulate_grad_hooks for parameter in used_net.parameters())


@pytest.mark.parametrize("failing", [OSError, KeyboardInterrupt, CalibrationError])
def test_the_model_is_left_as_it_was_after_an_error(used_net: Net, failing: type[BaseException]) -> None:
    def broken(epoch: int) -> Iterator[Any]:
        yield batches(epoch)[0]
        if epoch == 1 and failing is not CalibrationError:
            raise failing
        yield (torch.full((6, 3, 8, 8), float("nan")), batches(epoch)[0][1]) if epoch == 1 else batches(epoch)[1]

    before = snapshot(used_net)
    with pytest.raises(failing):
        record_gradients(used_net, broken, epochs=2, norm="train")
    assert_same(before, snapshot(used_net))
    assert not any(parameter._post_accumulate_grad_hooks for parameter in used_net.parameters())


class InfiniteGradient(torch.autograd.Function):
    """Passes its input on and an infinite gradient back."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        return inputs.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * float("inf")


def test_a_gradient_that_is_not_finite_names_layer_epoch_batch_and_rate() -> None:
    calls: list[int] = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        calls.append(0)
        return F.cross_entropy(outputs, targets)

    class Poisoned(Net):
        def forward(self, images: Tensor) -> Tensor:
            features = self.depthwise(self.grouped(F.relu(self.norm(self.plain(images))))).mean(dim=(2, 3))
            hidden = self.linear(features)
            if images.max() > 100:
                hidden = InfiniteGradient.apply(hidden)
            logits: Tensor = self.head(F.relu(hidden))
            return logits

    def poisoned(epoch: int) -> list[tuple[Tensor, Tensor]]:
        found = batches(epoch)
        if epoch == 1:
            found[1][0][0, 0, 0, 0] = 101
        return found

    class Tracked(Poisoned):
        """Tracing sees the plain branch: fake tensors have no values."""

        def forward(self, images: Tensor) -> Tensor:
            if type(images).__name__ == "FakeTensor":
                return Net.forward(self, images)
            return super().forward(images)

    message = r"Gradient of layer 'linear' is not finite in epoch 1, batch 1, at learning rate 0\.05\. Lower --lr"
    with pytest.raises(CalibrationError, match=message):
        record_gradients(Tracked(), poisoned, epochs=2, learning_rate=RATE)


def test_a_loss_that_is_not_finite_is_told() -> None:
    def poisoned(epoch: int) -> list[tuple[Tensor, Tensor]]:
        found = batches(epoch)
        found[1][0].fill_(float("nan"))
        return found

    with pytest.raises(CalibrationError, match=r"Loss is nan in epoch 0, batch 1, at learning rate 0\.01\. Lower --lr"):
        record_gradients(Net(), poisoned, epochs=1)


def test_training_that_diverges_is_told() -> None:
    message = r"Training diverged: the mean loss of epoch 1 is .* at learning rate 30\. Lower --lr"
    with pytest.raises(CalibrationError, match=message):
        record_gradients(Net(), batches, epochs=3, learning_rate=30.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, r"A recording needs 1 epoch or more, got 0\. Give --record 5"),
        ({"learning_rate": 0.0}, r"Learning rate must be finite and above 0, got 0\.0\. Give --lr 0\.01"),
        ({"learning_rate": float("nan")}, r"Learning rate must be finite and above 0, got nan"),
    ],
)
def test_arguments_outside_their_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        record_gradients(Net(), batches, **({"epochs": 1} | options))


@pytest.mark.parametrize("empty", [0, 1])
def test_an_epoch_without_batches_is_an_error(empty: int) -> None:
    def some(epoch: int) -> list[tuple[Tensor, Tensor]]:
        return [] if epoch == empty else batches(epoch)

    with pytest.raises(CalibrationError, match=rf"Epoch {empty} got no batch\. Give at least one"):
        record_gradients(Net(), some, epochs=2)


def test_recording_needs_data(prepared_without_data: Prepared) -> None:
    with pytest.raises(DataError, match=r"Recording gradients needs labelled data\. Give --data"):
        record_from_data(prepared_without_data, epochs=1)


@pytest.fixture
def prepared_without_data() -> Prepared:
    loaded: Any = None
    source: Any = None
    return Prepared(loaded, source, "", "auto", None, torch.zeros(1))


def test_the_same_seed_gives_the_same_recording_and_another_seed_other_dropout() -> None:
    class Dropping(Net):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(F.dropout(images, 0.3, self.training))

    net = Dropping()
    first, again, other = (record_gradients(net, batches, epochs=1, seed=seed) for seed in (0, 0, 1))
    assert first.losses == again.losses != other.losses
    assert all((one == two).all() for one, two in zip(first.sketches, again.sketches, strict=True))
