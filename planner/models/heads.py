"""The head: found in the trace, replaced for new classes, fitted before gradients are measured."""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from trady.planner.errors import TradyError
from trady.planner.models.modes import as_it_was
from trady.planner.models.training_step import Batch, call_model, map_tensors

_FIT_STEPS: Final = 100
_WEIGHT_DECAY: Final = 2e-3


def head_classes(model: nn.Module, head: str) -> int:
    """Outputs of a head.

    Returns:
        Outputs of the layer.

    Error:
        TradyError: The head is neither a linear layer nor a convolution.
    """
    module = _head_module(model, head)
    return module.out_features if isinstance(module, nn.Linear) else module.out_channels


def replace_head(model: nn.Module, head: str, classes: int, *, seed: int = 0) -> None:
    """Put a fresh head of ``classes`` outputs in place of the model's own, of the same kind; in place.

    Planning, training and verifying all call this one function, so that they mean the same model.

    Args:
        model: The model.
        head: Module path of its head.
        classes: Outputs of the new head.
        seed: Seed of its initialisation.

    Raises:
        TradyError: The head is neither a linear layer nor a convolution, or ``classes`` is under 2.
    """
    if classes < 2:
        raise TradyError(f"A head needs 2 classes or more, got {classes}.")
    old = _head_module(model, head)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        new = _like(old, classes)
    parent, _, name = head.rpartition(".")
    setattr(model.get_submodule(parent), name, new.train(old.training))
    _tell_number_of_classes(model, classes)


def fit_head(
    model: nn.Module, head: str, batches: Iterable[Batch], *, progress: Callable[[int], None] | None = None
) -> float:
    """Fit a head to features of the frozen model: before that, gradients of the other layers are noise.

    Multinomial logistic regression on the head's inputs, with L-BFGS.

    Args:
        model: The model; only the head's weights change.
        head: Module path of its head.
        batches: Labelled batches; all of them are held as features.
        progress: Called with the number of batches done.

    Returns:
        Accuracy on the batches it was fitted to, 0 to 1.

    Error:
        TradyError: The head cannot be fitted, or there is no batch.
    """
    module = _head_module(model, head)
    features, labels = _features(model, module, batches, progress)
    weights = list(module.parameters())
    optimizer = torch.optim.LBFGS(weights, max_iter=_FIT_STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        decay = sum(weight.square().sum() for weight in weights)
        loss = nn.functional.cross_entropy(_logits(module, features), labels) + _WEIGHT_DECAY * decay
        loss.backward()
        return loss

    with as_it_was(module), torch.enable_grad():
        for weight in weights:
            weight.requires_grad_(True)
        optimizer.step(closure)
    with torch.no_grad():
        return float((_logits(module, features).argmax(dim=1) == labels).float().mean())


def _logits(module: nn.Module, features: Tensor) -> Tensor:
    """``[N, classes]``: positions, which follow the classes in a convolution and precede them else, are averaged."""
    logits: Tensor = module(features)
    if logits.dim() == 2:
        return logits
    return logits.flatten(2).mean(dim=2) if isinstance(module, nn.Conv2d) else logits.flatten(1, -2).mean(dim=1)


def _features(
    model: nn.Module, head: nn.Module, batches: Iterable[Batch], progress: Callable[[int], None] | None
) -> tuple[Tensor, Tensor]:
    """Inputs of the head for every sample, ``[N, ...]``, and their labels ``[N]``.

    Raises:
        TradyError: There is no batch.
    """
    features: list[Tensor] = []
    labels: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, args: features.append(args[0].detach()))
    device = next(head.parameters()).device
    try:
        with as_it_was(model), torch.no_grad():
            model.eval()
            for number, batch in enumerate(batches):
                call_model(model, map_tensors(lambda tensor: tensor.to(device), batch.inputs))
                labels.append(batch.targets.to(device))
                if progress is not None:
                    progress(number + 1)
    finally:
        handle.remove()
    if not labels:
        raise TradyError("Fitting a head got no batch. Give at least one batch of inputs and labels.")
    return torch.cat(features), torch.cat(labels)


def _like(old: nn.Linear | nn.Conv2d, classes: int) -> nn.Module:
    """A fresh layer of the same kind, its weights made on the CPU: the same on every device."""
    bias, device, dtype = old.bias is not None, old.weight.device, old.weight.dtype
    made_on = device if device.type == "meta" else torch.device("cpu")
    if isinstance(old, nn.Linear):
        return nn.Linear(old.in_features, classes, bias=bias, device=made_on).to(device, dtype)
    padding = old.padding if isinstance(old.padding, str) else _pair(old.padding)
    new = nn.Conv2d(
        old.in_channels,
        classes,
        _pair(old.kernel_size),
        _pair(old.stride),
        padding,
        _pair(old.dilation),
        bias=bias,
        device=made_on,
    )
    return new.to(device, dtype)


def _pair(values: Sequence[int]) -> tuple[int, int]:
    return values[0], values[1]


def _head_module(model: nn.Module, head: str) -> nn.Linear | nn.Conv2d:
    module = model.get_submodule(head)
    if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1):
        return module
    raise TradyError(
        f"Head {head!r} is a {type(module).__name__}, not a linear layer or a convolution, and cannot be replaced. "
        "Give the model a head of its own and plan without --classes and --data."
    )


def _tell_number_of_classes(model: nn.Module, classes: int) -> None:
    """Models that reshape their logits by a stored number of classes learn the new one."""
    for name in ("num_classes", "num_labels"):
        if isinstance(getattr(model, name, None), int):
            setattr(model, name, classes)
    config = getattr(model, "config", None)
    if isinstance(getattr(config, "num_labels", None), int):
        config.num_labels = classes  # type: ignore[union-attr]
