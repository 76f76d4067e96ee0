"""Multiply-adds: our rule against fvcore on real tensors, kind by kind."""

import warnings
from collections.abc import Callable

import pytest
import torch
import torchvision
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn

from grids import slow_but
from trady.planner.costs.macs import MacsKind, MacsSource, forward_macs
from trady.planner.tracing.tracing import trace

CONV, PRODUCT = MacsKind.CONVOLUTION, MacsKind.MATRIX_PRODUCT


class Attention(nn.Module):
    """Two products of activations, spelled out."""

    def forward(self, rows: Tensor) -> Tensor:
        return (rows @ rows.transpose(1, 2)).softmax(-1) @ rows


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.1)
        self.head = nn.Linear(32, 5)

    def forward(self, rows: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layer(rows).mean(1))
        return logits


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(), (1, 3, 64, 64)),
    "resnet18": (lambda: torchvision.models.resnet18(), (1, 3, 64, 64)),
    "vit": (lambda: torchvision.models.VisionTransformer(32, 8, 2, 2, 32, 64), (1, 3, 32, 32)),
    "vgg11": (lambda: torchvision.models.vgg11(), (1, 3, 64, 64)),
    "encoder": (Encoder, (1, 7, 32)),
    "plain attention": (lambda: nn.Sequential(nn.Linear(6, 6), Attention(), nn.Linear(6, 3)), (1, 5, 6)),
    "transposed": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 8, 3, groups=2), nn.ConvTranspose2d(8, 6, 2, stride=2), nn.Flatten(), nn.LazyLinear(3)
        ),
        (1, 4, 8, 8),
    ),
    "one dimension": (lambda: nn.Sequential(nn.Conv1d(4, 8, 3, stride=2), nn.Flatten(), nn.LazyLinear(3)), (1, 4, 9)),
}


@pytest.mark.parametrize("name", slow_but(lambda name: name not in ("resnet18", "vgg11"), NETS))
def test_our_rule_and_fvcore_count_the_same_by_kind(name: str) -> None:
    build, shape = NETS[name]
    net, inputs = build(), torch.randn(shape)
    net.eval()(inputs)
    counted = forward_macs(net, inputs)
    ruled = forward_macs(net.to("meta"), inputs)
    for kind in (CONV, PRODUCT):
        assert counted.macs.get(kind) == ruled.macs.get(kind)
        if kind in counted.macs:
            assert counted.sources[kind] is MacsSource.FVCORE
    assert set(ruled.sources.values()) == {MacsSource.RULE}
    assert counted.total == ruled.total


def test_attention_is_ours_and_exact() -> None:
    """Queries by keys and weights by values: 4 heads of 7 x 7 x 8, twice."""
    found = forward_macs(Encoder(), torch.randn(1, 7, 32))
    assert found.macs[MacsKind.ATTENTION] == 2 * 4 * 7 * 7 * 8
    assert found.sources[MacsKind.ATTENTION] is MacsSource.RULE


def test_the_first_sample_counts_and_a_trace_can_be_given() -> None:
    net, inputs = torchvision.models.resnet18(), torch.randn(3, 3, 64, 64)
    one = forward_macs(net, inputs[:1])
    assert forward_macs(net, inputs) == forward_macs(net, inputs, traced=trace(net, inputs)) == one
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fvcore = FlopCountAnalysis(net.eval(), inputs[:1]).unsupported_ops_warnings(False).by_operator()
    assert one.macs == {CONV: fvcore["conv"], PRODUCT: fvcore["linear"]}


def test_the_model_is_left_as_it_was_and_nothing_warns() -> None:
    net = torchvision.models.mobilenet_v2().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.random.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        forward_macs(net, torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    assert net.training and all(module.training for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_keyword_inputs_and_outputs_in_a_dict() -> None:
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(11, 6), nn.Linear(6, 3)

        def forward(self, input_ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
            return {"logits": self.head((self.embedding(input_ids) * mask[..., None]).mean(1))}

    found = forward_macs(Text(), {"input_ids": torch.ones(2, 5, dtype=torch.long), "mask": torch.ones(2, 5)})
    assert found.macs == {PRODUCT: 18} and found.sources == {PRODUCT: MacsSource.FVCORE}


def test_recurrent_kernels_are_named() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 3)

        def forward(self, rows: Tensor) -> Tensor:
            logits: Tensor = self.head(self.lstm(rows)[0][:, -1])
            return logits

    found = forward_macs(Recurrent(), torch.randn(1, 5, 4))
    assert found.macs[PRODUCT] >= 18
    assert found.uncounted == ("lstm:aten::mkldnn_rnn_layer",) or found.total > 5 * 4 * 24
