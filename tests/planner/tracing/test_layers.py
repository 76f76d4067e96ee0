"""Layers are found by the operation that consumes a weight, whatever the module's class."""

from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from trady.planner.ledger.cost_records import LayerKind
from trady.planner.tracing.layers import Layer
from trady.planner.tracing.tracing import Trace, trace


def traced_case(cases: ModuleType, name: str) -> Trace:
    net, inputs = cases.build(name)
    return trace(net, inputs, batch_sizes=(2,))


def named(traced: Trace) -> dict[str, Layer]:
    return {layer.name: layer for layer in traced.all_layers}


@pytest.mark.parametrize(
    ("conv", "shape", "kind", "weight_elements", "activation_elements", "macs"),
    [
        (nn.Conv1d(4, 6, 3), (2, 4, 9), LayerKind.CONV, 6 * 3, 2 * 9, 6 * 3 * 2 * 7),
        (nn.Conv2d(4, 6, 3, stride=2), (2, 4, 9, 9), LayerKind.CONV, 6 * 9, 2 * 81, 6 * 9 * 2 * 16),
        (nn.Conv3d(4, 6, 2), (2, 4, 3, 3, 3), LayerKind.CONV, 6 * 8, 2 * 27, 6 * 8 * 2 * 8),
        (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 5, 5), LayerKind.GROUPED_CONV, 3 * 9, 2 * 25, 3 * 9 * 2 * 9),
        (nn.Conv2d(4, 4, 3, groups=4), (2, 4, 5, 5), LayerKind.DEPTHWISE_CONV, 9, 2 * 25, 9 * 2 * 9),
        (nn.ConvTranspose2d(4, 6, 2, 2), (2, 4, 3, 3), LayerKind.TRANSPOSED_CONV, 6 * 4, 2 * 9, 6 * 4 * 2 * 9),
        (nn.ConvTranspose2d(4, 6, 2, groups=2), (2, 4, 3, 3), LayerKind.TRANSPOSED_CONV, 3 * 4, 2 * 9, 3 * 4 * 2 * 9),
    ],
)
def test_costs_of_a_convolution_by_hand(
    conv: nn.Module, shape: tuple[int, ...], kind: LayerKind, weight_elements: int, activation_elements: int, macs: int
) -> None:
    net = nn.Sequential(nn.Identity(), conv, nn.Flatten(), nn.LazyLinear(3))
    net(torch.zeros(shape))
    (layer,) = trace(net, torch.zeros(shape), batch_sizes=(2,)).layers
    assert (layer.name, layer.kind, layer.in_channels, layer.bias_name) == ("1", kind, 4, "1.bias")
    assert layer.weight_elements == weight_elements
    assert layer.activation_elements == activation_elements
    assert layer.activation_bytes == 4 * activation_elements
    assert layer.weight_grad_macs == macs
    assert layer.forward_macs == 4 * macs


def test_costs_of_a_linear_layer_by_hand(cases: ModuleType) -> None:
    layer = named(traced_case(cases, "hand-attention"))["qkv"]
    assert (layer.kind, layer.in_channels, layer.out_channels) == (LayerKind.LINEAR, 8, 24)
    assert (layer.weight_elements, layer.activation_elements) == (24, 2 * 6)
    assert layer.forward_macs == 2 * 6 * 8 * 24


def test_gpt2_conv1d_runs_along_rows() -> None:
    conv1d = pytest.importorskip("transformers").pytorch_utils.Conv1D(nf=12, nx=8)
    net = nn.Sequential(conv1d, nn.Flatten(), nn.Linear(72, 3))
    (layer,) = trace(net, torch.zeros(2, 6, 8), batch_sizes=(2,)).layers
    assert (layer.channel_dim, layer.in_channels, layer.out_channels) == (0, 8, 12)


def test_packed_attention_of_one_input_is_one_layer(cases: ModuleType) -> None:
    layers = named(traced_case(cases, "self-attention"))
    packed = layers["attention.in_proj_weight"]
    assert (packed.in_channels, packed.out_channels) == (8, 24)
    assert "attention.out_proj" in layers


def test_packed_attention_of_several_inputs_has_a_call_for_each(cases: ModuleType) -> None:
    packed = named(traced_case(cases, "cross-attention"))["attention.in_proj_weight"]
    assert len(packed.calls) == 3
    assert len(packed.inputs) == 3
    assert packed.activation_elements == 2 * (3 + 6 + 6)


def test_bare_parameter_is_a_layer(cases: ModuleType) -> None:
    assert named(traced_case(cases, "bare-parameter"))["kernel"].weight_name == "kernel"


def test_weight_used_twice_is_one_layer_with_two_calls(cases: ModuleType) -> None:
    mix = named(traced_case(cases, "used-twice"))["mix"]
    assert len(mix.calls) == 2
    assert mix.activation_elements == 2 * (2 * 6)


@pytest.mark.parametrize(
    ("name", "weight", "reason"),
    [
        ("tied-language-model", "embed.weight", "embedding, or tied to one"),
        ("weight-norm", "0.parametrizations.weight.original1", "computed from it at each forward"),
        ("stacked-experts", "stacked", "not the weight of a convolution or a linear operation|mixes its input"),
    ],
)
def test_what_is_not_drawn_is_named_with_the_reason(name: str, weight: str, reason: str, cases: ModuleType) -> None:
    traced = traced_case(cases, name)
    assert weight not in {layer.weight_name for layer in traced.layers}
    with pytest.raises(LookupError, match=reason):
        raise LookupError(traced.not_drawn[weight])


@pytest.mark.parametrize(
    ("name", "heads"),
    [("conv-bn-relu", {"4.2"}), ("distilled", {"head", "head_dist"}), ("dict-inputs", {"head"}), ("mlp", {"4"})],
)
def test_head_is_what_becomes_the_logits(name: str, heads: set[str], cases: ModuleType) -> None:
    traced = traced_case(cases, name)
    assert set(traced.head_names) == heads
    assert heads.isdisjoint(layer.name for layer in traced.layers)


def test_head_of_squeezenet_is_a_convolution() -> None:
    models = pytest.importorskip("torchvision.models")
    traced = trace(models.squeezenet1_1(weights=None), torch.zeros(1, 3, 64, 64), batch_sizes=(1,))
    assert traced.head_names == ("classifier.1",)


def test_sum_of_many_layers_has_no_head() -> None:
    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList([nn.Linear(8, 8) for _ in range(6)])

        def forward(self, x: Tensor) -> Tensor:
            for part in self.parts:
                x = x + part(x)
            return x

    assert trace(Features(), torch.zeros(2, 8), batch_sizes=(2,)).head_names == ()


def test_a_weight_whose_channels_run_along_both_dimensions_is_not_drawn() -> None:
    class BothWays(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 8))
            self.plain, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            mixed = nn.functional.linear(self.plain(x), self.weight) @ self.weight
            logits: Tensor = self.head(mixed.relu())
            return logits

    traced = trace(BothWays(), torch.zeros(2, 8), batch_sizes=(2,))
    assert [layer.name for layer in traced.layers] == ["plain"]
    assert "weight" in traced.not_drawn
