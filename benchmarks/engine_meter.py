"""Exact bytes of a step: what the allocator was asked for, and what autograd keeps."""

import gc
import time
import weakref
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile


class AllocatorTrace:
    """Bytes allocated inside a ``with`` block, beyond what was there before it.

    On the CPU they are the allocator's own events, in the order of time; on CUDA its statistics. Set
    ``KINETO_LOG_LEVEL=99`` before torch is imported: the profiler talks on stderr otherwise.

    Attributes:
        peak_bytes: The most that was held at once.
        net_bytes: What is still held at the end.
    """

    def __init__(self, device: str) -> None:
        self.peak_bytes = self.net_bytes = self._before = 0
        self._cuda = device == "cuda"
        self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=False)

    def __enter__(self) -> Self:
        gc.collect()
        if self._cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        else:
            self._profile.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        gc.collect()
        if self._cuda:
            torch.cuda.synchronize()
            self.peak_bytes = torch.cuda.max_memory_allocated() - self._before
            self.net_bytes = torch.cuda.memory_allocated() - self._before
            return
        self._profile.__exit__(kind, error, trace)
        results = self._profile.profiler.kineto_results if self._profile.profiler else None
        events = [event for event in results.events() if event.name() == "[memory]"] if results else []
        for event in sorted(events, key=lambda event: event.start_ns()):
            self.net_bytes += event.nbytes()
            self.peak_bytes = max(self.peak_bytes, self.net_bytes)


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
