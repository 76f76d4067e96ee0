"""Models of torchvision by name.

Held by ``tests/planner/models/test_loading.py``.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlparse

import torch
from torch import nn

from trady.planner.errors import LoadingError
from trady.planner.models.example_inputs import InputSpec
from trady.planner.models.factories import (
    IMAGE_INPUT_CHANNELS,
    BuildOptions,
    Built,
    Preprocessing,
    WeightsOrigin,
    built_quietly,
    closest_name,
    import_package,
    without_weights,
)
from trady.planner.models.hub import can_reach, quick_network

_VIDEO_FRAMES: Final = 16


def build_torchvision(name: str, options: BuildOptions) -> Built:
    """A model of torchvision, with its weights where they can be had.

    Raises:
        LoadingError: There is no such model.
    """
    models = import_package("torchvision", "vision").models
    if name not in models.list_models():
        raise LoadingError(f"torchvision has no model {name!r}.{closest_name(name, models.list_models())}")
    weights = getattr(models.get_model_weights(name), "DEFAULT", None)
    extra = _torchvision_arguments(models.get_model_builder(name), options)
    built = Built(nn.Module(), options.origin(), specs=_torchvision_specs(weights))
    built.preprocessing = _torchvision_preprocessing(weights)
    if options.wants_weights and weights is not None:
        try:
            built.model = _fetch_torchvision(models, name, weights)
            built.weights = WeightsOrigin.PRETRAINED
            return built
        except Exception as error:
            built.notes.append(without_weights(f"torchvision:{name}", error))
    built.model = built_quietly(f"torchvision:{name}", lambda: models.get_model(name, weights=None, **extra), options)
    return built


def _fetch_torchvision(models: Any, name: str, weights: Any) -> nn.Module:
    host = urlparse(weights.url).hostname or ""
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(weights.url).path).name
    if not cached.exists() and not can_reach(host):
        raise LoadingError(f"{host} cannot be reached and {cached} does not exist")
    with quick_network(host):
        return models.get_model(name, weights=weights, progress=False)  # type: ignore[no-any-return]


def _torchvision_arguments(builder: Callable[..., Any], options: BuildOptions) -> dict[str, Any]:
    """What keeps a torchvision builder from fetching a backbone, or from warning about its initialisation."""
    parameters = inspect.signature(builder).parameters
    arguments: dict[str, Any] = {"weights_backbone": None} if "weights_backbone" in parameters else {}
    if builder.__name__ in ("inception_v3", "googlenet"):
        arguments["init_weights"] = False
    if options.num_classes is not None:
        arguments["num_classes"] = options.num_classes
    return arguments


def _torchvision_specs(weights: Any) -> list[InputSpec] | None:
    transforms = _transforms_of(weights)
    size = getattr(transforms, "crop_size", None)
    if not size or isinstance(size, int):
        return None
    frames = (_VIDEO_FRAMES,) if _is_video(transforms) else ()
    return [InputSpec((IMAGE_INPUT_CHANNELS, *frames, int(size[0]), int(size[-1])))]


def _is_video(transforms: Any) -> bool:
    return type(transforms).__name__ == "VideoClassification"


def _transforms_of(weights: Any) -> Any:
    return weights.transforms() if weights is not None else None


def _torchvision_preprocessing(weights: Any) -> Preprocessing | None:
    transforms = _transforms_of(weights)
    crop, resize = getattr(transforms, "crop_size", None), getattr(transforms, "resize_size", None)
    if not crop or not resize or isinstance(crop, int) or _is_video(transforms):
        return None
    return Preprocessing(
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        interpolation=str(transforms.interpolation.value),
        crop_fraction=min(1.0, crop[0] / resize[0]),
        source="torchvision",
    )
