"""From a model file or a factory to a module, example inputs and a loss, without running code from a file."""

import pickle
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from trady.planner.errors import LoadingError
from trady.planner.models.example_inputs import (
    infer_specs,
    is_transformers_model,
    make_inputs,
    parse_input_specs,
    transformers_inputs,
)
from trady.planner.models.exported_programs import is_exported_program, load_exported_program
from trady.planner.models.factories import (
    BuildOptions,
    Built,
    Preprocessing,
    WeightsOrigin,
    load_factory,
    working_directory_on_path,
)
from trady.planner.models.safe_pickles import load_safely, refuse_names, scan_pickle, torch_default_names
from trady.planner.models.state_dicts import build_with_weights, empty_weights, find_state_dict, refuse_without_arch
from trady.planner.models.training_step import Inputs, LossFunction, input_tensors, map_tensors
from trady.planner.models.zoos import build

__all__ = ["LoadedModel", "Preprocessing", "WeightsOrigin", "load_factory", "load_model"]

_IMAGENET: Final = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), source="imagenet (assumed)")
_PICKLES_IN_OLD_FILE: Final = 5  # magic number, protocol, system, the object, storage keys
_MODEL_FORMS: Final = "torchvision:NAME, timm:NAME, transformers:NAME, package.module:function, or a model file"


@dataclass
class LoadedModel:
    """A model ready to be traced.

    Args:
        model: The module, on the CPU or on the meta device.
        inputs: Example inputs of batch size 2 on the CPU: a tensor, a tuple, or keyword arguments.
        loss: The user's ``loss(outputs, targets)``; ``None`` leaves the choice to the training step.
        source: What the user typed.
        arch: The factory the module was built with, if any.
        weights: Where the weights come from.
        preprocessing: How pictures become inputs; ``None`` for other inputs.
        notes: What must be said aloud: shapes assumed, weights that could not be had.
    """

    model: nn.Module
    inputs: Inputs
    loss: LossFunction | None
    source: str
    arch: str | None
    weights: WeightsOrigin
    preprocessing: Preprocessing | None
    notes: list[str] = field(default_factory=list)


def load_model(
    source: str | Path,
    *,
    arch: str | None = None,
    input_shape: str | None = None,
    loss: str | None = None,
    trust_pickle: bool = False,
    pretrained: bool = True,
    meta: bool = False,
) -> LoadedModel:
    """Load a model from a file, or build it with a factory.

    Args:
        source: A ``.pt``/``.pth`` (module or state dict), ``.pt2`` or ``.safetensors`` file, ``torchvision:NAME``,
            ``timm:NAME``, ``transformers:NAME`` or ``package.module:function``.
        arch: The factory that builds the module for a state dict.
        input_shape: Inputs without the batch: ``3x224x224``, ``tokens:128``, several separated by commas.
        loss: ``package.module:function`` taking ``(outputs, targets)``.
        trust_pickle: Let a file run any code it wants.
        pretrained: Look for pretrained weights of a factory.
        meta: Build on the meta device, without memory for weights.

    Returns:
        The module with its inputs, loss and what is known of it.

    Raises:
        LoadingError: Nothing can be loaded from what was given.

    Error:
        UntrustedPickleError: The file needs ``trust_pickle``.

    Example:
        >>> loaded = load_model("torch.nn:Identity", input_shape="3x8x8")
        >>> loaded.inputs.shape[1:]
        torch.Size([3, 8, 8])
    """
    options = BuildOptions(pretrained=pretrained, meta=meta)
    path = Path(source)
    if isinstance(source, str) and ":" in source and not path.exists():
        if arch is not None:
            raise LoadingError(
                f"--arch {arch!r} goes with a file of weights, not with the factory {source!r}. Drop one."
            )
        built = build(source, options)
    else:
        built = _open_file(path, arch, options, trust_pickle)
    inputs = _inputs_for(built, input_shape)
    preprocessing = built.preprocessing or _assumed_preprocessing(built.model, inputs)
    chosen_loss = built.loss if loss is None else _load_loss(loss)
    return LoadedModel(
        built.model, inputs, chosen_loss, str(source), built.arch, built.weights, preprocessing, built.notes
    )


# --- what the model is called with ---------------------------------------------------------------------------------


def _inputs_for(built: Built, text: str | None) -> Inputs:
    """Example inputs: asked for, the factory's own, or told by the model."""
    specs = parse_input_specs(text, built.model) if text is not None else None
    if specs is None and built.inputs is not None:
        return built.inputs
    if is_transformers_model(built.model):
        return transformers_inputs(built.model, specs)
    if specs is None and built.specs is not None:
        specs = built.specs
    if specs is None:
        specs, note = infer_specs(built.model)
        built.notes += [note] if note else []
    return make_inputs(specs)


def _assumed_preprocessing(model: nn.Module, inputs: Inputs) -> Preprocessing | None:
    """What a timm model carries, else ImageNet's, for inputs that look like RGB pictures."""
    first = next(input_tensors(inputs), None)
    if first is None or first.dim() != 4 or first.shape[1] != 3:
        return None
    config = getattr(model, "pretrained_cfg", None)
    if not isinstance(config, dict) or len(config.get("mean") or ()) != 3:
        return _IMAGENET
    return Preprocessing(
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=str(config.get("interpolation") or "bilinear"),
        crop_fraction=float(config.get("crop_pct") or 0.875),
        source="timm",
    )


def _load_loss(text: str) -> LossFunction:
    """A loss function, or a loss class such as ``torch.nn:CrossEntropyLoss``, which is made without arguments.

    Raises:
        LoadingError: The class cannot be made without arguments.
    """
    found = load_factory(text, "--loss")
    if isinstance(found, type):
        try:
            found = found()
        except Exception as error:
            raise LoadingError(
                f"--loss {text!r} cannot be made without arguments: {error}. Give a function."
            ) from error
    return found


