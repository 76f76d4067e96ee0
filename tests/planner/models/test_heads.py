"""Heads replaced and fitted."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trady.planner.errors import TradyError
from trady.planner.models.heads import fit_head, head_classes, replace_head
from trady.planner.models.training_step import Batch


def linear_net() -> nn.Sequential:
    torch.manual_seed(3)
    body = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(body, nn.Dropout(0.5), nn.Linear(6, 10))


def conv_net() -> nn.Module:
    """A 1x1 convolution, then pooling, as in SqueezeNet."""
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 10, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


class TokenNet(nn.Module):
    """A head on every token, averaged afterwards."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body, self.head = nn.Linear(3, 8), nn.Linear(8, 10)

    def forward(self, rows: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(rows).tanh())
        return logits.mean(dim=1)


NETS: dict[str, tuple[Callable[[], nn.Module], str, tuple[int, ...]]] = {
    "linear": (linear_net, "2", (40, 2, 6, 6)),
    "convolution": (conv_net, "2", (40, 2, 6, 6)),
    "tokens": (TokenNet, "head", (40, 5, 3)),
}


def separable(shape: tuple[int, ...]) -> Batch:
    """Three classes whose inputs have different means."""
    labels = torch.arange(shape[0]) % 3
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return Batch(noise * 0.3 + 2 * (labels - 1).view(-1, *[1] * (len(shape) - 1)), labels)


@pytest.mark.parametrize("name", NETS)
def test_a_replaced_head_has_the_classes_asked_for(name: str) -> None:
    build, head, shape = NETS[name]
    net = build()
    replace_head(net, head, 3)
    assert head_classes(net, head) == 3
    assert net(torch.randn(shape)).shape == (40, 3)
    assert (net.get_submodule(head).bias is None) == (build().get_submodule(head).bias is None)


def test_the_seed_alone_decides_the_new_weights() -> None:
    first, second, other = linear_net(), linear_net(), linear_net()
    state = torch.random.get_rng_state()
    replace_head(first, "2", 4, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(7)
    replace_head(second, "2", 4, seed=1)
    replace_head(other, "2", 4, seed=2)
    assert torch.equal(first.get_parameter("2.weight"), second.get_parameter("2.weight"))
    assert not torch.equal(first.get_parameter("2.weight"), other.get_parameter("2.weight"))


def test_type_device_mode_and_geometry_stay() -> None:
    net = nn.Sequential(nn.Conv2d(4, 7, 3, stride=2, padding=1, dilation=1).to(torch.bfloat16)).eval()
    replace_head(net, "0", 5)
    new = net[0]
    assert isinstance(new, nn.Conv2d)
    assert (new.weight.dtype, new.stride, new.padding, new.training) == (torch.bfloat16, (2, 2), (1, 1), False)
    on_meta = nn.Sequential(nn.Linear(3, 2, device="meta"))
    replace_head(on_meta, "0", 5)
    assert on_meta[0].weight.is_meta and on_meta[0].weight.shape == (5, 3)


def test_models_that_store_their_number_of_classes_are_told() -> None:
    net: Any = linear_net()
    net.num_classes, net.num_labels, net.config = 10, 10, SimpleNamespace(num_labels=10)
    replace_head(net, "2", 4)
    assert (net.num_classes, net.num_labels, net.config.num_labels) == (4, 4, 4)


def test_a_transformer_for_classification_computes_its_loss_with_the_new_head() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=20, num_labels=2
    )
    net = transformers.BertForSequenceClassification(config)
    replace_head(net, "classifier", 5)
    output = net(input_ids=torch.ones(3, 4, dtype=torch.long), labels=torch.tensor([0, 3, 4]))
    assert output.logits.shape == (3, 5) and torch.isfinite(output.loss)
    assert net.config.num_labels == 5


@pytest.mark.parametrize("name", NETS)
def test_fitting_separates_what_is_separable_and_changes_nothing_else(name: str) -> None:
    build, head, shape = NETS[name]
    net, batch = build(), separable(shape)
    replace_head(net, head, 3)
    net.train()
    weight = net.get_parameter(f"{head}.weight")
    weight.grad = torch.ones_like(weight)
    weight.requires_grad_(False)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    seen: list[int] = []
    accuracy = fit_head(net, head, [batch, batch], progress=seen.append)
    assert accuracy == 1.0 and seen == [1, 2]
    after = net.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {key for key in before if key.startswith(f"{head}.")}
    assert all(module.training for module in net.modules())
    assert not weight.requires_grad and torch.equal(weight.grad, torch.ones_like(weight))
    assert not any(module._forward_pre_hooks for module in net.modules())
    predicted = net.eval()(batch.inputs).argmax(1)
    assert (predicted == batch.targets).float().mean() == 1.0


def test_an_error_on_the_way_leaves_no_hook_behind() -> None:
    net = linear_net().train()
    with pytest.raises(RuntimeError):
        fit_head(net, "2", [Batch(torch.randn(2, 3, 6, 6), torch.zeros(2, dtype=torch.long))])
    assert net.training and not any(module._forward_pre_hooks for module in net.modules())


def test_no_batch_is_an_error_of_ours() -> None:
    with pytest.raises(TradyError, match="Fitting a head got no batch"):
        fit_head(linear_net(), "2", [])


def test_one_class_is_refused() -> None:
    with pytest.raises(TradyError, match="A head needs 2 classes or more, got 1"):
        replace_head(linear_net(), "2", 1)


@pytest.mark.parametrize("head", ["0.1", "0.3"])
def test_what_is_no_head_is_refused(head: str) -> None:
    with pytest.raises(TradyError, match=r"is a \w+, not a linear layer or a convolution, and cannot be replaced"):
        replace_head(linear_net(), head, 4)
