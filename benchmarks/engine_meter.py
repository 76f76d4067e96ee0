"""What autograd keeps of any way to train, and the time of a step."""

import gc
import time
import weakref
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


class _Held:
    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def kept_bytes(forward: Callable[[], Tensor], known: Iterable[Tensor]) -> int:
    """Distinct storages that autograd packed and still holds when the loss exists.

    Args:
        forward: Computes the loss.
        known: Parameters, buffers and the batch, which are left out.
    """
    held: list[weakref.ref[_Held]] = []

    def pack(tensor: Tensor) -> _Held:
        holder = _Held(tensor)
        held.append(weakref.ref(holder))
        return holder

    with saved_tensors_hooks(pack, lambda holder: holder.tensor):
        loss = forward()
    gc.collect()
    left_out = {tensor.untyped_storage()._cdata for tensor in known}
    storages = {
        storage._cdata: storage.nbytes()
        for holder in (reference() for reference in held)
        if holder is not None and (storage := holder.tensor.untyped_storage())._cdata not in left_out
    }
    assert loss.requires_grad
    return sum(storages.values())


def seconds_of(step: Callable[[], object], device: str) -> tuple[float, float]:
    """Wall time and this process's CPU time of one call, the device's queue emptied."""
    if device == "cuda":
        torch.cuda.synchronize()
    wall, processor = time.perf_counter(), time.process_time()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - processor
