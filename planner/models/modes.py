"""How a model runs a step: training mode, norms as asked, and everything put back afterwards.

Held by ``tests/planner/priorities/test_calibration.py``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from trady.planner.options import NormMode


class HasState(Protocol):
    """A module, or what stands for one."""

    def modules(self) -> Iterator[nn.Module]:
        """All of its modules."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """What may train."""

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """What a forward pass may change."""


def set_training_mode(model: nn.Module, norm: NormMode) -> nn.Module:
    """Put a model in training mode, norms with running statistics in the asked one; in place.

    A frozen norm normalises with its running statistics and leaves them, and its batch counter, alone. Programs of
    ``torch.export`` run in the mode they were exported in and refuse to change it.

    Returns:
        The same model.
    """
    try:
        model.train()
    except NotImplementedError:
        return model
    if norm is NormMode.FROZEN:
        for module in model.modules():
            if hasattr(module, "running_mean"):
                module.train(False)
    return model


@contextmanager
def as_it_was(model: HasState) -> Iterator[None]:
    """Whatever happens, put training modes, buffers, gradients and the wish for them back afterwards."""
    training = {module: module.training for module in model.modules()}
    gradients = {parameter: (parameter.requires_grad, parameter.grad) for parameter in model.parameters()}
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers() if not buffer.is_meta}
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
        for parameter, (flag, gradient) in gradients.items():
            parameter.requires_grad_(flag)
            parameter.grad = gradient
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if name in buffers:
                    buffer.copy_(buffers[name])


@contextmanager
def undisturbed(model: nn.Module, norm: NormMode, seed: int) -> Iterator[None]:
    """Run in training mode with a seed of our own; put everything of the model back afterwards."""
    devices = {tensor.device for tensor in model.parameters() if tensor.is_cuda}
    with as_it_was(model), torch.random.fork_rng(devices=sorted(devices, key=str)), torch.enable_grad():
        torch.manual_seed(seed)
        set_training_mode(model, norm)
        for parameter in model.parameters():
            parameter.grad = None
        yield
