"""How a model runs a step: training mode, norms as asked, and everything put back afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from trady.planner.models import input_tensors
from trady.planner.options import NormMode


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
def undisturbed(model: nn.Module, norm: NormMode, seed: int) -> Iterator[None]:
    """Run in training mode with a seed of our own; put everything of the model back afterwards."""
    training = {module: module.training for module in model.modules()}
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    gradients = {parameter: parameter.grad for parameter in flags}
    buffers = {buffer: buffer.detach().clone() for buffer in model.buffers() if not buffer.is_meta}
    devices = {tensor.device for tensor in input_tensors(tuple(flags)) if tensor.is_cuda}
    try:
        with torch.random.fork_rng(devices=sorted(devices, key=str)), torch.enable_grad():
            torch.manual_seed(seed)
            set_training_mode(model, norm)
            for parameter in flags:
                parameter.grad = None
            yield
    finally:
        for module, mode in training.items():
            module.training = mode
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
            parameter.grad = gradients[parameter]
        with torch.no_grad():
            for buffer, before in buffers.items():
                buffer.copy_(before)
