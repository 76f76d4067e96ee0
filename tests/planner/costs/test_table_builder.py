"""Cost tables of toy nets, every byte worked out by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tables import backward_macs
from trady.planner.costs.table_builder import build_cost_table
from trady.planner.ledger import BatchedLedger
from trady.planner.ledger.cost_records import Upstream
from trady.planner.ledger.cost_rules import (
    attention_macs,
    conv_channel_cost,
    conv_macs,
    gradient_norm_per_cost,
    linear_channel_cost,
    matmul_macs,
    transposed_conv_channel_cost,
)
from trady.planner.ledger.cost_table import CostTable
from trady.planner.ledger.lines import Ledger, Lines
from trady.planner.options import DType, OptimizerKind
from trady.planner.tracing.tracing import trace

BATCH = 3


def two_convolutions() -> nn.Module:
    """8x8 images: conv 3->4, ReLU, conv 4->5, ReLU, mean, linear head 5->2."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 5, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 2),
    )


def table_of(
    net: nn.Module,
    inputs: Tensor,
    optimizer: OptimizerKind = OptimizerKind.SGD,
    *,
    dtype: DType | None = None,
    train_bias: bool = False,
    train: tuple[str, ...] = (),
    head: str = "auto",
    norm: str = "frozen",
) -> CostTable:
    traced = trace(net, inputs, batch_sizes=(inputs.shape[0],), train=train, head=head, norm=norm)
    return build_cost_table(traced, traced.layers, optimizer=optimizer, dtype=dtype, train_bias=train_bias)


def images(*shape: int) -> Tensor:
    return torch.zeros(BATCH, *shape)


def lines(ledger: Ledger) -> dict[str, int]:
    return {name: value for name, value in ledger.lines.model_dump().items() if value is not None}


POSITIONS = BATCH * 8 * 8
HEAD_INPUT = BATCH * 5 * 4  # the mean's output, which the head stores
LOG_SOFTMAX = BATCH * 2 * 4  # what cross-entropy keeps: its log-probabilities ...
LOSS_WEIGHT = 4  # ... and the total weight of the targets


@pytest.mark.parametrize(
    ("optimizer", "per_element", "per_tensor"),
    [
        (OptimizerKind.SGD, 0, 0),
        (OptimizerKind.SINKGD, 0, 0),
        (OptimizerKind.MOMENTUM, 1, 0),
        (OptimizerKind.ADAM, 2, 4),
        (OptimizerKind.ADAMW, 2, 4),
    ],
)
def test_the_ledger_of_two_convolutions(optimizer: OptimizerKind, per_element: int, per_tensor: int) -> None:
    table = table_of(two_convolutions(), images(3, 8, 8), optimizer)
    first, second = table.layers
    assert (first.name, first.in_channels, first.weight_elements, first.sample_elements) == ("0", 3, 36, 64)
    assert (second.name, second.in_channels, second.weight_elements, second.sample_elements) == ("2", 4, 45, 64)

    head = (2 * 5 + 2) * 4
    always = head * (1 + per_element) + 2 * per_tensor + HEAD_INPUT
    loss = LOG_SOFTMAX + LOSS_WEIGHT
    frozen = lines(BatchedLedger(table).of((0, 0)))
    assert frozen == {
        "gradients": 0,
        "saved_activations": 0,
        "optimizer_state": 0,
        "draw_index": 0,
        "active_weights": 0,
        "always_trained": always,
        "residuals": loss,
        "weights": (3 * 36 + 4 + 4 * 45 + 5) * 4 + head,
        "inputs": BATCH * 3 * 64 * 4 + BATCH * 8,
    }

    late = lines(BatchedLedger(table).of((0, 2)))
    assert late["gradients"] == late["active_weights"] == 2 * 45 * 4
    assert late["saved_activations"] == 2 * POSITIONS * 4
    assert late["optimizer_state"] == 2 * 45 * 4 * per_element + per_tensor
    assert late["draw_index"] == 2 * 4
    assert late["always_trained"] == always
    mask_after_second = BATCH * 5 * 64 // 8
    assert late["residuals"] == loss + mask_after_second

    both = lines(BatchedLedger(table).of((1, 2)))
    mask_after_first = BATCH * 4 * 64 // 8
    assert both["gradients"] == (36 + 2 * 45) * 4
    assert both["saved_activations"] == 2 * POSITIONS * 4, (
        "the first convolution reads the batch, which is there anyway"
    )
    assert both["draw_index"] == 3 * 4
    assert both["residuals"] == loss + mask_after_first + mask_after_second


def test_scopes_add_up_their_lines() -> None:
    found = BatchedLedger(table_of(two_convolutions(), images(3, 8, 8), OptimizerKind.ADAM)).of((1, 2))
    update = 126 * 4 + 2 * POSITIONS * 4 + 126 * 8 + 2 * 4 + 3 * 4
    assert found.scopes.update == update
    got = found.lines
    assert found.scopes.training == update + got.active_weights + got.always_trained + got.residuals
    assert found.scopes.peak is None
    whole = Ledger.of(Lines(**got.model_dump() | {"workspace": 1000}))
    assert whole.scopes.peak == found.scopes.training + got.weights + got.inputs + 1000


