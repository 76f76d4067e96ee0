"""What the benchmark of the engine trains: nine networks, each with its batch. Nothing is downloaded."""

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from trady.planner.models import Batch, Inputs, call_model, map_tensors

EXAMPLES: Final = Path(__file__).resolve().parents[2] / "examples"
_TOKENS: Final = 128


@dataclass(frozen=True)
class Subject:
    """A model to train.

    Args:
        name: As the table shows it.
        build: Makes the module.
        inputs: Makes a batch of the given size.
        blocks: Pattern of the module paths that a user would checkpoint, one by one.
        batch_size: Samples of a step.
        has_weights: Whether the weights are trained ones; norms of random networks are given the batch's statistics.
        like_relu: Whether its activations are of the ReLU kind, whose gradient needs one bit per element.
        unused: Pattern of parameters that the model's forward never reads.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], Inputs]
    blocks: str
    batch_size: int = 8
    has_weights: bool = False
    like_relu: bool = False
    unused: str = field(default="(?!)")

    def block_names(self, model: nn.Module) -> Iterator[str]:
        """Paths of the modules to checkpoint."""
        return (name for name, _ in model.named_modules() if re.fullmatch(self.blocks, name))

    def batch(self, model: nn.Module) -> Batch:
        """The batch every row of this model trains on, with random labels."""
        generator = torch.Generator().manual_seed(0)
        inputs = self.inputs(self.batch_size)
        with torch.no_grad():
            classes = call_model(model.eval(), map_tensors(lambda tensor: tensor[:1], inputs)).shape[1]
        return Batch(inputs, torch.randint(classes, (self.batch_size,), generator=generator))


def subjects() -> tuple[Subject, ...]:
    """All models, in the order of the table."""
    stages = r"features\.(?:0|2|4|6|[1357]\.\d+)"
    return (
        Subject(
            "mbv2-w0.35",
            _paper("mbv2_w035"),
            _pictures(128),
            r"blocks\.\d+",
            has_weights=True,
            like_relu=True,
        ),
        Subject(
            "mcunet-5fps",
            _paper("mcunet_5fps"),
            _pictures(128),
            r"blocks\.\d+",
            has_weights=True,
            like_relu=True,
        ),
        Subject("MobileNetV2", _torchvision("mobilenet_v2"), _pictures(224), r"features\.\d+", like_relu=True),
        Subject("ResNet-50", _torchvision("resnet50"), _pictures(224), r"layer\d\.\d+", like_relu=True),
        Subject("EfficientNet-B0", _torchvision("efficientnet_b0"), _pictures(224), r"features\.(?:0|8|[1-7]\.\d+)"),
        Subject("ConvNeXt-T", _torchvision("convnext_tiny"), _pictures(224), stages),
        Subject("ViT-S", _timm("vit_small_patch16_224"), _pictures(224), r"blocks\.\d+"),
        Subject("Swin-T", _torchvision("swin_t"), _pictures(224), stages),
        Subject(
            "MiniLM",
            _paper("minilm_classifier"),
            _sentences,
            r"encoder\.encoder\.layer\.\d+",
            batch_size=16,
            has_weights=True,
            unused=r"encoder\.pooler\..*",
        ),
    )


def subject_named(name: str) -> Subject:
    """One model by its name."""
    return {subject.name: subject for subject in subjects()}[name]


def built(subject: Subject, memory_format: torch.memory_format) -> tuple[nn.Module, Batch]:
    """The module and its batch in a memory format, the same at every call."""
    torch.manual_seed(0)
    model = subject.build()
    batch = subject.batch(model)

    def formatted(tensor: Tensor) -> Tensor:
        return tensor.contiguous(memory_format=memory_format) if tensor.dim() == 4 else tensor

    model = model.to(memory_format=memory_format)
    batch = Batch(map_tensors(formatted, batch.inputs), batch.targets)
    if not subject.has_weights:
        settle_norms(model, batch)
    return model, batch


def settle_norms(model: nn.Module, batch: Batch) -> None:
    """Give running statistics the batch's own: otherwise signals of random networks die out in frozen norms.

    They would become denormal numbers, which a CPU multiplies many times slower.
    """
    norms: list[Any] = [module for module in model.modules() if getattr(module, "running_mean", None) is not None]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    model.train()
    with torch.no_grad():
        call_model(model, batch.inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _paper(factory: str) -> Callable[[], nn.Module]:
    return lambda: paper_network(factory)


def paper_network(factory: str) -> nn.Module:
    """What a function of ``examples/paper_networks.py`` builds: a network with its ImageNet weights."""
    if str(EXAMPLES) not in sys.path:
        sys.path.insert(0, str(EXAMPLES))
    model: nn.Module = getattr(importlib.import_module("paper_networks"), factory)()[0]
    return model


def _torchvision(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model: nn.Module = getattr(importlib.import_module("torchvision.models"), name)(weights=None)
        return model

    return build


def _timm(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model: nn.Module = importlib.import_module("timm").create_model(name, pretrained=False)
        return model

    return build


def _pictures(pixels: int) -> Callable[[int], Inputs]:
    def inputs(batch_size: int) -> Inputs:
        return torch.randn(batch_size, 3, pixels, pixels, generator=torch.Generator().manual_seed(0))

    return inputs


def _sentences(batch_size: int) -> Inputs:
    """Random words, a quarter of the sentences padded from the middle on."""
    words = torch.randint(1000, 30522, (batch_size, _TOKENS), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(words)
    mask[::4, _TOKENS // 2 :] = 0
    return {"input_ids": words * mask, "attention_mask": mask}
