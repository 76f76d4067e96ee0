"""Lean operations against dense autograd: the same outputs and gradients, and nothing kept that need not be."""

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.testing import assert_close

from grids import slow_but
from trady.engine.optim.slice_geometry import SliceGeometry
from trady.engine.runtime.redirection import DrawnGroup, DrawnLayer, LeanMode, Redirections
from trady.planner.ledger.cost_records import LayerKind

aten = torch.ops.aten
Shape = tuple[int, ...]


@dataclass
class Weighted:
    """A call with a weight, dense and lean.

    Args:
        run: ``run(inputs, weight, bias)``.
        inputs: Shape of the input.
        weight: Shape of the weight.
        geometry: Where the weight's input channels lie.
        channels: The drawn ones.
        dim: The input's channel dimension.
        has_bias: Whether a bias is added.
        layout: Of the input.
        padded_to: Shape of what the convolution reads where that is padded first.
    """

    run: Callable[..., Tensor]
    inputs: Shape
    weight: Shape
    geometry: SliceGeometry
    channels: Sequence[int]
    dim: int
    has_bias: bool = True
    layout: torch.memory_format = torch.contiguous_format
    padded_to: Shape | None = None

    def tensors(self, dtype: torch.dtype) -> tuple[Tensor, nn.Parameter, nn.Parameter | None]:
        """Fresh input, weight and bias."""
        torch.manual_seed(0)
        outputs = self.geometry.out_channels
        bias = nn.Parameter(torch.randn(outputs, dtype=dtype)) if self.has_bias else None
        inputs = torch.randn(self.inputs, dtype=dtype).to(memory_format=self.layout)
        return inputs.requires_grad_(), nn.Parameter(torch.randn(self.weight, dtype=dtype)), bias

    @property
    def index(self) -> Tensor:
        """Drawn channels."""
        return torch.tensor(self.channels, dtype=torch.int32)

    def drawn(self, compact: Tensor, whole: bool = False) -> DrawnLayer:
        """The layer with these channels drawn; whether its input is kept whole anyway."""
        group = DrawnGroup(self.index, {}, (whole,) * 2)
        dim = self.geometry.channel_dim
        return DrawnLayer("layer", "layer.weight", dim, len(self.channels), compact, group)  # type: ignore[arg-type]


