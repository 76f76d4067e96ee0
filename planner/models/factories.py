"""Build models by name: torchvision, timm, transformers, or a function of the user's."""

import difflib
import importlib
import inspect
import json
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlparse

import torch
from torch import nn

from trady.planner.errors import LoadingError
from trady.planner.models.example_inputs import InputSpec
from trady.planner.models.hub import can_reach, hub_host, quick_network
from trady.planner.models.training_step import Inputs, LossFunction

_IMAGE_INPUT_CHANNELS: Final = 3
_VIDEO_FRAMES: Final = 16


class WeightsOrigin(StrEnum):
    """Where a model's weights come from."""

    FILE = "file"
    PRETRAINED = "pretrained"
    FACTORY = "factory"
    RANDOM = "random"
    META = "meta"


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How pictures become inputs.

    Args:
        mean: Per channel, subtracted from RGB scaled to 0..1.
        std: Per channel, divided by.
        interpolation: Of the resizing.
        crop_fraction: Share of the resized picture's side that the centre crop keeps, in (0, 1].
        source: Who says so: ``timm``, ``torchvision``, ``transformers`` or ``imagenet (assumed)``.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    crop_fraction: float = 0.875
    source: str


@dataclass
class Built:
    """A model fresh from a factory, and what the factory knows about its inputs."""

    model: nn.Module
    weights: WeightsOrigin
    specs: list[InputSpec] | None = None
    inputs: Inputs | None = None
    loss: LossFunction | None = None
    preprocessing: Preprocessing | None = None
    arch: str | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class BuildOptions:
    """How to build: with pretrained weights if they can be had, on the meta device, with another head."""

    pretrained: bool = True
    meta: bool = False
    num_classes: int | None = None

    @property
    def wants_weights(self) -> bool:
        """Whether to look for pretrained weights at all."""
        return self.pretrained and not self.meta and self.num_classes is None

    def device(self) -> Any:
        """The context a model is built in."""
        return torch.device("meta") if self.meta else nullcontext()

    def origin(self) -> WeightsOrigin:
        """Where the weights come from when none are fetched."""
        return WeightsOrigin.META if self.meta else WeightsOrigin.RANDOM


def build(text: str, options: BuildOptions) -> Built:
    """Build a model from ``torchvision:NAME``, ``timm:NAME``, ``transformers:NAME`` or ``package.module:function``.

    Raises:
        LoadingError: The name is unknown, its package is missing, or building fails.
    """
    library, _, name = text.partition(":")
    builders = {"torchvision": _build_torchvision, "timm": _build_timm, "transformers": _build_transformers}
    if not name:
        raise LoadingError(f"Model {text!r} lacks a name after the colon. Give for instance torchvision:mobilenet_v2.")
    built = builders[library](name, options) if library in builders else _build_from_function(text, options)
    built.arch = text
    return built


def load_factory(text: str, subject: str) -> Callable[..., Any]:
    """Import ``package.module:function``, with the working directory on the path only meanwhile.

    Args:
        text: What the user typed.
        subject: What it is, the first word of an error: ``"Model"``, ``"--loss"``.

    Raises:
        LoadingError: The text has no colon, the module cannot be imported, or has no such callable.
    """
    module_name, _, attribute = text.partition(":")
    if not module_name or not attribute:
        raise LoadingError(f"{subject} {text!r} is not of the form package.module:function.")
    try:
        with working_directory_on_path():
            found: Any = importlib.import_module(module_name)
    except Exception as error:
        raise LoadingError(
            f"{subject} {text!r}: the module {module_name!r} cannot be imported ({type(error).__name__}: {error}). "
            f"It is looked for in {Path.cwd()} and in the installed packages."
        ) from error
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        known = [name for name, value in vars(importlib.import_module(module_name)).items() if callable(value)]
        raise LoadingError(
            f"{subject} {text!r}: {module_name} has no function {attribute!r}.{_closest(attribute, known)}"
        )
    return found  # type: ignore[no-any-return]


@contextmanager
def working_directory_on_path() -> Iterator[None]:
    """Let imports see the working directory, as ``python script.py`` would."""
    entry = str(Path.cwd())
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)


