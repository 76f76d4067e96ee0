"""What builders of models take and give, how their failures are told, and functions of the user's own.

Held by ``tests/planner/models/test_loading.py``.
"""

import difflib
import importlib
import inspect
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import torch
from torch import nn

from trady.planner.errors import LoadingError
from trady.planner.models.example_inputs import InputSpec
from trady.planner.models.training_step import Inputs, LossFunction


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

    def device(self) -> AbstractContextManager[object]:
        """The context a model is built in."""
        return torch.device("meta") if self.meta else nullcontext()

    def origin(self) -> WeightsOrigin:
        """Where the weights come from when none are fetched."""
        return WeightsOrigin.META if self.meta else WeightsOrigin.RANDOM


def closest_name(name: str, known: Iterable[str]) -> str:
    """The names that are like an unknown one, as the end of an error; empty where none is."""
    matches = difflib.get_close_matches(name, list(known), n=4, cutoff=0.5)
    return f" Closest: {', '.join(matches)}." if matches else ""


def import_package(name: str, extra: str) -> ModuleType:
    """A library, or the way to it.

    Raises:
        LoadingError: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise LoadingError(
            f'{name} is not installed ({error}). Install it with: pip install "trady[{extra}]".'
        ) from error


def built_quietly(text: str, function: Callable[[], nn.Module], options: BuildOptions) -> nn.Module:
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
    return f"{text} cannot be built: {type(error).__name__}: {first_line(error)}."


def first_line(error: object) -> str:
    """The first line of an error."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def without_weights(name: str, reason: object) -> str:
    """What to say of a model whose weights could not be had."""
    return (
        f"Weights of {name} could not be had ({first_line(reason)}); they are random, so priorities will be uniform. "
        "Give a file with weights for a plan worth training with."
    )


IMAGE_INPUT_CHANNELS: Final = 3


def load_factory(text: str, subject: str) -> Callable[..., Any]:
    """Import ``package.module:function``, with the working directory on the path only meanwhile.

    Args:
        text: What the user typed.
        subject: What it is, the first word of an error: ``"Model"``, ``"--loss"``.

    Returns:
        The callable that the text names.

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
            f"{subject} {text!r}: {module_name} has no function {attribute!r}.{closest_name(attribute, known)}"
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


def build_from_function(text: str, options: BuildOptions) -> Built:
    """What a function of the user's makes: a module, a module with inputs, or both with a loss.

    Raises:
        LoadingError: It makes something else, or does not take the number of classes.
    """
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