def convolution(
    dims: int,
    *,
    channels: int = 4,
    outputs: int = 6,
    kernel: Any = 3,
    groups: int = 1,
    transposed: bool = False,
    unbatched: bool = False,
    drawn: Sequence[int] = (2, 0),
    size: int = 5,
    has_bias: bool = True,
    layout: torch.memory_format = torch.contiguous_format,
    padded_to: Shape | None = None,
    run: Callable[..., Tensor] | None = None,
    **options: Any,
) -> Weighted:
    name = f"conv_transpose{dims}d" if transposed else f"conv{dims}d"
    kernels = (kernel,) * dims if isinstance(kernel, int) else kernel
    weight = (channels, outputs // groups) if transposed else (outputs, channels // groups)
    kind = LayerKind.TRANSPOSED_CONV if transposed else LayerKind.CONV
    if groups > 1 and not transposed:
        kind = LayerKind.DEPTHWISE_CONV if groups == channels else LayerKind.GROUPED_CONV
    spatial = tuple(range(size, size + dims))
    return Weighted(
        run or (lambda x, w, b: getattr(F, name)(x, w, b, groups=groups, **options)),
        (channels, *spatial) if unbatched else (2, channels, *spatial),
        (*weight, *kernels),
        SliceGeometry(kind, 0 if transposed else 1, channels, outputs, groups),
        drawn,
        0 if unbatched else 1,
        has_bias,
        layout,
        padded_to,
    )


CONVOLUTIONS = {
    "1d": convolution(1),
    "2d": convolution(2),
    "3d": convolution(3, size=3, channels=3, outputs=2),
    "no bias": convolution(2, has_bias=False),
    "all channels": convolution(2, drawn=(3, 1, 0, 2)),
    "strided, left-over positions": convolution(2, stride=2, size=6),
    "strided unevenly, padded": convolution(2, stride=(2, 3), padding=(1, 2), kernel=(3, 2), size=6),
    "dilated": convolution(2, dilation=2, padding=2),
    "point": convolution(2, kernel=1),
    "larger stride than kernel": convolution(2, kernel=1, stride=3, size=6),
    "same": convolution(2, padding="same", dilation=2),
    "same, even kernel": convolution(2, kernel=(2, 4), padding="same", padded_to=(2, 4, 6, 7)),
    "same, even kernel, 1d": convolution(1, kernel=4, padding="same", dilation=3, size=9, padded_to=(2, 4, 10)),
    "valid": convolution(2, padding="valid"),
    "grouped": convolution(2, channels=6, groups=2, drawn=(4, 0, 5)),
    "grouped 1d": convolution(1, channels=6, groups=3, drawn=(1, 4, 5), stride=2),
    "grouped 3d": convolution(3, channels=4, outputs=4, groups=2, drawn=(3,), kernel=2, size=3),
    "depthwise": convolution(2, channels=4, outputs=4, groups=4, padding=1),
    "depthwise, strided": convolution(2, channels=4, outputs=4, groups=4, stride=2, padding=1, size=6),
    "depthwise 1d": convolution(1, channels=4, outputs=4, groups=4, dilation=2),
    "depthwise 3d": convolution(3, channels=3, outputs=3, groups=3, kernel=2, size=3),
    "depthwise, multiplier": convolution(2, channels=4, outputs=12, groups=4, drawn=(3, 1, 0)),
    "transposed 1d": convolution(1, transposed=True, stride=2),
    "transposed": convolution(2, transposed=True, stride=2, padding=1, output_padding=1, size=3),
    "transposed 3d": convolution(3, transposed=True, channels=3, outputs=2, kernel=2, stride=2, size=2),
    "transposed, dilated": convolution(2, transposed=True, dilation=2, size=3),
    "transposed, grouped": convolution(2, transposed=True, groups=2, drawn=(3, 0, 1), stride=2, size=3),
    "transposed, depthwise": convolution(2, transposed=True, groups=4, outputs=4, size=3),
    "unbatched": convolution(2, unbatched=True),
    "unbatched 1d": convolution(1, unbatched=True, padding=1),
    "unbatched transposed": convolution(2, unbatched=True, transposed=True, size=3),
    "channels last": convolution(2, layout=torch.channels_last, padding=1),
    "channels last, depthwise": convolution(2, channels=4, outputs=4, groups=4, layout=torch.channels_last),
    "channels last, 3d": convolution(3, channels=3, outputs=2, size=3, layout=torch.channels_last_3d),
    "aten conv2d": convolution(2, run=lambda x, w, b: aten.conv2d.default(x, w, b, [2, 2], [1, 1])),
    "aten conv2d, padding by name": convolution(2, run=lambda x, w, b: aten.conv2d.padding(x, w, b, [1, 1], "same")),
    "aten conv1d": convolution(1, run=lambda x, w, b: aten.conv1d.default(x, w, b, [2], [1])),
    "aten convolution": convolution(
        2, run=lambda x, w, b: aten.convolution.default(x, w, b, [2, 1], [1, 0], [1, 1], False, [0, 0], 1)
    ),
    "aten transposed": convolution(
        2, transposed=True, size=3, run=lambda x, w, b: aten.conv_transpose2d.input(x, w, b, [2, 2], [1, 1], [1, 1])
    ),
    "torch.convolution": convolution(
        2, run=lambda x, w, b: torch.convolution(x, w, b, (1, 2), (0, 1), (1, 1), False, (0, 0), 1)
    ),
}


def product(
    run: Callable[..., Tensor],
    inputs: Shape = (3, 4),
    *,
    channels_first: bool = False,
    outputs: int = 5,
    has_bias: bool = True,
) -> Weighted:
    channels = inputs[-1]
    weight = (channels, outputs) if channels_first else (outputs, channels)
    geometry = SliceGeometry(LayerKind.LINEAR, 0 if channels_first else 1, channels, outputs, 1)
    return Weighted(run, inputs, weight, geometry, (2, 0), len(inputs) - 1, has_bias)


def without_bias(run: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda x, w, b: run(x, w)


PRODUCTS = {
    "linear": product(F.linear),
    "linear, no bias": product(F.linear, has_bias=False),
    "linear, one sample": product(F.linear, (4,)),
    "linear, tokens": product(F.linear, (2, 3, 4)),
    "linear, positions": product(F.linear, (2, 2, 3, 4)),
    "linear, one output": product(F.linear, (2, 3, 4), outputs=1),
    "linear, aten": product(aten.linear.default, (2, 3, 4)),
    "addmm": product(lambda x, w, b: torch.addmm(b, x, w), channels_first=True),
    "addmm, method": product(lambda x, w, b: b.addmm(x, w), channels_first=True),
    "addmm, aten": product(lambda x, w, b: aten.addmm.default(b, x, w), channels_first=True),
    "addmm, transposed": product(lambda x, w, b: torch.addmm(b, x, w.t())),
    "addmm, no bias": product(
        without_bias(lambda x, w: torch.addmm(torch.ones(()), x, w)), channels_first=True, has_bias=False
    ),
    "addmm, plus a matrix": product(
        without_bias(lambda x, w: torch.addmm(x.repeat(1, 2)[:, :5], x, w)), channels_first=True, has_bias=False
    ),
    "addmm, scaled": product(lambda x, w, b: torch.addmm(b, x, w, beta=0.5, alpha=2), channels_first=True),
    "@": product(without_bias(lambda x, w: x @ w), (2, 3, 4), channels_first=True, has_bias=False),
    "@, transposed": product(without_bias(lambda x, w: x @ w.t()), (2, 3, 4), has_bias=False),
    "@, mT": product(without_bias(lambda x, w: x @ w.mT), (2, 3, 4), has_bias=False),
    "matmul": product(without_bias(torch.matmul), channels_first=True, has_bias=False),
    "matmul, one sample": product(without_bias(torch.matmul), (4,), channels_first=True, has_bias=False),
    "matmul, method": product(without_bias(lambda x, w: x.matmul(w)), channels_first=True, has_bias=False),
    "mm": product(without_bias(torch.mm), channels_first=True, has_bias=False),
    "mm, aten": product(without_bias(aten.mm.default), channels_first=True, has_bias=False),
    "matmul, aten": product(without_bias(aten.matmul.default), (2, 3, 4), channels_first=True, has_bias=False),
    "rows apart": product(
        without_bias(lambda x, w: torch.cat([F.linear(x, w[:2]), F.linear(x, w[2:])], -1)), has_bias=False
    ),
    "rows apart, chunks": product(
        without_bias(lambda x, w: torch.cat([F.linear(x, part) for part in w.chunk(2)], -1)), (2, 3, 4), has_bias=False
    ),
    "columns apart": product(
        without_bias(lambda x, w: torch.cat([x @ w[:, :2], x @ w[:, 2:]], -1)), channels_first=True, has_bias=False
    ),
}
WEIGHTED = {**CONVOLUTIONS, **PRODUCTS}
#: One of each kind.
KINDS = {"1d", "2d", "3d", "grouped", "depthwise", "transposed", "unbatched", "channels last", "same, even kernel"}
KINDS |= {"aten convolution", "linear", "addmm", "@", "matmul, one sample", "mm", "rows apart", "columns apart"}


@contextlib.contextmanager
def kept_storages(*left_out: Tensor | None) -> Iterator[dict[int, int]]:
    """Storages that autograd packs inside -> bytes; but those of some tensors."""
    known = {tensor.untyped_storage()._cdata for tensor in left_out if tensor is not None}
    found: dict[int, int] = {}
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            alive.append(storage)
            found[storage._cdata] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found


def lean(*layers: tuple[DrawnLayer, Tensor]) -> LeanMode:
    return LeanMode(Redirections(layers))


def gradient_like(outputs: Tensor) -> Tensor:
    torch.manual_seed(1)
    return torch.randn_like(outputs)


def dense_gradients(case: Weighted, dtype: torch.dtype) -> tuple[Tensor, list[Tensor | None]]:
    """Output; gradients of input, drawn slice and bias."""
    inputs, weight, bias = case.tensors(dtype)
    outputs = case.run(inputs, weight, bias)
    outputs.backward(gradient_like(outputs))
    assert weight.grad is not None
    return outputs, [
        inputs.grad,
        case.geometry.gather(weight.grad, case.index),
        None if bias is None else bias.grad,
    ]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(
    ("name", "whole"), slow_but(lambda name, whole: not whole or name in KINDS, WEIGHTED, [False, True])
)
def test_a_drawn_layer_has_the_dense_gradients_and_keeps_its_channels(name: str, whole: bool) -> None:
    case = WEIGHTED[name]
    expected, gradients = dense_gradients(case, torch.float32)
    inputs, weight, bias = case.tensors(torch.float32)
    weight.requires_grad_(False)
    compact = nn.Parameter(case.geometry.gather(weight, case.index))
    layer = case.drawn(compact, whole)
    with lean((layer, weight)), kept_storages(weight) as kept:
        outputs = case.run(inputs, weight, bias)
    assert_close(outputs, expected, rtol=1e-6, atol=1e-6)
    outputs.backward(gradient_like(outputs))
    assert_close([inputs.grad, compact.grad, None if bias is None else bias.grad], gradients, rtol=1e-4, atol=1e-5)
    read = case.padded_to or case.inputs
    channels = read[case.dim] if whole else len(case.channels)
    stored = 4 * math.prod(read) // read[case.dim] * channels
    assert sum(kept.values()) == stored + 4 * len(case.channels)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", WEIGHTED)
def test_a_frozen_layer_passes_the_dense_gradients_and_keeps_nothing(name: str) -> None:
    case = WEIGHTED[name]
    expected, gradients = dense_gradients(case, torch.float32)
    inputs, weight, bias = case.tensors(torch.float32)
    weight.requires_grad_(False)
    with lean(), kept_storages(weight) as kept:
        outputs = case.run(inputs, weight, bias)
    assert_close(outputs, expected, rtol=1e-6, atol=1e-6)
    outputs.backward(gradient_like(outputs))
    assert_close([inputs.grad, None if bias is None else bias.grad], gradients[::2], rtol=1e-4, atol=1e-5)
    assert not kept and weight.grad is None


@pytest.mark.parametrize("name", slow_but(KINDS.__contains__, WEIGHTED))
def test_upstream_of_what_trains_nothing_requires_a_gradient(name: str) -> None:
    case = WEIGHTED[name]
    inputs, weight, bias = (tensor if tensor is None else tensor.detach() for tensor in case.tensors(torch.float32))
    assert weight is not None
    with lean(), kept_storages() as kept:
        outputs = case.run(inputs, weight, bias)
    assert not outputs.requires_grad and not kept


@pytest.mark.parametrize("name", slow_but(KINDS.__contains__, WEIGHTED))
def test_an_always_trained_layer_trains_whole(name: str) -> None:
    case = WEIGHTED[name]
    inputs, weight, bias = case.tensors(torch.float32)
    with lean():
        outputs = case.run(inputs, weight, bias)
    outputs.backward(gradient_like(outputs))
    assert weight.grad is not None
    _, gradients = dense_gradients(case, torch.float32)
    assert_close([inputs.grad, case.geometry.gather(weight.grad, case.index)], gradients[:2], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", slow_but(KINDS.__contains__, WEIGHTED))
def test_gradients_are_those_of_the_function_itself(name: str) -> None:
    case = WEIGHTED[name]
    inputs, weight, bias = case.tensors(torch.float64)
    compact = case.geometry.gather(weight, case.index).requires_grad_()

    def run(inputs: Tensor, compact: Tensor, *bias: Tensor) -> Tensor:
        whole = weight.detach().clone()
        case.geometry.scatter_(whole, case.index, compact.detach())
        with lean((case.drawn(compact), whole)):
            return case.run(inputs, whole, *(bias or (None,)))

    def run_frozen(inputs: Tensor, *bias: Tensor) -> Tensor:
        with lean():
            return case.run(inputs, weight.detach(), *(bias or (None,)))

    biases = () if bias is None else (bias.detach().requires_grad_(),)
    assert torch.autograd.gradcheck(run, (inputs, compact, *biases), fast_mode=True)
    assert torch.autograd.gradcheck(run_frozen, (inputs, *biases), fast_mode=True)


@pytest.mark.parametrize("name", ["2d", "depthwise", "grouped", "transposed", "linear, tokens", "addmm", "@"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_in_half_precision(name: str, dtype: torch.dtype) -> None:
    case = WEIGHTED[name]
    _, gradients = dense_gradients(case, dtype)
    inputs, weight, bias = case.tensors(dtype)
    weight.requires_grad_(False)
    compact = nn.Parameter(case.geometry.gather(weight, case.index))
    with lean((case.drawn(compact), weight)):
        outputs = case.run(inputs, weight, bias)
    outputs.backward(gradient_like(outputs))
    found = [inputs.grad, compact.grad, None if bias is None else bias.grad]
    assert all(grad is None or grad.dtype == dtype for grad in found)
    assert_close(found, gradients, rtol=3e-2, atol=3e-1)


@pytest.mark.parametrize("name", ["2d", "depthwise", "transposed", "unbatched", "linear, tokens", "addmm", "@", "mm"])
@pytest.mark.parametrize("is_drawn", [True, False], ids=["drawn", "frozen"])
def test_autocast_casts_weights_again_in_backward(name: str, is_drawn: bool) -> None:
    case = WEIGHTED[name]
    inputs, weight, bias = case.tensors(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = case.run(inputs, weight, bias)
    expected.backward(gradient_like(expected))
    gradients = [inputs.grad, weight.grad, None if bias is None else bias.grad]
    inputs, weight, bias = case.tensors(torch.float32)
    weight.requires_grad_(False)
    compact = nn.Parameter(case.geometry.gather(weight, case.index))
    layers = [(case.drawn(compact), weight)] if is_drawn else []
    with torch.autocast("cpu", dtype=torch.bfloat16), lean(*layers), kept_storages(weight) as kept:
        outputs = case.run(inputs, weight, bias)
    assert outputs.dtype == torch.bfloat16
    assert_close(outputs, expected, rtol=1e-2, atol=1e-2)
    outputs.backward(gradient_like(outputs))
    assert inputs.grad is not None and inputs.grad.dtype == torch.float32
    assert_close([inputs.grad, None if bias is None else bias.grad], gradients[::2], rtol=3e-2, atol=2e-1)
    if is_drawn:
        assert compact.grad is not None and compact.grad.dtype == torch.float32
        assert gradients[1] is not None
        assert_close(compact.grad, case.geometry.gather(gradients[1], case.index), rtol=3e-2, atol=2e-1)
        stored = 2 * inputs.numel() // inputs.shape[case.dim] * len(case.channels)
        assert sum(kept.values()) == stored + 4 * len(case.channels)
    else:
        assert not kept


def test_gpt2s_conv1d_is_a_linear_layer() -> None:
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    case = product(F.linear, (2, 3, 4), channels_first=True)
    layer = pytorch_utils.Conv1D(5, 4)
    inputs = torch.randn(2, 3, 4, requires_grad=True)
    gradient = torch.randn(2, 3, 5)
    layer(inputs).backward(gradient)
    expected = case.geometry.gather(layer.weight.grad, case.index)
    layer.requires_grad_(False)
    compact = nn.Parameter(case.geometry.gather(layer.weight, case.index))
    with lean((case.drawn(compact), layer.weight)):
        layer(inputs).backward(gradient)
    assert_close(compact.grad, expected)


class Attention(nn.Module):
    """Packed attention; the query apart from keys and values where it crosses."""

    def __init__(self, crosses: bool, **options: Any) -> None:
        super().__init__()
        self.attention, self.crosses = nn.MultiheadAttention(8, 2, **options), crosses
        self.need_weights = True

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        found: Tensor
        weights: Tensor | None
        found, weights = self.attention(
            x, y if self.crosses else x, y if self.crosses else x, need_weights=self.need_weights
        )
        return found if weights is None else found * weights.mean()


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("crosses", [False, True], ids=["self", "cross"])
@pytest.mark.parametrize("bias", [False, True])
def test_packed_attention_projections(crosses: bool, batch_first: bool, need_weights: bool, bias: bool) -> None:
    torch.manual_seed(0)
    model = Attention(crosses, batch_first=batch_first, bias=bias)
    model.need_weights = need_weights
    x, y = torch.randn(3, 3, 8, requires_grad=True), torch.randn(3, 3, 8)
    model(x, y).square().sum().backward()
    names = ("in_proj_weight", "out_proj.weight")
    weights = [model.attention.get_parameter(name) for name in names]
    index = torch.tensor([5, 0, 3], dtype=torch.int32)
    geometries = [SliceGeometry(LayerKind.LINEAR, 1, 8, outputs, 1) for outputs in (24, 8)]
    wanted = [
        geometry.gather(weight.grad, index)
        for geometry, weight in zip(geometries, weights, strict=True)
        if weight.grad is not None
    ]
    expected, x.grad = x.grad, None
    model.requires_grad_(False)
    compacts = [
        nn.Parameter(geometry.gather(weight, index)) for geometry, weight in zip(geometries, weights, strict=True)
    ]
    layers = [
        (DrawnLayer(name, name, 1, 3, compact, DrawnGroup(index, {}, ())), weight)
        for name, compact, weight in zip(names, compacts, weights, strict=True)
    ]
    with lean(*layers):
        outputs = model(x, y)
    outputs.square().sum().backward()
    assert_close([compact.grad for compact in compacts], wanted, rtol=1e-4, atol=1e-5)
    assert_close(x.grad, expected)


Function = Callable[[Tensor], Tensor]
#: With one bit per element.
MASKED: dict[str, Function] = {
    "relu": F.relu,
    "relu, in place": lambda x: F.relu(x, inplace=True),
    "relu, torch": torch.relu,
    "relu, method": lambda x: x.relu(),
    "relu_": F.relu_,
    "relu_, method": lambda x: x.relu_(),
    "relu, aten": aten.relu.default,
    "relu_, aten": aten.relu_.default,
    "relu, module": nn.ReLU(inplace=True),
    "relu6": F.relu6,
    "relu6, in place": nn.ReLU6(inplace=True),
    "hardtanh": F.hardtanh,
    "hardtanh, bounds": lambda x: F.hardtanh(x, -0.3, 0.7),
    "hardtanh, in place": nn.Hardtanh(-0.3, 0.7, inplace=True),
    "hardtanh_": F.hardtanh_,
    "hardtanh, aten": lambda x: aten.hardtanh.default(x, 0, 6),
    "hardtanh_, aten": lambda x: aten.hardtanh_.default(x, 0.0, 6.0),
    "leaky_relu": F.leaky_relu,
    "leaky_relu, slope": lambda x: F.leaky_relu(x, 0.2),
    "leaky_relu, no slope": lambda x: F.leaky_relu(x, 0.0),
    "leaky_relu, in place": nn.LeakyReLU(0.2, inplace=True),
    "leaky_relu_": F.leaky_relu_,
    "leaky_relu, aten": lambda x: aten.leaky_relu.default(x, 0.3),
    "leaky_relu_, aten": aten.leaky_relu_.default,
    "dropout": F.dropout,
    "dropout, share": lambda x: F.dropout(x, 0.2),
    "dropout, in place": nn.Dropout(0.3, inplace=True),
    "dropout, torch": lambda x: torch.dropout(x, 0.3, True),
    "dropout, aten": lambda x: aten.dropout.default(x, 0.3, True),
}
#: Keeping nothing.
SHAPES_ONLY: dict[str, Function] = {
    "average": nn.AvgPool2d(2),
    "average, strided": lambda x: F.avg_pool2d(x, (3, 2), (1, 2), padding=1),
    "average, ceil": nn.AvgPool2d(2, ceil_mode=True),
    "average, padding left out": nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "average, divisor": nn.AvgPool2d(2, divisor_override=3),
    "average, aten": lambda x: aten.avg_pool2d.default(x, [2, 2]),
    "average 1d": lambda x: F.avg_pool1d(x.flatten(2), 3, 2, 1, True, False),
    "average 1d, aten": lambda x: aten.avg_pool1d.default(x.flatten(2), [3]),
    "average 3d": lambda x: F.avg_pool3d(x.unsqueeze(1), 2, 1),
    "average, one sample": lambda x: F.avg_pool2d(x[0], 2),
    "adaptive": nn.AdaptiveAvgPool2d(3),
    "adaptive, one side": nn.AdaptiveAvgPool2d((None, 2)),
    "adaptive, one position": nn.AdaptiveAvgPool2d(1),
    "adaptive 1d": lambda x: F.adaptive_avg_pool1d(x.flatten(2), 4),
    "adaptive 1d, one position": lambda x: F.adaptive_avg_pool1d(x.flatten(2), 1),
    "adaptive 3d": lambda x: F.adaptive_avg_pool3d(x.unsqueeze(1), (2, 3, 3)),
    "adaptive, aten": lambda x: aten.adaptive_avg_pool2d.default(x, [2, 2]),
    "dropout, evaluating": lambda x: F.dropout(x, 0.5, training=False),
    "dropout, nothing": lambda x: F.dropout(x, 0.0),
}
#: With the place of the maximum.
POOLS: dict[str, Function] = {
    "2d": nn.MaxPool2d(2),
    "2d, overlapping": nn.MaxPool2d(3, 2, 1),
    "2d, uneven": lambda x: F.max_pool2d(x, (3, 2), (1, 2), (1, 0)),
    "2d, ceil": nn.MaxPool2d(2, ceil_mode=True),
    "2d, dilated": nn.MaxPool2d(2, 1, 1, dilation=2),
    "2d, one sample": lambda x: F.max_pool2d(x[0], 2),
    "2d, torch": lambda x: torch.max_pool2d(x, 2),
    "2d, aten": lambda x: aten.max_pool2d.default(x, [2, 2]),
    "2d, aten with indices": lambda x: aten.max_pool2d_with_indices.default(x, [3, 3], [2, 2], [1, 1])[0],
    "1d": lambda x: F.max_pool1d(x.flatten(2), 3),
    "1d, ceil, dilated": lambda x: F.max_pool1d(x.flatten(2), 3, 2, 1, 2, True),
    "1d, one sample": lambda x: F.max_pool1d(x[0].flatten(1), 2),
    "3d": lambda x: F.max_pool3d(x.unsqueeze(1), 2, 1),
    "3d, ceil, padded": lambda x: F.max_pool3d(x.unsqueeze(1), (2, 3, 2), 2, (1, 1, 0), 1, True),
    "3d, dilated": lambda x: F.max_pool3d(x.unsqueeze(1), 2, 1, 1, 2),
}


def tensor(
    *shape: int, dtype: torch.dtype = torch.float32, layout: torch.memory_format = torch.contiguous_format
) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(shape, dtype=dtype).to(memory_format=layout).requires_grad_()


def step(function: Function, inputs: Tensor, mode: Any) -> tuple[Tensor, Tensor, Tensor | None, int]:
    """Output, its gradient, the input's, and bytes kept."""
    torch.manual_seed(2)
    with mode, kept_storages() as kept:
        outputs = function(inputs * 1.0)
    given = gradient_like(outputs)
    outputs.backward(given)
    return outputs.detach(), given, inputs.grad, sum(kept.values())


LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
SHAPES = {"7 x 5": (2, 3, 7, 5), "a multiple of 8": (2, 4, 6, 6), "empty": (0, 3, 6, 6), "one": (1, 1, 6, 6)}
#: Of one channel there is no window of two.
VOLUMES = [name for name in (*SHAPES_ONLY, *POOLS) if name in ("average 3d", "3d", "3d, dilated")]


#: Of these every shape in every layout; of the others one shape in each layout.
EVERYWHERE = {"relu", "hardtanh", "leaky_relu, in place", "dropout", "average", "adaptive", "1d", "2d", "3d"}
ONCE = {("7 x 5", "contiguous"), ("a multiple of 8", "channels last")}


@pytest.mark.parametrize(
    ("name", "shape", "layout"),
    slow_but(
        lambda name, shape, layout: name in EVERYWHERE or (shape, layout) in ONCE,
        [*MASKED, *SHAPES_ONLY, *POOLS],
        SHAPES,
        LAYOUTS,
    ),
)
def test_activations_and_pools_are_pytorchs_own(name: str, shape: str, layout: str) -> None:
    function = {**MASKED, **SHAPES_ONLY, **POOLS}[name]
    if ("one sample" in name and shape == "empty") or (name in VOLUMES and shape == "one"):
        pytest.skip("no such input")
    size, how = SHAPES[shape], LAYOUTS[layout]
    outputs, _, gradient, _ = step(function, tensor(*size, layout=how), contextlib.nullcontext())
    found, _, found_gradient, kept = step(function, tensor(*size, layout=how), lean())
    assert_close(found, outputs, rtol=0, atol=0)
    assert found.stride() == outputs.stride() or shape == "empty"
    assert_close(found_gradient, gradient)
    if name in MASKED:
        assert kept == (outputs.numel() + 7) // 8
    else:
        assert kept == (outputs.numel() if name in POOLS else 0)


@pytest.mark.parametrize("name", [*MASKED, *SHAPES_ONLY, *POOLS])
def test_activations_and_pools_in_double_and_half_precision(name: str) -> None:
    function = {**MASKED, **SHAPES_ONLY, **POOLS}[name]

    def run(inputs: Tensor) -> Tensor:
        torch.manual_seed(0)
        with lean():
            return function(inputs * 1.0)

    assert torch.autograd.gradcheck(run, (tensor(1, 3, 5, 5).detach().double().requires_grad_(),), fast_mode=True)
    if name in VOLUMES and name in SHAPES_ONLY:
        return  # PyTorch has no such average on the CPU
    half = tensor(2, 3, 6, 6).detach().bfloat16()
    outputs, _, gradient, _ = step(function, half.clone().requires_grad_(), contextlib.nullcontext())
    found, _, found_gradient, _ = step(function, half.clone().requires_grad_(), lean())
    assert found.dtype == torch.bfloat16
    assert_close([found, found_gradient], [outputs, gradient], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name", [*MASKED, *SHAPES_ONLY, *POOLS])
def test_where_nothing_requires_a_gradient_nothing_changes(name: str) -> None:
    function = {**MASKED, **SHAPES_ONLY, **POOLS}[name]
    inputs = tensor(2, 3, 6, 6).detach()
    torch.manual_seed(0)
    expected = function(inputs.clone())
    torch.manual_seed(0)
    with lean(), kept_storages() as kept:
        found = function(inputs.clone())
    assert_close(found, expected, rtol=0, atol=0)
    assert not found.requires_grad and not kept


def test_a_pool_gives_its_indices() -> None:
    inputs = tensor(2, 3, 6, 6)
    outputs, indices = F.max_pool2d(inputs, 2, return_indices=True)
    with lean():
        found, places = F.max_pool2d(inputs, 2, return_indices=True)
        module = nn.MaxPool1d(2, return_indices=True)(inputs.flatten(2))
    assert_close((found, places), (outputs, indices))
    assert_close(module, F.max_pool1d_with_indices(inputs.flatten(2), [2]))
    (gradient,) = torch.autograd.grad(F.max_unpool2d(found, places, [2, 2]).sum(), inputs)
    assert_close(gradient, torch.autograd.grad(F.max_unpool2d(outputs, indices, [2, 2]).sum(), inputs)[0])


def test_a_large_window_takes_two_bytes_and_one_without_a_maximum_none() -> None:
    inputs = tensor(1, 2, 40, 40)
    expected = torch.autograd.grad(F.max_pool2d(inputs, 17, 1).square().sum(), inputs)
    with lean(), kept_storages() as kept:
        outputs = F.max_pool2d(inputs, 17, 1)
    assert sum(kept.values()) == 2 * outputs.numel()
    assert_close(torch.autograd.grad(outputs.square().sum(), inputs), expected)
    single = tensor(1, 2, 1, 1)
    with lean():
        outputs = F.max_pool2d(single, 2, 1, 1, dilation=2)
    outputs.sum().backward()
    assert outputs.isneginf().all() and single.grad is not None and not single.grad.any()


@pytest.mark.parametrize("function", [F.relu_, F.hardtanh_, F.leaky_relu_, lambda x: F.dropout(x, 0.4, inplace=True)])
@pytest.mark.parametrize(
    "view", [lambda x: x[:, 1:3], lambda x: x.view(2, -1), lambda x: x[:, ::2, 1:].transpose(1, 2)]
)
def test_in_place_on_a_view(function: Function, view: Function) -> None:
    def run(inputs: Tensor) -> Tensor:
        function(view(inputs))
        return inputs * inputs

    outputs, _, gradient, _ = step(run, tensor(2, 4, 5, 5), contextlib.nullcontext())
    found, _, found_gradient, _ = step(run, tensor(2, 4, 5, 5), lean())
    assert_close([found, found_gradient], [outputs, gradient])


def test_an_output_that_is_changed_in_place_later() -> None:
    def run(inputs: Tensor) -> Tensor:
        kept = torch.relu(inputs)
        return kept.add_(1).mul_(2)

    inputs = tensor(2, 3)
    outputs, given, gradient, _ = step(run, inputs, lean())
    assert_close(outputs, (torch.relu(inputs) + 1) * 2)
    assert_close(gradient, torch.where(inputs > 0, 2 * given, 0.0))


NORMS: dict[str, tuple[type[nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d], tuple[int, ...]]] = {
    "1d": (nn.BatchNorm1d, (6, 4)),
    "1d, sequence": (nn.BatchNorm1d, (2, 4, 5)),
    "2d": (nn.BatchNorm2d, (2, 4, 3, 5)),
    "3d": (nn.BatchNorm3d, (2, 4, 2, 3, 2)),
}


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_frozen_batch_norm_keeps_nothing(name: str, affine: bool, dtype: torch.dtype) -> None:
    kind, shape = NORMS[name]
    norm = kind(4, affine=affine)
    for value in norm.state_dict().values():
        value.copy_(torch.rand_like(value, dtype=torch.float32) + 0.5)
    norm.to(dtype).eval().requires_grad_(False)
    inputs = tensor(*shape).detach().to(dtype).requires_grad_()
    outputs, _, gradient, _ = step(norm, inputs.detach().requires_grad_(), contextlib.nullcontext())
    found, _, found_gradient, _ = step(norm, inputs.detach().requires_grad_(), lean())
    assert_close(found, outputs, rtol=0, atol=0)
    assert_close(found_gradient, gradient)
    with lean(), kept_storages(*norm.parameters(), *norm.buffers()) as kept:
        norm(inputs)
        aten.batch_norm.default(
            inputs, norm.weight, norm.bias, norm.running_mean, norm.running_var, False, 0.1, 1e-5, False
        )
    assert not kept


@pytest.mark.parametrize("why", ["training", "affine", "no statistics"])
def test_a_batch_norm_that_trains_is_pytorchs_own(why: str) -> None:
    norm = nn.BatchNorm2d(4, track_running_stats=why != "no statistics").train(why == "training")
    norm.requires_grad_(why == "affine")
    twin = copy.deepcopy(norm)
    outputs, _, gradient, expected = step(norm, tensor(2, 4, 3, 3), contextlib.nullcontext())
    found, _, found_gradient, kept = step(twin, tensor(2, 4, 3, 3), lean())
    assert_close([found, found_gradient], [outputs, gradient])
    assert_close(
        [parameter.grad for parameter in twin.parameters()], [parameter.grad for parameter in norm.parameters()]
    )
    assert_close(list(twin.buffers()), list(norm.buffers()))
    assert kept == expected


def test_a_group_stores_what_its_layers_share_once() -> None:
    inputs = tensor(2, 6, 5, 5)
    index = torch.tensor([4, 0, 2], dtype=torch.int32)
    group = DrawnGroup(index, {}, ())
    convs = [nn.Conv2d(6, 3, 1).requires_grad_(False) for _ in range(3)]
    geometry = SliceGeometry(LayerKind.CONV, 1, 6, 3, 1)
    layers = [
        DrawnLayer(str(count), "", 1, count, nn.Parameter(geometry.gather(conv.weight, index[:count])), group)
        for count, conv in zip((1, 3, 2), convs, strict=True)
    ]
    weights = [conv.weight for conv in convs]
    with lean(*zip(layers, weights, strict=True)), kept_storages(*weights) as kept:
        outputs = sum(conv(inputs) for conv in convs)
    assert sorted(kept.values()) == [4 * 3, 4 * 3 * 50]
    gradient = torch.randn(2, 3, 5, 5)
    outputs.backward(gradient)
    for layer, conv in zip(layers, convs, strict=True):
        weight = conv.weight.detach().requires_grad_()
        F.conv2d(inputs.detach(), weight).backward(gradient)
        assert weight.grad is not None
        assert_close(layer.compact.grad, geometry.gather(weight.grad, index[: layer.number]))


def test_two_views_of_one_tensor_are_two_inputs() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(3, 3, 4, requires_grad=True)
    weight = nn.Parameter(torch.randn(5, 4))

    def run(weight: Tensor) -> Tensor:
        return F.linear(inputs, weight).square().sum() + F.linear(inputs.transpose(0, 1), weight)[0].sum()

    run(weight).backward()
    index = torch.tensor([1, 3], dtype=torch.int32)
    geometry = SliceGeometry(LayerKind.LINEAR, 1, 4, 5, 1)
    assert weight.grad is not None
    expected = geometry.gather(weight.grad, index)
    weight.requires_grad_(False)
    compact = nn.Parameter(geometry.gather(weight, index))
    with lean((DrawnLayer("", "", 1, 2, compact, DrawnGroup(index, {}, ())), weight)):
        run(weight).backward()
    assert_close(compact.grad, expected)


def test_gradients_of_gradients_are_refused() -> None:
    inputs = tensor(1, 2, 3, 3)
    with lean():
        outputs = F.relu(F.conv2d(inputs, torch.ones(2, 2, 1, 1))).square().sum()
    (gradient,) = torch.autograd.grad(outputs, inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
