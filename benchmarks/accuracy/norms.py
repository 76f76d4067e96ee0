"""Batch norms put back behind convolutions that they were folded into, so that nothing changes."""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def put_norms_back(model: nn.Module, inputs: Tensor) -> None:
    """Give every convolution a batch norm that is the identity in evaluation mode; in place.

    Running statistics are those of the convolution's outputs on calibration data, scale and shift undo them. What the
    folding lost cannot be had back: the weights keep the scale they were folded to.

    Args:
        model: A network without norms.
        inputs: Pictures ``[N, C, H, W]`` to take statistics on.
    """
    convolutions = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    statistics: dict[str, tuple[Tensor, Tensor]] = {}

    def noting(name: str) -> Any:
        def note(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            statistics[name] = output.mean(dim=(0, 2, 3)), output.var(dim=(0, 2, 3), unbiased=False)

        return note

    hooks = [module.register_forward_hook(noting(name)) for name, module in convolutions.items()]
    try:
        model.eval()(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    for name, convolution in convolutions.items():
        parent, _, own = name.rpartition(".")
        norm = _identity(*statistics[name])
        setattr(model.get_submodule(parent), own, nn.Sequential(OrderedDict(conv=convolution, norm=norm)))


def _identity(mean: Tensor, variance: Tensor) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(len(mean)).eval()
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    norm.weight.copy_((variance + norm.eps).sqrt())
    norm.bias.copy_(mean)
    return norm
