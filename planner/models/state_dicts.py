"""Weights without a module: find them in a file, name the architecture they fit, put them in.

Held by ``tests/planner/models/test_loading.py``.
"""

import hashlib
import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

import torch
from torch import Tensor, nn

from trady.planner.errors import LoadingError
from trady.planner.models.factories import BuildOptions, Built, WeightsOrigin
from trady.planner.models.zoos import build

StateDict = dict[str, Tensor]

_NESTED_UNDER: Final = ("state_dict", "model_state_dict", "model", "model_ema", "state_dict_ema", "net")
_PREFIXES: Final = ("module.", "_orig_mod.")
_LISTED: Final = 5
_CLOSE_ENOUGH: Final = 0.3
_CANDIDATES: Final = tuple(
    f"{library}:{name}"
    for library, names in {
        "torchvision": "alexnet convnext_tiny convnext_small convnext_base densenet121 densenet169 efficientnet_b0 "
        "efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_v2_s googlenet inception_v3 mnasnet1_0 "
        "mobilenet_v2 mobilenet_v3_large mobilenet_v3_small regnet_x_400mf regnet_y_400mf resnet18 resnet34 resnet50 "
        "resnet101 resnext50_32x4d wide_resnet50_2 shufflenet_v2_x0_5 shufflenet_v2_x1_0 squeezenet1_0 squeezenet1_1 "
        "swin_t swin_s swin_v2_t vgg11 vgg16 vgg16_bn vgg19 vit_b_16 vit_b_32",
        "timm": "convnext_tiny deit_tiny_patch16_224 deit_small_patch16_224 efficientnet_b0 efficientnet_lite0 "
        "mobilenetv2_100 mobilenetv3_large_100 mobilenetv3_small_100 mobilevit_s resnet18 resnet26 resnet50 "
        "regnety_004 swin_tiny_patch4_window7_224 vit_tiny_patch16_224 vit_small_patch16_224 vit_base_patch16_224 "
        "mixer_b16_224 fbnetc_100 mnasnet_100 ghostnet_100 hrnet_w18 dla34 xcit_nano_12_p16_224 coat_tiny levit_128 "
        "poolformer_s12 edgenext_xx_small",
    }.items()
    for name in names.split()
)


def find_state_dict(loaded: Any) -> tuple[StateDict, list[str]] | None:
    """The state dict in what a file held, under the usual keys and prefixes.

    Returns:
        Names to tensors, and notes on where they were; ``None`` where there is none.
    """
    notes = []
    found = loaded
    if not _is_state_dict(found):
        key = next((k for k in _NESTED_UNDER if isinstance(found, Mapping) and _is_state_dict(found.get(k))), None)
        if key is None:
            return None
        found = found[key]
        notes.append(f"Weights taken from under {key!r}.")
    state = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
            notes.append(f"Prefix {prefix!r} taken off every name.")
    return state, notes


def _is_state_dict(item: Any) -> bool:
    if not isinstance(item, Mapping) or not item:
        return False
    tensors = [isinstance(value, Tensor) for value in item.values()]
    return sum(tensors) * 2 > len(tensors) and all(isinstance(name, str) for name in item)


def closest_architectures(state: StateDict, count: int = 3) -> list[tuple[str, float]]:
    """Architectures by the share of names with their shapes in common with a state dict.

    Only the candidates above are compared; they are built on the meta device, without memory.

    Returns:
        ``(factory text, share in 0..1)``, best first, those below 0.3 left out.
    """
    wanted = {(name, tuple(tensor.shape)) for name, tensor in state.items()}
    scores = []
    for text in _CANDIDATES:
        with suppress(LoadingError):
            candidate = build(text, BuildOptions(pretrained=False, meta=True)).model.state_dict()
            shapes = {(name, tuple(tensor.shape)) for name, tensor in candidate.items()}
            scores.append((text, len(wanted & shapes) / len(wanted | shapes)))
    scores.sort(key=lambda item: -item[1])
    return [item for item in scores[:count] if item[1] >= _CLOSE_ENOUGH]


