"""Saved bytes of a trace against a real step watched by PyTorch's own hooks."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cases import TOYS
from grids import slow_but
from trady.planner.models.training_step import map_tensors
from trady.planner.tracing.tracing import trace

SOME = (
    "grouped",
    "transposed",
    "pools-and-dropout",
    "squeeze-excite",
    "branches",
    "mlp",
    "self-attention-dropout",
    "hand-attention",
    "tied-language-model",
    "weight-norm",
)
FEW = ("branches", "transposed", "pools-and-dropout", "self-attention-dropout")
WITH_NORMS = ("conv-bn-relu", "conv-bn-relu6-in-place", "conv1d", "residual", "residual-in-place")
PICTURES = (*WITH_NORMS[:2], *WITH_NORMS[3:], "depthwise-separable", "grouped", "squeeze-excite", "branches")
SLOW = (
    "torchvision:densenet121",
    "torchvision:googlenet",
    "torchvision:mobilenet_v2",
    "torchvision:resnet18",
    "torchvision:shufflenet_v2_x0_5",
    "torchvision:swin_t",
    "torchvision:lraspp_mobilenet_v3_large",
    "torchvision:r3d_18",
    "timm:convit_tiny",
    "timm:convnext_atto",
    "timm:efficientvit_b0",
    "timm:ghostnet_050",
    "timm:levit_128s",
    "timm:mobilevit_xxs",
    "timm:nf_resnet26",
    "timm:pvt_v2_b0",
    "timm:resnetv2_50x1_bit",
    "timm:vit_tiny_patch16_224",
    "timm:xcit_nano_12_p16_224",
    "transformers:bert",
    "transformers:llama",
    "transformers:mixtral",
    "transformers:swin",
    "transformers:t5",
    "transformers:vit",
)


@pytest.mark.parametrize("name", TOYS)
def test_saved_bytes_equal_what_autograd_keeps(name: str, cases: ModuleType, judges: ModuleType) -> None:
    net, inputs = cases.build(name)
    traced = trace(net, inputs)
    for batch_size in (1, 2, 5):
        batch = judges.at_batch(inputs, batch_size)
        assert traced.at(batch_size).saved_bytes == judges.bytes_kept_by_autograd(net, batch, norm="frozen")


@pytest.mark.parametrize("name", WITH_NORMS)
def test_norms_that_train_keep_their_statistics(name: str, cases: ModuleType, judges: ModuleType) -> None:
    net, inputs = cases.build(name)
    traced = trace(net, inputs, norm="train")
    assert traced.saved_bytes == judges.bytes_kept_by_autograd(net, inputs, norm="train")
    assert traced.saved_bytes > trace(net, inputs, norm="frozen", batch_sizes=(2,)).saved_bytes


@pytest.mark.parametrize(
    ("name", "dtype"),
    slow_but(lambda name, dtype: name in (FEW if dtype == "bfloat16" else FEW[:1]), SOME, ["bfloat16", "float16"]),
)
def test_model_in_half_precision(name: str, dtype: str, cases: ModuleType, judges: ModuleType) -> None:
    net, inputs = cases.build(name)
    predicted = trace(net, inputs, dtype=dtype, batch_sizes=(2,)).saved_bytes
    cast = map_tensors(lambda x: x.to(getattr(torch, dtype)) if x.is_floating_point() else x, inputs)
    assert predicted == judges.bytes_kept_by_autograd(net.to(getattr(torch, dtype)), cast, norm="frozen")


@pytest.mark.parametrize("name", slow_but({*FEW, "residual-in-place"}.__contains__, sorted({*SOME, *WITH_NORMS})))
def test_autocast_keeps_casts_and_statistics(name: str, cases: ModuleType, judges: ModuleType) -> None:
    net, inputs = cases.build(name)
    predicted = trace(net, inputs, amp="bfloat16", norm="train", batch_sizes=(2,)).saved_bytes
    assert predicted == judges.bytes_kept_by_autograd(net, inputs, norm="train", amp=torch.bfloat16)


@pytest.mark.parametrize("name", slow_but({"residual-in-place", "grouped", "branches"}.__contains__, PICTURES))
def test_channels_last(name: str, cases: ModuleType, judges: ModuleType) -> None:
    net, inputs = cases.build(name)
    predicted = trace(net, inputs, memory_format="channels_last", batch_sizes=(2,)).saved_bytes
    net, inputs = net.to(memory_format=torch.channels_last), inputs.contiguous(memory_format=torch.channels_last)
    assert predicted == judges.bytes_kept_by_autograd(net, inputs, norm="frozen")


@pytest.mark.parametrize(
    "name",
    slow_but({"branches"}.__contains__, ["conv-bn-relu", "branches", "encoder-layer", "tied-language-model"]),
)
def test_batch_of_64_is_read_off_the_line(name: str, cases: ModuleType, judges: ModuleType) -> None:
    net, inputs = cases.build(name)
    predicted = trace(net, inputs).at(64).saved_bytes
    assert predicted == judges.bytes_kept_by_autograd(net, judges.at_batch(inputs, 64), norm="frozen")


def test_loss_with_targets_of_its_own(cases: ModuleType, judges: ModuleType) -> None:
    net, inputs = cases.build("mlp")
    targets = torch.rand(2, 5)

    def soft_loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(outputs, targets)

    traced = trace(net, inputs, loss=soft_loss, targets=targets)
    assert traced.loss_name.endswith("soft_loss")
    assert traced.saved_bytes == judges.bytes_kept_by_autograd(net, inputs, loss=soft_loss, targets=targets)


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head, self.aside = nn.Linear(8, 8), nn.Linear(8, 5), nn.Linear(8, 64)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x).tanh()
        return self.head(x), self.aside(x.exp()).tanh().exp()


def test_branch_that_the_loss_does_not_read_is_not_counted(judges: ModuleType) -> None:
    net, inputs = TwoOutputs(), torch.randn(2, 8)
    assert trace(net, inputs, batch_sizes=(2,)).saved_bytes == judges.bytes_kept_by_autograd(net, inputs)


class TableOnDemand(nn.Module):
    """Makes its position table at the first forward, as a buffer in the place of another."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(1, 1), persistent=False)
        self.mix, self.head = nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        if self.table.shape[0] != x.shape[1]:
            self.table = torch.arange(x.shape[1] * 8, dtype=x.dtype).view(x.shape[1], 8)
        logits: Tensor = self.head((self.mix(x) * self.table).mean(1))
        return logits


