"""The judge of saved bytes: a real step, watched by PyTorch's own hooks."""

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from trady.planner.models.training_step import (
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
    to_training(model, norm)
    autocast = nullcontext() if amp is None else torch.autocast("cpu", dtype=amp)
    with autocast:
        kept, value = kept_storages(model, inputs, targets, loss, model)
    assert value.requires_grad
    return sum(kept.values())


def to_training(model: nn.Module, norm: str) -> None:
    """Training mode; norms with statistics evaluate where they are frozen."""
    model.train()
    for module in model.modules():
        if norm == "frozen" and hasattr(module, "running_mean"):
            module.eval()


def kept_storages(
    run: Any, inputs: Any, targets: Any, loss: LossFunction | None, model: nn.Module
) -> tuple[dict[int, int], Tensor]:
    """Storages packed and alive when the loss exists -> bytes, parameters, buffers and batch left out; and the loss."""
    held: list[weakref.ref[_Held]] = []

    def pack(tensor: Tensor) -> _Held:
        holder = _Held(tensor)
        held.append(weakref.ref(holder))
        return holder

    with saved_tensors_hooks(pack, lambda holder: holder.tensor):
        outputs = call_model(run, inputs)
        if targets is None and (loss is not None or own_loss(outputs) is None):
            targets = synthetic_targets(outputs)
        value = step_loss(outputs, targets, loss)
    del outputs
    gc.collect()
    known = [*model.parameters(), *model.buffers(), *input_tensors([inputs, targets])]
    left_out = {tensor.untyped_storage()._cdata for tensor in known}
    alive = [holder.tensor.untyped_storage() for reference in held if (holder := reference()) is not None]
    return {storage._cdata: storage.nbytes() for storage in alive if storage._cdata not in left_out}, value


def kept_lines(engine: Any, inputs: Any, targets: Any = None) -> tuple[dict[str, int], Tensor]:
    """What an engine's step keeps for backward, by line of the ledger, and its loss."""
    with engine.recording() as notes:
        kept, value = kept_storages(engine, inputs, targets, None, engine.model)
    lines = {"saved_activations": 0, "draw_index": 0, "residuals": 0, "always_trained": 0}
    for storage, num_bytes in kept.items():
        lines[notes.line_of.get(storage, "residuals")] += num_bytes
    return lines, value


def dense_step(model: nn.Module, inputs: Any, targets: Any, *, norm: str = "frozen", seed: int = 0) -> nn.Module:
    """A copy of a model with the gradients of one dense step, random numbers from a seed."""
    twin = copy.deepcopy(model).requires_grad_(True)
    to_training(twin, norm)
    torch.manual_seed(seed)
    step_loss(call_model(twin, inputs), targets, None).backward()
    return twin


def gradients_beside_dense(engine: Any, twin: nn.Module) -> Iterator[tuple[str, Tensor | None, Tensor | None]]:
    """Name, gradient and dense gradient of every parameter of an engine; its channels are those of the draw."""
    drawn = {layer.weight_name: layer for layer in engine.plan.table.layers if layer.name in engine.channels.channels}
    for name, parameter in engine.named_parameters():
        dense = twin.get_parameter(name).grad
        if name in drawn:
            assert dense is not None
            layer = drawn[name]
            index = torch.as_tensor(engine.channels.channels[layer.name])
            yield name, by_channel(parameter.grad, layer), whole_by_channel(dense, layer)[index]
        else:
            yield name, parameter.grad, dense


def whole_by_channel(weight: Tensor, layer: Any) -> Tensor:
    """A whole weight with its input channels first."""
    if layer.kind in ("conv", "linear"):
        return weight.movedim(layer.channel_dim, 0)
    if layer.kind == "transposed conv":
        return weight
    if layer.kind == "depthwise conv":
        by_input: Tensor = weight.unflatten(0, (layer.in_channels, -1))
        return by_input
    return torch.cat([rows.transpose(0, 1) for rows in weight.chunk(layer.groups)])


def by_channel(compact: Tensor | None, layer: Any) -> Tensor | None:
    """A slice with its channels first."""
    if compact is None:
        return None
    if layer.kind in ("conv", "linear"):
        return compact.movedim(layer.channel_dim, 0)
    if layer.kind == "depthwise conv":
        by_input: Tensor = compact.unflatten(0, (-1, layer.out_channels // layer.in_channels))
        return by_input
    return compact


def _told_of(name: str) -> Callable[[str], str]:
    return lambda text: f"{name}: {text}"


def assert_dense_gradients(engine: Any, twin: nn.Module, *, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    """Every parameter of an engine has the gradient that dense autograd gives."""
    found = list(gradients_beside_dense(engine, twin))
    assert found
    for name, gradient, dense in found:
        torch.testing.assert_close(gradient, dense, rtol=rtol, atol=atol, msg=_told_of(name))
