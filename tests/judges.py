"""The judge of saved bytes: a real step, watched by PyTorch's own hooks."""

import gc
import weakref
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from trady.planner.training_step import (
    LossFunction,
    call_model,
    input_tensors,
    map_tensors,
    own_loss,
    step_loss,
    synthetic_targets,
)


class _Held:
    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def at_batch(inputs: Any, batch_size: int) -> Any:
    """The same inputs, repeated or cut to another number of samples."""
    return map_tensors(lambda tensor: tensor[torch.arange(batch_size) % tensor.shape[0]].clone(), inputs)


def bytes_kept_by_autograd(
    model: nn.Module,
    inputs: Any,
    *,
    norm: str = "train",
    amp: torch.dtype | None = None,
    loss: LossFunction | None = None,
    targets: Any = None,
) -> int:
    """Distinct storages packed and alive when the loss exists; parameters, buffers and the batch left out."""
    model.train()
    for module in model.modules():
        if norm == "frozen" and hasattr(module, "running_mean"):
            module.eval()
    held: list[weakref.ref[_Held]] = []

    def pack(tensor: Tensor) -> _Held:
        holder = _Held(tensor)
        held.append(weakref.ref(holder))
        return holder

    autocast = nullcontext() if amp is None else torch.autocast("cpu", dtype=amp)
    with autocast, saved_tensors_hooks(pack, lambda holder: holder.tensor):
        outputs = call_model(model, inputs)
        if targets is None and (loss is not None or own_loss(outputs) is None):
            targets = synthetic_targets(outputs)
        value = step_loss(outputs, targets, loss)
    del outputs
    gc.collect()
    known = [*model.parameters(), *model.buffers(), *input_tensors([inputs, targets])]
    left_out = {tensor.untyped_storage()._cdata for tensor in known}
    alive = [holder.tensor.untyped_storage() for reference in held if (holder := reference()) is not None]
    assert value.requires_grad
    return sum({storage._cdata: storage.nbytes() for storage in alive if storage._cdata not in left_out}.values())
