"""Toy nets, by name: small enough to compute their bytes by hand, odd enough to try every rule."""

from collections.abc import Callable
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

Example = tuple[nn.Module, Any]

PIXELS: Final = 8


def pictures(batch_size: int = 2, channels: int = 3) -> Tensor:
    return torch.randn(batch_size, channels, PIXELS, PIXELS)


def tokens(batch_size: int = 2, length: int = 6, features: int = 8) -> Tensor:
    return torch.randn(batch_size, length, features)


def ids(batch_size: int = 2, length: int = 6) -> Tensor:
    return torch.randint(16, (batch_size, length))


class Head(nn.Sequential):
    def __init__(self, channels: int, classes: int = 5) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class Residual(nn.Module):
    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.head = Head(8)
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out = self.norm(self.conv(F.relu(x)))
        if self.in_place:
            out += x
            logits: Tensor = self.head(F.relu_(out))
        else:
            logits = self.head(F.relu(out + x))
        return logits


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2)
        self.down, self.up = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.stem(x))
        gate = self.up(F.relu(self.down(x.mean((2, 3), keepdim=True))))
        logits: Tensor = self.head(x * F.hardsigmoid(gate))
        return logits


class Branches(nn.Module):
    """Branches that read one tensor, concatenated, shuffled and split again."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.three = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1)
        self.point = nn.Conv2d(4, 4, 1, bias=False)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([F.silu(self.one(x)), F.leaky_relu(self.three(x))], 1)
        x = x.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2)
        left, right = x.chunk(2, dim=1)
        logits: Tensor = self.head(torch.cat([left, self.point(right)], 1))
        return logits


class SelfAttention(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, dropout=dropout, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        logits: Tensor = self.head((x + self.attention(y, y, y, need_weights=False)[0]).mean(1))
        return logits


class CrossAttention(nn.Module):
    def __init__(self, value_dim: int | None = None) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 3, 8))
        self.embed = nn.Linear(8, 8)
        self.values = nn.Linear(8, value_dim or 8)
        self.attention = nn.MultiheadAttention(8, 2, vdim=value_dim, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        query = self.query.expand(len(x), -1, -1)
        logits: Tensor = self.head(self.attention(query, self.embed(x), self.values(x))[0].mean(1))
        return logits


class HandAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.head = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        weights = (query @ key.transpose(1, 2) / 8**0.5).softmax(-1)
        logits: Tensor = self.head(self.out(weights @ value)[:, 0])
        return logits


class TiedLanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 8)
        self.mix = nn.Linear(8, 8)
        self.head = nn.Linear(8, 16, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(F.gelu(self.mix(self.embed(x))))
        return logits


class UsedTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.mix(torch.tanh(self.mix(x))).mean(1))
        return logits


class BareParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.head = Head(4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(F.relu(F.conv2d(x, self.kernel)))
        return logits


class Experts(nn.Module):
    """Stacked weights, one matrix for each of two halves of the features."""

    def __init__(self) -> None:
        super().__init__()
        self.stacked = nn.Parameter(torch.randn(2, 8, 8))
        self.mix, self.head = nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.bmm(self.mix(x).flatten(0, 1).expand(2, -1, -1), self.stacked)
        logits: Tensor = self.head(both.sum(0).view_as(x).mean(1))
        return logits


class Distilled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head, self.head_dist = nn.Linear(8, 8), nn.Linear(8, 5), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.mix(x))
        logits: Tensor = (self.head(x[:, 0]) + self.head_dist(x[:, 1])) / 2
        return logits


class FromDict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.picture, self.text = nn.Conv2d(3, 4, 3), nn.Embedding(16, 4)
        self.head = nn.Linear(4, 5)

    def forward(self, pixel_values: Tensor, input_ids: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        seen = self.picture(pixel_values).relu().mean((2, 3))
        return {"logits": self.head(seen * self.text(input_ids).mean(1) * scale)}


def sequential(*modules: nn.Module, channels: int) -> nn.Module:
    return nn.Sequential(*modules, Head(channels))


TOYS: Final[dict[str, Callable[[], Example]]] = {
    "conv-bn-relu": lambda: (
        sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), channels=8),
        pictures(),
    ),
    "conv-bn-relu6-in-place": lambda: (
        sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU6(inplace=True), channels=8),
        pictures(),
    ),
    "depthwise-separable": lambda: (
        sequential(
            nn.Conv2d(3, 8, 1), nn.SiLU(True), nn.Conv2d(8, 8, 3, 2, 1, groups=8), nn.Conv2d(8, 6, 1), channels=6
        ),
        pictures(),
    ),
    "grouped": lambda: (
        sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.GELU(), nn.Conv2d(8, 12, 3, groups=4), channels=12),
        pictures(),
    ),
    "transposed": lambda: (
        sequential(nn.ConvTranspose2d(3, 6, 2, 2), nn.ELU(), nn.ConvTranspose2d(6, 4, 3, groups=2), channels=4),
        pictures(),
    ),
    "conv1d": lambda: (
        nn.Sequential(
            nn.Conv1d(6, 8, 3), nn.BatchNorm1d(8), nn.Mish(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(24, 5)
        ),
        tokens(),
    ),
    "conv3d": lambda: (
        nn.Sequential(nn.Conv3d(3, 4, 3), nn.Softplus(), nn.MaxPool3d(2), nn.Flatten(), nn.Linear(32, 5)),
        torch.randn(2, 3, 6, 6, 6),
    ),
    "pools-and-dropout": lambda: (
        sequential(
            nn.Conv2d(3, 8, 3),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.Dropout(0.3),
            nn.Conv2d(8, 8, 1),
            nn.AvgPool2d(3, 1),
            channels=8,
        ),
        pictures(),
    ),
    "upsampled": lambda: (
        sequential(nn.Conv2d(3, 4, 3), nn.Upsample(scale_factor=2, mode="bilinear"), nn.PReLU(4), channels=4),
        pictures(),
    ),
    "residual": lambda: (Residual(in_place=False), pictures()),
    "residual-in-place": lambda: (Residual(in_place=True), pictures()),
    "squeeze-excite": lambda: (SqueezeExcite(), pictures()),
    "branches": lambda: (Branches(), pictures()),
    "mlp": lambda: (
        nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.LayerNorm(16), nn.GELU("tanh"), nn.Linear(16, 5)),
        tokens(),
    ),
    "self-attention": lambda: (SelfAttention(), tokens()),
    "self-attention-dropout": lambda: (SelfAttention(dropout=0.1), tokens()),
    "cross-attention": lambda: (CrossAttention(), tokens()),
    "cross-attention-other-values": lambda: (CrossAttention(value_dim=4), tokens()),
    "hand-attention": lambda: (HandAttention(), tokens()),
    "encoder-layer": lambda: (
        nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True), nn.Flatten(), nn.Linear(48, 5)),
        tokens(),
    ),
    "tied-language-model": lambda: (TiedLanguageModel(), ids()),
    "used-twice": lambda: (UsedTwice(), tokens()),
    "bare-parameter": lambda: (BareParameter(), pictures()),
    "weight-norm": lambda: (
        nn.Sequential(weight_norm(nn.Linear(8, 8)), nn.ReLU(), nn.Flatten(), nn.Linear(48, 5)),
        tokens(),
    ),
    "stacked-experts": lambda: (Experts(), tokens()),
    "distilled": lambda: (Distilled(), tokens()),
    "dict-inputs": lambda: (FromDict(), {"pixel_values": pictures(), "input_ids": ids(), "scale": 2.0}),
}
#: Toys of every kind of layer and joint; the others vary these.
ONE_OF_EACH: Final = frozenset(
    {
        "conv-bn-relu6-in-place",
        "depthwise-separable",
        "grouped",
        "transposed",
        "conv1d",
        "conv3d",
        "pools-and-dropout",
        "residual-in-place",
        "squeeze-excite",
        "branches",
        "cross-attention",
        "encoder-layer",
        "tied-language-model",
        "used-twice",
        "bare-parameter",
        "stacked-experts",
        "dict-inputs",
    }
)
#: Toys without a layer to draw channels of.
UNDRAWN: Final = frozenset({"weight-norm"})


def build(name: str) -> Example:
    torch.manual_seed(0)
    return TOYS[name]()