def test_int8_charges_one_byte_an_element_and_four_a_bias() -> None:
    net, inputs = two_convolutions(), images(3, 8, 8)
    table = table_of(net, inputs, dtype=DType.INT8, train_bias=True)
    found = BatchedLedger(table).of((0, 2))
    assert (found.lines.gradients, found.lines.saved_activations) == (2 * 45, 2 * POSITIONS)
    assert [layer.bias_bytes for layer in table.layers] == [4 * 4, 5 * 4]


@pytest.mark.parametrize(("optimizer", "state"), [(OptimizerKind.SGD, 0), (OptimizerKind.ADAM, 8 * 5 + 4)])
def test_a_trained_bias_costs_its_gradient_and_state_while_its_layer_trains(
    optimizer: OptimizerKind, state: int
) -> None:
    net, inputs = two_convolutions(), images(3, 8, 8)
    tables = (table_of(net, inputs, optimizer, train_bias=flag) for flag in (True, False))
    with_bias, without = (BatchedLedger(table) for table in tables)
    assert with_bias.of((0, 0)) == without.of((0, 0))
    more = with_bias.of((0, 1)).lines.always_trained - without.of((0, 1)).lines.always_trained
    assert more == 5 * 4 + state
    assert with_bias.of((0, 1)).scopes.update == without.of((0, 1)).scopes.update


def test_half_precision_halves_elements_but_not_indices() -> None:
    net = two_convolutions()
    traced = trace(net, images(3, 8, 8), batch_sizes=(BATCH,), dtype="bfloat16")
    table = build_cost_table(traced, traced.layers, optimizer=OptimizerKind.MOMENTUM)
    found = BatchedLedger(table).of((0, 2)).lines
    assert (found.gradients, found.optimizer_state, found.draw_index) == (2 * 45 * 2, 2 * 45 * 2, 8)
    assert found.saved_activations == 2 * POSITIONS * 2


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(6, 6, bias=False) for _ in range(3))
        self.first = nn.Linear(6, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, rows: Tensor) -> Tensor:
        rows = self.first(rows)
        weights = (self.query(rows) @ self.key(rows).transpose(1, 2)).softmax(-1)
        logits: Tensor = self.head((weights @ self.value(rows)).mean(dim=1))
        return logits


def test_layers_that_read_one_tensor_store_it_once() -> None:
    """Queries, keys and values of 5 tokens: the widest draw is stored, each pays its own gradient."""
    table = table_of(SelfAttention(), images(5, 6))
    names = [layer.name for layer in table.layers]
    assert names == ["first", "query", "key", "value"]
    assert len({layer.group for layer in table.layers[1:]}) == 1
    found = BatchedLedger(table).of((0, 2, 4, 1)).lines
    assert found.saved_activations == 4 * BATCH * 5 * 4
    assert found.draw_index == 4 * 4
    assert found.gradients == (2 + 4 + 1) * 6 * 4
    apart = BatchedLedger(table).of((0, 2, 4, 1), {table.layers[1].group: 6}).lines
    assert apart.saved_activations == 6 * BATCH * 5 * 4, "draws that are not nested store their union"


class Gated(nn.Module):
    """The second linear layer's input is read by a GELU too, which keeps it whole once anything before it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, rows: Tensor) -> Tensor:
        rows = self.first(rows.tanh())
        logits: Tensor = self.head(F.gelu(rows) * self.second(rows))
        return logits


def test_an_input_that_is_kept_anyway_costs_no_activation() -> None:
    table = table_of(Gated(), images(6))
    alone, both = BatchedLedger(table).of((0, 3)).lines, BatchedLedger(table).of((1, 3)).lines
    assert alone.saved_activations == 3 * BATCH * 4
    assert both.saved_activations == 1 * BATCH * 4, "only the first layer's: the GELU keeps the second one's"
    assert both.residuals >= alone.residuals + BATCH * 8 * 4


class Spatial(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.grouped = nn.Conv2d(8, 12, 3, groups=4)
        self.depthwise = nn.Conv2d(12, 12, 3, groups=12)
        self.multiplied = nn.Conv2d(12, 24, 1, groups=12)
        self.transposed = nn.ConvTranspose2d(24, 6, 2, stride=2)
        self.grouped_back = nn.ConvTranspose2d(6, 4, 2, groups=2)
        self.head = nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.multiplied(self.depthwise(self.grouped(self.first(inputs))))
        logits: Tensor = self.head(self.grouped_back(self.transposed(features)).mean(dim=(2, 3)))
        return logits


def test_channels_of_every_kind_of_convolution() -> None:
    """Images 8x8 shrink to 6x6, 4x4 and grow to 8x8, 9x9. MACs of a channel times channels are the whole layer's."""
    layers = {layer.name: layer for layer in table_of(Spatial(), images(3, 8, 8)).layers}
    expected = {
        # weight elements, input elements, channels, positions the kernel is applied at
        "first": (8, 64, 3, 64),
        "grouped": (3 * 9, 64, 8, 36),
        "depthwise": (9, 36, 12, 16),
        "multiplied": (2, 16, 12, 16),
        "transposed": (6 * 4, 16, 24, 16),
        "grouped_back": (2 * 4, 64, 6, 64),
    }
    for name, (weights, inputs, channels, positions) in expected.items():
        layer = layers[name]
        assert (layer.weight_elements, layer.sample_elements, layer.in_channels) == (weights, inputs, channels), name
        assert layer.weight_grad_macs == weights * positions * BATCH, name
        assert layer.forward_macs == channels * weights * positions * BATCH, name
        assert layer.weight_elements * channels == Spatial().get_parameter(f"{name}.weight").numel(), name