class FoldedPatches(nn.Module):
    """Overlapping patches summed into a map whose positions a linear layer reads without a copy at batch 1."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, pictures: Tensor) -> Tensor:
        patches = nn.functional.unfold(self.embed(pictures), 3, padding=1, stride=2)
        folded = nn.functional.fold(patches, pictures.shape[2:], 3, padding=1, stride=2)
        logits: Tensor = self.head(self.mix(folded.permute(0, 2, 3, 1)).mean(dim=(1, 2)))
        return logits


@pytest.mark.parametrize("batch_size", [1, 4])
def test_fold_keeps_the_storage_of_its_columns(judges: ModuleType, batch_size: int) -> None:
    model, inputs = FoldedPatches(), torch.zeros(batch_size, 3, 8, 8)
    assert trace(model, inputs, norm="train").saved_bytes == judges.bytes_kept_by_autograd(model, inputs)


def test_table_made_at_the_first_forward_is_a_buffer(judges: ModuleType) -> None:
    inputs = torch.randn(2, 6, 8)
    predicted = trace(TableOnDemand(), inputs, batch_sizes=(2, 3)).saved_bytes
    assert predicted == judges.bytes_kept_by_autograd(TableOnDemand(), inputs)


CHANNELS = 8


class Mixed(nn.Module):
    """A network put together from drawn parts, all of ``[B, 8, 6, 6]``."""

    def __init__(self, parts: list[str]) -> None:
        super().__init__()
        self.parts = parts
        self.stem = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.modules_of_parts = nn.ModuleList([PARTS[part]() for part in parts])
        self.head = nn.Linear(CHANNELS, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = before = self.stem(x)
        for name, part in zip(self.parts, self.modules_of_parts, strict=True):
            x, before = JOINTS.get(name, _plain)(part, x, before), x
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def _plain(part: nn.Module, x: Tensor, _: Tensor) -> Tensor:
    return part(x)  # type: ignore[no-any-return]


def _add_in_place(part: nn.Module, x: Tensor, before: Tensor) -> Tensor:
    y: Tensor = part(x)
    y += before
    return y


def _halves(part: nn.Module, x: Tensor, _: Tensor) -> Tensor:
    left, right = part(x).chunk(2, dim=1)
    return torch.cat([left * right.sigmoid(), right], dim=1)


PARTS: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
    "depthwise": lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS, bias=False),
    "frozen": lambda: nn.Conv2d(CHANNELS, CHANNELS, 1).requires_grad_(False),
    "linear": lambda: nn.Sequential(nn.Flatten(2), nn.Linear(36, 36), nn.Unflatten(2, (6, 6))),
    "batch norm": lambda: nn.BatchNorm2d(CHANNELS),
    "group norm": lambda: nn.GroupNorm(2, CHANNELS),
    "relu": nn.ReLU,
    "relu in place": lambda: nn.ReLU(inplace=True),
    "relu6 in place": lambda: nn.ReLU6(inplace=True),
    "silu in place": lambda: nn.SiLU(inplace=True),
    "hardswish": nn.Hardswish,
    "gelu": nn.GELU,
    "sigmoid": nn.Sigmoid,
    "dropout": lambda: nn.Dropout(0.2),
    "max pool": lambda: nn.MaxPool2d(3, 1, 1),
    "average pool": lambda: nn.AvgPool2d(3, 1, 1),
    "add": lambda: nn.Conv2d(CHANNELS, CHANNELS, 1),
    "add in place": lambda: nn.Conv2d(CHANNELS, CHANNELS, 1),
    "multiply": nn.Tanh,
    "halves": nn.Softplus,
    "shuffle": lambda: nn.ChannelShuffle(2),
}
JOINTS: dict[str, Callable[[nn.Module, Tensor, Tensor], Tensor]] = {
    "add": lambda part, x, before: part(x) + before,
    "add in place": _add_in_place,
    "multiply": lambda part, x, before: part(x) * before,
    "halves": _halves,
}


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.lists(st.sampled_from(sorted(PARTS)), min_size=1, max_size=8),
    norm=st.sampled_from(["frozen", "train"]),
    batch_size=st.integers(1, 4),
)
def test_random_networks(judges: ModuleType, parts: list[str], norm: str, batch_size: int) -> None:
    net, inputs = Mixed(parts), torch.randn(batch_size, 3, 6, 6)
    try:
        real = judges.bytes_kept_by_autograd(net, inputs, norm=norm)
    except RuntimeError:
        return  # in place over what backward needs: PyTorch refuses such a network
    assert trace(net, inputs, norm=norm, batch_sizes=(batch_size,)).saved_bytes == real


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_zoo(name: str, zoo_member: Callable[[str], tuple[nn.Module, Any]], judges: ModuleType) -> None:
    net, inputs = zoo_member(name)
    traced = trace(net, inputs, norm="frozen")
    batch = judges.at_batch(inputs, 4)
    assert traced.at(4).saved_bytes == judges.bytes_kept_by_autograd(net, batch, norm="frozen")
