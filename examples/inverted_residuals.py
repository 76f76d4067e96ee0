"""MobileNetV2-like networks with batch norm folded into the convolutions: the three of the TraDy paper."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class BlockShape:
    """One inverted residual block: expand (1x1), depthwise, project (1x1)."""

    in_channels: int
    hidden_channels: int
    out_channels: int
    kernel_size: int
    stride: int
    residual: bool
    has_expand: bool

    @classmethod
    def from_description(cls, block: Mapping[str, Any]) -> Self:
        """Take the fields of this class from a block of an architecture's JSON."""
        return cls(**{field.name: block[field.name] for field in fields(cls)})


class InvertedResidual(nn.Module):
    """Expand, filter per channel, project; the sum with the input has no activation behind it."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        hidden = shape.hidden_channels
        self.residual = shape.residual
        self.expand = nn.Conv2d(shape.in_channels, hidden, 1) if shape.has_expand else None
        self.depthwise = nn.Conv2d(
            hidden, hidden, shape.kernel_size, shape.stride, (shape.kernel_size - 1) // 2, groups=hidden
        )
        self.project = nn.Conv2d(hidden, shape.out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, C, H, W]`` to ``[B, C', H', W']``."""
        y: Tensor = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.residual else y


class InvertedResidualNetwork(nn.Module):
    """A stem, blocks, the mean over positions and a linear classifier.

    There is no 1x1 convolution between the last block and the pooling: the int8 models of
    MIT's tiny-training, from which the weights come, have none.

    Args:
        stem_channels: Output channels of the 3x3 stem of stride 2.
        blocks: The blocks in order.
        num_classes: Outputs of the classifier.
    """

    def __init__(self, stem_channels: int, blocks: Sequence[BlockShape], num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, stem_channels, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(*map(InvertedResidual, blocks))
        self.classifier = nn.Linear(blocks[-1].out_channels, num_classes)

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> Self:
        """Build the network that an architecture's JSON describes, with random weights."""
        layers = description["layers"]
        blocks = [BlockShape.from_description(block) for block in layers["blocks"]]
        return cls(layers["stem"]["out_channels"], blocks, layers["classifier"]["out_features"])

    def forward(self, x: Tensor) -> Tensor:
        """Map pictures ``[B, 3, H, W]`` to logits ``[B, num_classes]``."""
        x = self.blocks(F.relu6(self.stem(x)))
        logits: Tensor = self.classifier(x.mean(dim=(2, 3)))
        return logits
