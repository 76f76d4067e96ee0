"""What a Trace promises: errors that name the place, models left alone, other batch sizes, lean rules, the graph."""

import io
from types import ModuleType
from typing import Any

import networkx as nx
import pytest
import torch
from torch import Tensor, nn

from trady.planner.errors import TracingError
from trady.planner.tracing.tracing import trace


def test_wrong_channels_name_the_module_and_the_shapes(cases: ModuleType) -> None:
    net, _ = cases.build("conv-bn-relu")
    with pytest.raises(TracingError, match=r"Module '0' \(Conv2d\) cannot run on inputs of shape \[2, 4, 8, 8\]"):
        trace(net, torch.zeros(2, 4, 8, 8))


def test_nothing_to_train_is_an_error(cases: ModuleType) -> None:
    net, inputs = cases.build("mlp")
    with pytest.raises(TracingError, match="does not depend on any parameter that requires a gradient"):
        trace(net.requires_grad_(False), inputs)


class Routed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.mix(x[x.sum((1, 2)) > 0])
        return mixed.mean(1)


def test_routing_by_values_is_refused() -> None:
    with pytest.raises(TracingError, match="routes by the values of its inputs"):
        trace(Routed(), torch.zeros(2, 6, 8))


def test_eager_experts_are_refused_with_the_switch() -> None:
    transformers = pytest.importorskip("transformers", minversion="5")
    small = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4}
    ids = torch.zeros(2, 6, dtype=torch.int64)
    for switch in ("eager", "grouped_mm"):
        config = transformers.MixtralConfig(**small, **heads, experts_implementation=switch)
        net = transformers.MixtralForCausalLM(config)
        if switch == "eager":
            with pytest.raises(TracingError, match="experts_implementation='grouped_mm'"):
                trace(net, {"input_ids": ids, "labels": ids}, batch_sizes=(2,))
        else:
            traced = trace(net, {"input_ids": ids, "labels": ids}, batch_sizes=(2,))
            assert "stacked experts" in " ".join(traced.not_drawn.values())


class Watched(nn.Module):
    def __init__(self, fails: bool) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)
        self.fails = fails

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).mean((2, 3))
        logits: Tensor = self.head(x.flatten() if self.fails else x)
        return logits


def state_of(net: nn.Module) -> Any:
    tensors = {name: (id(tensor), tensor.clone()) for name, tensor in net.state_dict(keep_vars=True).items()}
    flags = [(name, parameter.requires_grad, parameter.grad) for name, parameter in net.named_parameters()]
    hooks = [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in net.modules()]
    return tensors, flags, hooks, [module.training for module in net.modules()]


@pytest.mark.parametrize("fails", [False, True])
def test_model_is_left_as_it_was(fails: bool) -> None:
    net = Watched(fails).eval()
    net.norm.train()
    assert net.conv.bias is not None
    net.conv.bias.requires_grad_(False)
    tensors, *others = state_of(net)
    try:
        trace(net, torch.zeros(2, 3, 8, 8), norm="train")
        assert not fails
    except TracingError:
        assert fails
    tensors_after, *others_after = state_of(net)
    assert others == others_after
    for name, (identity, value) in tensors.items():
        assert tensors_after[name][0] == identity
        assert torch.equal(tensors_after[name][1], value)
    assert torch.zeros(1).untyped_storage().data_ptr() != 0  # no fake mode is left behind


def test_meta_model_traces_like_a_real_one(cases: ModuleType) -> None:
    net, inputs = cases.build("encoder-layer")
    real = trace(net, inputs, batch_sizes=(2,))
    meta = trace(net.to("meta"), inputs.to("meta"), batch_sizes=(2,))
    assert meta.saved_bytes == real.saved_bytes
    assert [layer.name for layer in meta.layers] == [layer.name for layer in real.layers]


def test_batch_size_that_was_not_traced(cases: ModuleType) -> None:
    net, inputs = cases.build("mlp")
    with pytest.raises(TracingError, match=r"Batch size 7 was not traced \(traced: 2\)"):
        trace(net, inputs, batch_sizes=(2,)).at(7)


def test_batch_size_the_model_refuses() -> None:
    net = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    traced = trace(net, torch.zeros(2, 8), norm="train")
    with pytest.raises(TracingError, match="more than 1 value per channel"):
        traced.at(1)
    assert traced.at(8).saved_bytes > traced.saved_bytes


def test_graph_goes_through_graphml(cases: ModuleType) -> None:
    net, inputs = cases.build("residual")
    traced = trace(net, inputs, batch_sizes=(2,))
    text = io.BytesIO()
    nx.write_graphml(traced.graph, text)
    text.seek(0)
    read = nx.read_graphml(text)
    assert {node: dict(data) for node, data in read.nodes(data=True)} == dict(traced.graph.nodes(data=True))
    saved = [data["bytes"] for _, data in read.nodes(data=True) if data["kind"] == "tensor" and data["saved"]]
    assert sum(saved) == traced.saved_bytes


def kept_of(module: nn.Module, channels: int = 4, in_channels: int = 4, **options: Any) -> list[int]:
    """Bytes a lean step keeps for a module, by entry; inputs of drawn layers and of the head left out."""
    net = nn.Sequential(nn.Conv2d(3, in_channels, 1), module, nn.Flatten(), nn.LazyLinear(3))
    net(torch.zeros(2, 3, 5, 5))
    traced = trace(net, torch.zeros(2, 3, 5, 5), batch_sizes=(2,), **options)
    return [
        kept.num_bytes
        for kept in traced.kept
        if not kept.for_weight and traced.step.operations[kept.operation].module == "1"
    ]


def test_lean_rules_by_hand() -> None:
    elements = 2 * 4 * 5 * 5
    assert kept_of(nn.ReLU()) == [-(-elements // 8)]
    assert kept_of(nn.ReLU6(inplace=True)) == [-(-elements // 8)]
    assert kept_of(nn.MaxPool2d(2)) == [2 * 4 * 2 * 2]
    assert kept_of(nn.Conv2d(4, 6, 3).requires_grad_(False)) == []
    assert kept_of(nn.AvgPool2d(2)) == []
    assert kept_of(nn.GELU()) == [4 * elements]
    assert kept_of(nn.BatchNorm2d(4)) == []


class Scaled(nn.Module):
    def __init__(self, both: bool) -> None:
        super().__init__()
        self.both = both

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.neg() if self.both else x.detach().neg())


def test_a_factor_is_kept_only_for_the_gradient_of_the_other() -> None:
    assert kept_of(Scaled(both=False)) == [4 * 200]
    assert kept_of(Scaled(both=True)) == [4 * 200, 4 * 200]