def refuse_without_arch(source: str, state: StateDict) -> LoadingError:
    """The error for weights without an architecture, with the closest ones."""
    closest = closest_architectures(state)
    if closest:
        listed = ", ".join(f"{text} ({math.floor(share * 100)} %)" for text, share in closest)
        hint = f"Closest of the {len(_CANDIDATES)} architectures compared, by names and shapes in common: {listed}."
    else:
        first = ", ".join(list(state)[:3])
        hint = f"None of the {len(_CANDIDATES)} architectures compared is close (first names: {first})."
    return LoadingError(
        f"{source} holds {len(state)} tensors but no architecture. Give --arch, for instance "
        f"--arch {closest[0][0] if closest else 'package.module:function'}. {hint}"
    )


def build_with_weights(source: str, state: StateDict, arch: str, options: BuildOptions) -> Built:
    """Build an architecture and fill it, strictly by name; a head of another size is built at its size.

    Raises:
        LoadingError: Names are missing or unexpected, or a shape differs.
    """
    plain = BuildOptions(pretrained=False, meta=options.meta)
    built = build(arch, plain)
    differing = _differing_shapes(built.model, state)
    if differing and (num_classes := _classes_of_head(built.model, state, differing)) is not None:
        with suppress(LoadingError):
            built = build(arch, BuildOptions(pretrained=False, meta=options.meta, num_classes=num_classes))
            built.notes.append(f"The head of {arch} was built with the file's {num_classes} classes.")
            differing = _differing_shapes(built.model, state)
    problems = _name_problems(built.model, state) + differing_texts(built.model, state, differing)
    if problems:
        raise LoadingError(f"{source} does not fit {arch}: {'; '.join(problems)}. Give the --arch it was trained with.")
    built.notes = [note for note in built.notes if not note.startswith("Weights of")]
    if not options.meta:
        built.model.load_state_dict(state, strict=False)
        built.weights = WeightsOrigin.FILE
    return built


def _differing_shapes(model: nn.Module, state: StateDict) -> list[str]:
    own = model.state_dict()
    return [name for name, tensor in own.items() if name in state and state[name].shape != tensor.shape]


def differing_texts(model: nn.Module, state: StateDict, names: list[str]) -> list[str]:
    """``name is [a, b] in the file and [c, d] in the model``, the first few."""
    own = model.state_dict()
    texts = [
        f"{n} is {list(state[n].shape)} in the file and {list(own[n].shape)} in the model" for n in names[:_LISTED]
    ]
    return texts + ([f"and {len(names) - _LISTED} more"] if len(names) > _LISTED else [])


def _name_problems(model: nn.Module, state: StateDict) -> list[str]:
    own = model.state_dict()
    optional = {name for name in own if name.endswith("num_batches_tracked")} | _tied_names(model)
    missing = [name for name in own if name not in state and name not in optional]
    unexpected = [name for name in state if name not in own]
    return [_listed(kind, names) for kind, names in (("missing", missing), ("unexpected", unexpected)) if names]


def _tied_names(model: nn.Module) -> set[str]:
    """Names that share their parameter with another: safetensors stores only one of them."""
    distinct = {name for name, _ in model.named_parameters()}
    every = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return every - distinct


def _listed(kind: str, names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{len(names)} {kind} ({', '.join(names[:_LISTED])}{more})"


def _classes_of_head(model: nn.Module, state: StateDict, differing: list[str]) -> int | None:
    """Classes of the file's head, where all differing names belong to it.

    A head may lie in several layers (auxiliary classifiers); they all have to agree on the number.
    """
    own = model.state_dict()
    sizes = set()
    for name in differing:
        ours, theirs = own[name].shape, state[name].shape
        if len(ours) == 0 or ours[1:] != theirs[1:]:
            return None
        sizes.add((ours[0], theirs[0]))
    return sizes.pop()[1] if len(sizes) == 1 else None


def empty_weights(state: StateDict) -> bool:
    """Whether the tensors are on the meta device and hold no numbers."""
    return any(tensor.device == torch.device("meta") for tensor in state.values())


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over the names, shapes and types of a model's parameters and buffers."""
    lines = [f"{name} {line}" for name, line in tensor_lines(model).items()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def tensor_lines(model: nn.Module) -> dict[str, str]:
    """Parameters and buffers by name, each as ``float32[8, 3]``."""
    return {
        name: f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
        for name, tensor in sorted(model.state_dict().items())
        if isinstance(tensor, Tensor)
    }
