"""The pretrained networks of the asset folder, as factories for ``trady-plan``.

    cd examples
    trady-plan --budget 256KB paper_networks:mbv2_w035

Each factory returns the network with its weights and two examples to trace it with. The folder is
``TRADY_ASSETS``, by default ``../shared/assets`` beside the repository. The three networks of the
paper expect pictures as ``(uint8 - 127.5) / 127.5``, RGB, 128 pixels.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from efficientnet_lite0 import EfficientNetLite0, example_pictures
from inverted_residuals import InvertedResidualNetwork
from minilm import EncoderShape, SentenceClassifier, SentenceEncoder
from resnet20 import ResNet20
from safetensors.torch import load_file
from torch import Tensor

TextInputs = dict[str, Tensor]


def assets_directory() -> Path:
    """Where the weights and data lie: ``TRADY_ASSETS``, or ``shared/assets`` beside the repository."""
    default = Path(__file__).resolve().parents[2] / "shared" / "assets"
    return Path(os.environ.get("TRADY_ASSETS", default))


def describe(name: str) -> dict[str, Any]:
    """Read the architecture's JSON, for instance of ``"mbv2-w0.35"``."""
    description: dict[str, Any] = json.loads(_weights_file(f"{name}.json").read_text(encoding="utf-8"))
    return description


def read_weights(name: str) -> dict[str, Tensor]:
    """Read the network's tensors as float32, whatever they are stored as."""
    tensors = load_file(_weights_file(f"{name}.safetensors"))
    return {key: tensor.float() for key, tensor in tensors.items()}


def _weights_file(name: str) -> Path:
    path = assets_directory() / "weights" / name
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: set TRADY_ASSETS to the folder that holds weights/{name}.")
    return path


def _inverted_residual_network(name: str) -> tuple[InvertedResidualNetwork, Tensor]:
    description = describe(name)
    model = InvertedResidualNetwork.from_description(description)
    model.load_state_dict(read_weights(name))
    return model, example_pictures(description["input"]["resolution"])


def mbv2_w035() -> tuple[InvertedResidualNetwork, Tensor]:
    """MobileNetV2 of width 0.35, 51 convolutions, ImageNet."""
    return _inverted_residual_network("mbv2-w0.35")


def mcunet_5fps() -> tuple[InvertedResidualNetwork, Tensor]:
    """MCUNet "5fps", 42 convolutions, ImageNet."""
    return _inverted_residual_network("mcunet-5fps")


def proxyless_w03() -> tuple[InvertedResidualNetwork, Tensor]:
    """ProxylessNAS of width 0.3, 60 convolutions, ImageNet."""
    return _inverted_residual_network("proxyless-w0.3")


def efficientnet_lite0() -> tuple[EfficientNetLite0, Tensor]:
    """EfficientNet-Lite0, ImageNet; ``efficientnet_lite0.py`` has the same weights from pip."""
    model = EfficientNetLite0()
    model.load_state_dict(read_weights("efficientnet-lite0"))
    return model, example_pictures()


def resnet20_cifar10() -> tuple[ResNet20, Tensor]:
    """ResNet-20, CIFAR-10; wants the ImageNet mean and deviation."""
    model = ResNet20()
    model.load_state_dict(read_weights("resnet20-cifar10"))
    return model, example_pictures(32)


def minilm_l6_h384() -> tuple[SentenceEncoder, TextInputs]:
    """MiniLM, 6 layers of 384: sentence vectors, no classifier."""
    model = SentenceEncoder(EncoderShape.from_description(describe("minilm-l6-h384")["config"]))
    model.load_state_dict(read_weights("minilm-l6-h384"))
    return model, example_sentences()


def minilm_classifier() -> tuple[SentenceClassifier, TextInputs]:
    """MiniLM with an untrained head for two classes, the same at every call."""
    encoder, inputs = minilm_l6_h384()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SentenceClassifier(encoder, encoder.embeddings.word_embeddings.embedding_dim, num_classes=2), inputs


def example_sentences() -> TextInputs:
    """Two sentences of random words, ``[CLS] .. [SEP]``, the second with padding: ids and mask, ``[2, 32]``."""
    words = torch.randint(1000, 30522, (2, 32), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(words)
    mask[1, 20:] = 0
    words[:, 0] = 101
    words[0, 31] = words[1, 19] = 102
    return {"input_ids": words * mask, "attention_mask": mask}
