"""What tells two models apart: names, shapes and types of their tensors."""

import hashlib

from torch import Tensor, nn


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