def test_a_weight_used_twice_stores_both_inputs() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, rows: Tensor) -> Tensor:
            logits: Tensor = self.head(self.body(self.body(rows.tanh()).tanh()))
            return logits

    table = table_of(Twice(), images(6))
    (layer,) = table.layers
    assert layer.sample_elements == 2 and layer.forward_macs == 2 * BATCH * 36
    found = BatchedLedger(table).of((2,)).lines
    assert found.gradients == 2 * 6 * 4
    assert found.saved_activations == 2 * BATCH * 4, "the second tanh keeps its output, which is the second input"


def test_patterns_of_parameters_that_always_train() -> None:
    net, inputs = two_convolutions(), images(3, 8, 8)
    table = table_of(net, inputs, train=("2.*",))
    assert [layer.name for layer in table.layers] == ["0"]
    plain = table_of(net, inputs)
    more = BatchedLedger(table).of((0,)).lines.always_trained - BatchedLedger(plain).of((0, 0)).lines.always_trained
    assert more == (4 * 45 + 5) * 4 + BATCH * 4 * 64 * 4, "gradients, and the whole input of the second convolution"


def test_backward_macs_count_drawn_gradients_and_the_way_to_them() -> None:
    table = table_of(two_convolutions(), images(3, 8, 8))
    second, head = POSITIONS * 4 * 45, BATCH * 10
    nothing, late, early = (backward_macs(table, counts) for counts in ((0, 0), (0, 1), (1, 0)))
    assert late == nothing + head + 45 * POSITIONS, "the head passes its gradient on; one channel of the second"
    assert early == nothing + head + second + 36 * POSITIONS
    assert sum(operation.macs for operation in table.operations) == POSITIONS * (3 * 36 + 4 * 45) + head


def test_dense_figures_are_those_of_autograd() -> None:
    net, inputs = two_convolutions(), torch.randn(BATCH, 3, 8, 8)
    table = table_of(net, inputs, OptimizerKind.ADAM)
    optimizer = torch.optim.Adam(net.parameters())
    F.cross_entropy(net(inputs), torch.tensor([0, 1, 0])).backward()
    optimizer.step()
    gradients = [parameter.grad for parameter in net.parameters()]
    assert table.dense_gradient_bytes == sum(g.numel() * g.element_size() for g in gradients if g is not None)
    state = [value for entry in optimizer.state.values() for value in entry.values()]
    assert table.dense_optimizer_bytes == sum(value.numel() * value.element_size() for value in state)


@pytest.mark.parametrize("bits", [0, 1, 0b1011, 0b111000, 1 << 70 | 3])
def test_upstreams_survive_their_ranges(bits: int) -> None:
    assert Upstream.from_bits(bits, always=False).bits == bits


def test_rules_by_counting_elements() -> None:
    """Each figure is the size of a tensor PyTorch makes."""
    conv = nn.Conv2d(8, 12, (3, 5), groups=4)
    outputs = conv(torch.zeros(2, 8, 9, 11))
    cost = conv_channel_cost(tuple(conv.weight.shape), outputs[:, 0].numel(), 2 * 99, 4)
    assert cost.weight_elements * 8 == conv.weight.numel()
    assert cost.activation_elements * 8 == 2 * 8 * 99
    assert cost.weight_grad_macs * 8 == conv_macs(tuple(conv.weight.shape), outputs[:, 0].numel())
    back = transposed_conv_channel_cost((6, 4, 2, 2), 10)
    assert (back.weight_elements, back.activation_elements, back.weight_grad_macs) == (16, 10, 160)
    row = linear_channel_cost(7, 5)
    assert (row.weight_elements, row.activation_elements, row.weight_grad_macs) == (7, 5, 35)
    assert matmul_macs((2, 3, 4), (2, 4, 5)) == 2 * 3 * 4 * 5
    assert attention_macs((2, 3, 4, 5), (2, 3, 6, 5), (2, 3, 6, 7)) == 2 * 3 * 4 * 6 * (5 + 7)
    assert gradient_norm_per_cost(10.0, 3, 2.0) == 2.0
