"""What a model is called with: shapes from text, from what the model carries, or from its first layer."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from trady.planner.errors import LoadingError
from trady.planner.models.training_step import Inputs

BATCH_SIZE: Final = 2
IMAGE_SIZE: Final = 224
VOLUME_SIZE: Final = 16
SEQUENCE_LENGTH: Final = 128
_SEED: Final = 0
_SHAPE_TEXT: Final = re.compile(r"(?:(?P<name>[A-Za-z_]\w*):)?(?P<sizes>\d+(?:[xX]\d+)*)")
_TOKENS: Final = "tokens"


@dataclass(frozen=True)
class InputSpec:
    """One input of a model, without its batch dimension.

    Args:
        shape: ``[C, H, W]`` of a picture, ``[T]`` of token ids.
        vocab_size: Number of token ids; ``None`` for floating-point inputs.
        name: Keyword argument it goes to; ``None`` by position.
    """

    shape: tuple[int, ...]
    vocab_size: int | None = None
    name: str | None = None

    def __str__(self) -> str:
        sizes = "x".join(map(str, self.shape))
        return f"{_TOKENS}:{sizes}" if self.vocab_size else sizes


def parse_input_specs(text: str, model: nn.Module | None = None) -> list[InputSpec]:
    """Read ``--input``: ``3x224x224``, ``tokens:128``, ``128``, several separated by commas.

    ``tokens:N`` is token ids, and so is a single number where the model embeds tokens first; otherwise a number is
    a feature size. ``name:3x64x64`` gives the keyword argument an input goes to: ids and masks by those endings.

    Args:
        text: What the user typed; sizes leave the batch dimension out.
        model: Says whether a bare number means tokens, and how many ids there are.

    Raises:
        LoadingError: The text is not a shape, a size is zero, or tokens are asked of a model without an embedding.
    """
    specs = [_parse_spec(part.strip(), text, model) for part in text.split(",")]
    named = [spec for spec in specs if spec.name]
    if named and len(named) < len(specs):
        raise LoadingError(f"Input {text!r} names only some of its inputs. Name all, as in 'a:3x64x64,b:10', or none.")
    return specs


def _parse_spec(part: str, text: str, model: nn.Module | None) -> InputSpec:
    match = _SHAPE_TEXT.fullmatch(part)
    if not match:
        raise LoadingError(
            f"Input {text!r} is not a shape ({part!r} cannot be read). "
            "Give sizes without the batch, for instance 3x224x224, tokens:128, or 3x224x224,10 for two inputs."
        )
    shape = tuple(int(size) for size in re.split("[xX]", match["sizes"]))
    if 0 in shape:
        raise LoadingError(f"Input {text!r} has a size of 0. Every size must be at least 1, for instance 3x224x224.")
    name = match["name"]
    if name == _TOKENS or (len(shape) == 1 and _takes_tokens(name, model)):
        vocab_size = vocab_size_of(model) if model is not None else 1
        if vocab_size is None:
            raise LoadingError(f"Input {text!r} asks for token ids, but the model has no embedding. Give 3x224x224.")
        return InputSpec(shape, vocab_size, None if name == _TOKENS else name)
    return InputSpec(shape, name=name)


def _takes_tokens(name: str | None, model: nn.Module | None) -> bool:
    if name is not None:
        return name.endswith("ids")
    return model is not None and isinstance(first_weighted_layer(model)[1], nn.Embedding)


def make_inputs(specs: list[InputSpec], batch_size: int = BATCH_SIZE) -> Inputs:
    """Deterministic synthetic inputs on the CPU: normal numbers, or token ids below the vocabulary's size.

    Returns:
        A tensor ``[B, ...]`` for one input, a tuple for several, a dict where they are named.
    """
    generator = torch.Generator().manual_seed(_SEED)
    with torch.device("cpu"):
        tensors = [_make_tensor(spec, batch_size, generator) for spec in specs]
    if specs[0].name:
        return {spec.name or "": tensor for spec, tensor in zip(specs, tensors, strict=True)}
    return tensors[0] if len(tensors) == 1 else tuple(tensors)


def _make_tensor(spec: InputSpec, batch_size: int, generator: torch.Generator) -> Tensor:
    shape = (batch_size, *spec.shape)
    if spec.vocab_size:
        return torch.randint(spec.vocab_size, shape, generator=generator)
    if spec.name is not None and spec.name.endswith("mask"):
        return torch.ones(shape, dtype=torch.long)
    return torch.randn(shape, generator=generator)


def infer_specs(model: nn.Module) -> tuple[list[InputSpec], str | None]:
    """The inputs a model expects, from what it carries, else from its first layer with weights.

    Returns:
        The inputs, and what was assumed, to be said aloud (``None`` where the model says it itself).

    Raises:
        LoadingError: Nothing in the model tells.
    """
    carried = _carried_shape(model)
    if carried is not None:
        return [InputSpec(carried)], None
    name, layer = first_weighted_layer(model)
    spec = None if layer is None else _spec_of_layer(layer)
    if spec is None:
        raise LoadingError(
            f"The input shape of {type(model).__name__} cannot be told from its layers. "
            "Give --input, for instance --input 3x224x224 or --input tokens:128."
        )
    return [spec], f"Input {spec} assumed from the first layer {name!r}; give --input to change it."


def _carried_shape(model: nn.Module) -> tuple[int, ...] | None:
    """``[C, H, W]`` by timm's pretrained configuration, or by the model's ``image_size``."""
    for attribute in ("pretrained_cfg", "default_cfg"):
        config = getattr(model, attribute, None)
        size = config.get("input_size") if isinstance(config, Mapping) else getattr(config, "input_size", None)
        if isinstance(size, tuple | list) and len(size) == 3:
            channels: Any = getattr(first_weighted_layer(model)[1], "in_channels", size[0])
            return (int(channels), int(size[1]), int(size[2]))
    side = getattr(model, "image_size", None)  # torchvision's vision transformers
    channels = getattr(first_weighted_layer(model)[1], "in_channels", None)
    return (channels, side, side) if isinstance(side, int) and isinstance(channels, int) else None


def first_weighted_layer(model: nn.Module) -> tuple[str, nn.Module | None]:
    """Name and module of the first convolution, linear or embedding, in the order of registration."""
    for name, module in model.named_modules():
        if _spec_of_layer(module) is not None:
            return name, module
    return "", None


def _spec_of_layer(layer: nn.Module) -> InputSpec | None:
    if isinstance(layer, nn.Embedding):
        return InputSpec((SEQUENCE_LENGTH,), layer.num_embeddings)
    if isinstance(layer, nn.Linear):
        return InputSpec((layer.in_features,))
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        return InputSpec((layer.in_channels, IMAGE_SIZE, IMAGE_SIZE))
    if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d):
        return InputSpec((layer.in_channels, SEQUENCE_LENGTH))
    if isinstance(layer, nn.Conv3d | nn.ConvTranspose3d):
        return InputSpec((layer.in_channels, VOLUME_SIZE, VOLUME_SIZE * 7, VOLUME_SIZE * 7))
    return None if not isinstance(layer, nn.RNNBase) else InputSpec((SEQUENCE_LENGTH, layer.input_size))


def vocab_size_of(model: nn.Module) -> int | None:
    """Number of token ids of a model: its configuration's, else its first embedding's."""
    config = getattr(model, "config", None)
    size = getattr(config, "vocab_size", None)
    if isinstance(size, int):
        return size
    return next((module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding)), None)


def is_transformers_model(model: nn.Module) -> bool:
    """Whether a module is transformers' own kind, told without importing transformers."""
    return any(base.__module__ == "transformers.modeling_utils" for base in type(model).__mro__)


