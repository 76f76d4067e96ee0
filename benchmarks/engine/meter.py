"""What autograd keeps of any way to train, and the time of a step."""

import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from trady.engine.runtime import saved_tensors, storage_bytes


def kept_bytes(forward: Callable[[], Tensor], known: Iterable[Tensor]) -> int:
    """Distinct storages that autograd packed and still holds when the loss exists.

    Args:
        forward: Computes the loss.
        known: Parameters, buffers and the batch, which are left out.
    """
    with saved_tensors() as held:
        loss = forward()
    assert loss.requires_grad
    return sum(storage_bytes(held(), left_out=known).values())


def seconds_of(step: Callable[[], object], device: str) -> tuple[float, float]:
    """Wall time and this process's CPU time of one call, the device's queue emptied."""
    if device == "cuda":
        torch.cuda.synchronize()
    wall, processor = time.perf_counter(), time.process_time()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - processor