# --- files ---------------------------------------------------------------------------------------------------------


def _open_file(path: Path, arch: str | None, options: BuildOptions, trust_pickle: bool) -> Built:
    """Tell the kind of file by what is in it, and open it."""
    _check_file(path)
    if path.suffix == ".safetensors":
        return _from_weights(path, _read_safetensors(path), arch, options)
    if is_exported_program(path):
        built = _from_exported(path, trust_pickle)
    else:
        loaded = _unpickle(path, trust_pickle)
        model = loaded.get("model") if isinstance(loaded, dict) and "model" in loaded else loaded
        if not isinstance(model, nn.Module):
            return _from_weights(path, loaded, arch, options)
        built = Built(model, WeightsOrigin.FILE)
    if arch is not None:
        built.notes.append(f"--arch {arch} is not needed: {path} holds a whole module.")
    if options.meta:
        built.model, built.weights = built.model.to("meta"), WeightsOrigin.META
    return built


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise LoadingError(
            f"Model {str(path)!r} is a directory. Give a file, or transformers:{path} for a model folder."
        )
    if not path.exists():
        raise LoadingError(f"Model {str(path)!r} does not exist. A model is {_MODEL_FORMS}.")
    if path.stat().st_size == 0:
        raise LoadingError(f"Model {str(path)!r} is empty (0 bytes). Save or download it again.")


def _from_weights(path: Path, loaded: Any, arch: str | None, options: BuildOptions) -> Built:
    found = find_state_dict(loaded)
    if found is None:
        raise LoadingError(
            f"{path} holds a {type(loaded).__name__}, neither a module nor a state dict. "
            "Save the module with torch.save(model, path), or its weights with torch.save(model.state_dict(), path)."
        )
    state, notes = found
    if arch is None:
        raise refuse_without_arch(str(path), state)
    built = build_with_weights(str(path), state, arch, replace(options, meta=options.meta or empty_weights(state)))
    built.notes = notes + built.notes
    return built


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise LoadingError(f"{path} is not a whole .safetensors file ({error}). Save or download it again.") from error


def _from_exported(path: Path, trust_pickle: bool) -> Built:
    program = load_exported_program(path, trust_pickle)
    built = Built(program.module(check_guards=False), WeightsOrigin.FILE)
    if program.example_inputs is not None:
        positional, keywords = program.example_inputs
        built.inputs = _exported_inputs(path, tuple(positional), dict(keywords))
    if not program.range_constraints:
        sizes = [list(tensor.shape) for tensor in input_tensors(built.inputs)]
        built.notes.append(
            f"{path} was exported for inputs of fixed size {sizes}, the batch included. Export it with "
            "dynamic_shapes={0: torch.export.Dim('batch')} to plan for other batch sizes."
        )
    return built


def _exported_inputs(path: Path, positional: tuple[Any, ...], keywords: dict[str, Any]) -> Inputs:
    if positional and keywords:
        raise LoadingError(
            f"{path} was exported with positional and keyword arguments together, which is one too many ways. "
            "Export it with all inputs of one kind."
        )
    given: Inputs = keywords or (positional[0] if len(positional) == 1 else positional)
    return map_tensors(lambda tensor: tensor.detach().cpu(), given)


def _unpickle(path: Path, trust_pickle: bool) -> Any:
    try:
        with path.open("rb") as file:
            start = file.read(4)
        if start == b"PK\x03\x04" and zipfile.is_zipfile(path):  # what torch.load looks at
            return _unpickle_archive(path, trust_pickle)
        return _unpickle_old_file(path, start, trust_pickle)
    except LoadingError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise LoadingError(
            f"{path} cannot be opened as a model ({lines[0]}). It may be damaged, or not written by torch.save: "
            "save it again with torch.save(model, path)."
        ) from error


def _unpickle_archive(path: Path, trust_pickle: bool) -> Any:
    reader = torch._C.PyTorchFileReader(str(path))
    records = reader.get_all_records()
    if "constants.pkl" in records:
        raise LoadingError(
            f"{path} is TorchScript, whose operations cannot be trained by channel. "
            "Give the module it was made from (torch.save(model, path)), or export that with torch.export."
        )
    if trust_pickle:
        return _trusted(path)
    return load_safely(path, reader.get_record("data.pkl"))


def _unpickle_old_file(path: Path, start: bytes, trust_pickle: bool) -> Any:
    """Files from before torch 1.6, or plain pickles: opened with torch's own defaults, no allow-list.

    Raises:
        LoadingError: The file is cut short, or no model.
    """
    if start.startswith(b"PK"):
        raise LoadingError(f"{path} is cut short: its archive has no end. Save or download it again.")
    if not start.startswith(b"\x80"):
        raise LoadingError(f"{path} is not a model file: it begins with {start!r}. A model is {_MODEL_FORMS}.")
    if trust_pickle:
        return _trusted(path)
    foreign = _names_in_old_file(path) - torch_default_names()
    if foreign:
        refuse_names(path, foreign)
    return torch.load(path, map_location="cpu", weights_only=True)


def _names_in_old_file(path: Path) -> set[str]:
    names: set[str] = set()
    with path.open("rb") as file:
        for _ in range(_PICKLES_IN_OLD_FILE):
            try:
                names |= scan_pickle(file).names
            except ValueError:  # the end, or the raw storages
                break
    return names


def _trusted(path: Path) -> Any:
    """Open a file that may run any code; its classes may lie in the working directory."""
    with working_directory_on_path():
        try:
            return torch.load(path, map_location="cpu", weights_only=False)
        except pickle.UnpicklingError:
            with path.open("rb") as file:
                return pickle.load(file)