def transformers_inputs(model: nn.Module, specs: list[InputSpec] | None, batch_size: int = BATCH_SIZE) -> Inputs:
    """Keyword arguments for a transformers model, with labels where its class computes its own loss from them.

    Args:
        model: A ``PreTrainedModel``.
        specs: What ``--input`` asked for; ``None`` takes the size its configuration gives.
        batch_size: Samples ``B``.
    """
    config: Any = getattr(model, "config", None)
    name = getattr(model, "main_input_name", "input_ids")
    spec = specs[0] if specs else _spec_of_config(config, name)
    if specs and (len(specs) > 1 or spec.name):
        return make_inputs(specs, batch_size)
    generator = torch.Generator().manual_seed(_SEED)
    with torch.device("cpu"):
        inputs: dict[str, Any] = {name: _make_tensor(spec, batch_size, generator)}
        if name == "input_ids":
            inputs["attention_mask"] = torch.ones_like(inputs[name])
        inputs.update(_decoder_inputs(model, inputs[name]))
        inputs.update(_labels(model, spec, batch_size, generator))
    return inputs


def _spec_of_config(config: Any, name: str) -> InputSpec:
    if name == "pixel_values":
        vision = getattr(config, "vision_config", config)
        size = getattr(vision, "image_size", None) or IMAGE_SIZE
        height, width = size if isinstance(size, tuple | list) else (size, size)
        return InputSpec((getattr(vision, "num_channels", 3) or 3, int(height), int(width)))
    if name == "input_ids":
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        longest = getattr(text, "max_position_embeddings", None) or SEQUENCE_LENGTH
        return InputSpec((min(SEQUENCE_LENGTH, int(longest)),), int(text.vocab_size))
    raise LoadingError(
        f"{type(config).__name__} takes {name!r}, whose shape cannot be told from the configuration. "
        f"Give --input, for instance --input {name}:80x3000."
    )


def _decoder_inputs(model: nn.Module, ids: Tensor) -> dict[str, Tensor]:
    """An encoder-decoder without a language head must be told what its decoder reads."""
    config: Any = getattr(model, "config", None)
    is_bare = type(model).__name__.endswith("Model")
    return {"decoder_input_ids": ids} if is_bare and getattr(config, "is_encoder_decoder", False) else {}


_TOKEN_LABELS: Final = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForMaskedLM")
_CLASS_LABELS: Final = ("ForSequenceClassification", "ForImageClassification")


def _labels(model: nn.Module, spec: InputSpec, batch_size: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Labels by the task the class is named after; empty for the others, whose loss is ours."""
    kind, config = type(model).__name__, getattr(model, "config", None)
    if kind.endswith(_TOKEN_LABELS) and spec.vocab_size:
        return {"labels": torch.randint(spec.vocab_size, (batch_size, *spec.shape), generator=generator)}
    if kind.endswith("ForTokenClassification"):
        num_labels = int(getattr(config, "num_labels", 2))
        return {"labels": torch.randint(num_labels, (batch_size, *spec.shape), generator=generator)}
    if kind.endswith(_CLASS_LABELS):
        return {"labels": torch.randint(int(getattr(config, "num_labels", 2)), (batch_size,), generator=generator)}
    return {}
