"""Models of transformers by name.

Held by ``tests/planner/models/test_loading.py``.
"""

import importlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trady.planner.errors import LoadingError
from trady.planner.models.factories import (
    BuildOptions,
    Built,
    Preprocessing,
    WeightsOrigin,
    built_quietly,
    closest_name,
    first_line,
    import_package,
    without_weights,
)
from trady.planner.models.hub import hub_host, quick_network


def build_transformers(name: str, options: BuildOptions) -> Built:
    """A model of transformers by name, type or local folder, with its weights where they can be had.

    Error:
        LoadingError: There is no such model.
    """
    transformers = import_package("transformers", "text")
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
                built.notes.append(without_weights(f"transformers:{name}", error))
        elif options.wants_weights:
            built.notes.append(without_weights(f"transformers:{name}", "a configuration has none"))
        built.model = built_quietly(f"transformers:{name}", lambda: _from_config(kind, config), options)
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
        return built_quietly(
            f"transformers:{name}", lambda: auto.from_pretrained(name, trust_remote_code=False), here
        ), True
    model_type = next((t for t in (name, name.replace("-", "_"), name.replace("_", "-")) if t in types), None)
    if model_type is not None:
        return built_quietly(f"transformers:{name}", lambda: auto.for_model(model_type), here), False
    named = getattr(transformers, name, None) if name.endswith("Config") else None
    if isinstance(named, type):
        return built_quietly(f"transformers:{name}", named, here), False
    try:
        return auto.from_pretrained(name, trust_remote_code=False), True
    except Exception as error:
        raise LoadingError(
            f"transformers knows no model {name!r}: not a local folder, not a model type, and the hub answered: "
            f"{first_line(error)}.{closest_name(name, types)}"
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