def _closest(name: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, list(known), n=4, cutoff=0.5)
    return f" Closest: {', '.join(matches)}." if matches else ""


def _import_package(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise LoadingError(
            f'{name} is not installed ({error}). Install it with: pip install "trady[{extra}]".'
        ) from error


def _make(text: str, function: Callable[[], Any], options: BuildOptions) -> Any:
    """Call a library's builder on the asked device, quietly.

    Some builders compute with tensors (RegNet), which the meta device cannot: they build on the CPU and move.

    Raises:
        LoadingError: The builder fails.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                with options.device():
                    return function()
            except (NotImplementedError, RuntimeError) as error:
                if not options.meta:
                    raise LoadingError(_unbuilt(text, error)) from error
                return function().to("meta")
    except LoadingError:
        raise
    except Exception as error:
        raise LoadingError(_unbuilt(text, error)) from error


def _unbuilt(text: str, error: Exception) -> str:
    return f"{text} cannot be built: {type(error).__name__}: {_first_line(error)}."


def _first_line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _without_weights(name: str, reason: object) -> str:
    return (
        f"Weights of {name} could not be had ({_first_line(reason)}); they are random, so priorities will be uniform. "
        "Give a file with weights for a plan worth training with."
    )


# --- torchvision ---------------------------------------------------------------------------------------------------


def _build_torchvision(name: str, options: BuildOptions) -> Built:
    models = _import_package("torchvision", "vision").models
    if name not in models.list_models():
        raise LoadingError(f"torchvision has no model {name!r}.{_closest(name, models.list_models())}")
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
            built.notes.append(_without_weights(f"torchvision:{name}", error))
    built.model = _make(f"torchvision:{name}", lambda: models.get_model(name, weights=None, **extra), options)
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
    return [InputSpec((_IMAGE_INPUT_CHANNELS, *frames, int(size[0]), int(size[-1])))]


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


# --- timm ----------------------------------------------------------------------------------------------------------


def _build_timm(name: str, options: BuildOptions) -> Built:
    timm = _import_package("timm", "vision")
    if not timm.is_model(name):
        raise LoadingError(f"timm has no model {name!r}.{_closest(name, timm.list_models(include_tags='.' in name))}")
    built = Built(nn.Module(), options.origin())
    heads = {} if options.num_classes is None else {"num_classes": options.num_classes}
    if options.wants_weights:
        try:
            with quick_network(hub_host()):
                built.model = timm.create_model(name, pretrained=True)
            built.weights = WeightsOrigin.PRETRAINED
            return built
        except Exception as error:
            built.notes.append(_without_weights(f"timm:{name}", error))
    built.model = _make(f"timm:{name}", lambda: timm.create_model(name, pretrained=False, **heads), options)
    return built


# --- transformers --------------------------------------------------------------------------------------------------


def _build_transformers(name: str, options: BuildOptions) -> Built:
    transformers = _import_package("transformers", "text")
    with quick_network(hub_host()):
        config, has_weights = _transformers_config(transformers, name)
        if options.num_classes is not None:
            config.num_labels = options.num_classes
        kind = _transformers_class(transformers, config)
        built = Built(nn.Module(), options.origin(), preprocessing=_transformers_preprocessing(name, has_weights))
        if options.wants_weights and has_weights:
            try:
                built.model = kind.from_pretrained(name, config=config, dtype=torch.float32, trust_remote_code=False)
                built.weights = WeightsOrigin.PRETRAINED
                return built
            except Exception as error:
                built.notes.append(_without_weights(f"transformers:{name}", error))
        elif options.wants_weights:
            built.notes.append(_without_weights(f"transformers:{name}", "a configuration has none"))
        built.model = _make(f"transformers:{name}", lambda: _from_config(kind, config), options)
    return built


def _from_config(kind: Any, config: Any) -> nn.Module:
    maker = getattr(kind, "from_config", None) or kind._from_config
    return maker(config, dtype=torch.float32)  # type: ignore[no-any-return]


def _transformers_config(transformers: Any, name: str) -> tuple[Any, bool]:
    """A configuration, and whether the name can have weights too.

    Raises:
        LoadingError: There is no such model.
    """
    auto, here = transformers.AutoConfig, BuildOptions()
    types = list(importlib.import_module("transformers.models.auto.configuration_auto").CONFIG_MAPPING_NAMES)
    if Path(name).exists():
        return _make(f"transformers:{name}", lambda: auto.from_pretrained(name, trust_remote_code=False), here), True
    model_type = next((t for t in (name, name.replace("-", "_"), name.replace("_", "-")) if t in types), None)
    if model_type is not None:
        return _make(f"transformers:{name}", lambda: auto.for_model(model_type), here), False
    named = getattr(transformers, name, None) if name.endswith("Config") else None
    if isinstance(named, type):
        return _make(f"transformers:{name}", named, here), False
    try:
        return auto.from_pretrained(name, trust_remote_code=False), True
    except Exception as error:
        raise LoadingError(
            f"transformers knows no model {name!r}: not a local folder, not a model type, and the hub answered: "
            f"{_first_line(error)}.{_closest(name, types)}"
        ) from error


def _transformers_class(transformers: Any, config: Any) -> Any:
    """The class the configuration names, else the one whose task suits it."""
    for architecture in getattr(config, "architectures", None) or []:
        if isinstance(named := getattr(transformers, architecture, None), type):
            return named
    tasks = ["ImageClassification", "MaskedLM", "CausalLM", "SequenceClassification", "Seq2SeqLM"]
    if getattr(config, "is_encoder_decoder", False):
        tasks = ["Seq2SeqLM", "SpeechSeq2Seq", *tasks]
    for task in tasks:
        if type(config) in getattr(transformers, f"AutoModelFor{task}")._model_mapping:
            chosen = "SequenceClassification" if task == "MaskedLM" else task  # an encoder is fine-tuned to classify
            if type(config) in getattr(transformers, f"AutoModelFor{chosen}")._model_mapping:
                return getattr(transformers, f"AutoModelFor{chosen}")
    return transformers.AutoModel


def _transformers_preprocessing(name: str, has_weights: bool) -> Preprocessing | None:
    if not has_weights:
        return None
    hub = importlib.import_module("transformers.utils.hub")
    try:
        found = hub.cached_file(name, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
        said = json.loads(Path(found).read_text("utf-8"))
        mean, std = said["image_mean"], said["image_std"]
    except (OSError, TypeError, KeyError, ValueError):
        return None
    return Preprocessing(mean=tuple(mean), std=tuple(std), crop_fraction=1.0, source="transformers")


# --- the user's own ------------------------------------------------------------------------------------------------


def _build_from_function(text: str, options: BuildOptions) -> Built:
    function = load_factory(text, "Model")
    arguments: dict[str, Any] = {}
    if options.num_classes is not None:
        if "num_classes" not in inspect.signature(function).parameters:
            raise LoadingError(
                f"Model {text!r} takes no num_classes, so its head cannot be made {options.num_classes}."
            )
        arguments["num_classes"] = options.num_classes
    try:
        with options.device():
            made = function(**arguments)
    except Exception as error:
        raise LoadingError(f"Model {text!r} raised {type(error).__name__}: {error}.") from error
    return _read_factory_result(text, made, WeightsOrigin.META if options.meta else WeightsOrigin.FACTORY)


def _read_factory_result(text: str, made: Any, origin: WeightsOrigin) -> Built:
    parts = made if isinstance(made, tuple) else (made,)
    if not parts or not isinstance(parts[0], nn.Module) or len(parts) > 3:
        kinds = ", ".join(type(part).__name__ for part in parts)
        raise LoadingError(
            f"Model {text!r} returned ({kinds}). It must return a module, (module, example_inputs), "
            "or (module, example_inputs, loss)."
        )
    inputs, loss = (*parts[1:], None, None)[:2]
    if loss is not None and not callable(loss):
        raise LoadingError(f"Model {text!r} returned a loss of type {type(loss).__name__}, which cannot be called.")
    return Built(parts[0], origin, inputs=tuple(inputs) if isinstance(inputs, list) else inputs, loss=loss)
