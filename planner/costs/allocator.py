"""What runs allocate: the allocator's own word, on the CPU and on CUDA."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from types import TracebackType
from typing import Any, Final

import torch
from torch.autograd.profiler import profile, record_function

#: How the profiler names an allocation (a positive number of bytes) or a release (a negative one).
_MEMORY_EVENT: Final = "[memory]"
_LAP: Final = "trady lap"


class AllocationMeter:
    """Context in which torch's allocator is watched; the figures are there once it is left.

    On the CPU the profiler notes every allocation, those of kernels and of autograd's threads included, so that the
    peak is exact. On CUDA the allocator counts; its peak statistics are reset on entering.

    Args:
        device: Device whose memory is watched.

    Attributes:
        peak_bytes: The most that was live at once, above what was live on entering.
        left_bytes: What is live on leaving, above what was live on entering.

    Known limitations:
        On the CPU memory of before counts to the end, even if it is released inside (torch warns on stderr), and the
        profiler serves one user at a time: not inside ``torch.profiler.profile``. Nothing is known of memory that
        does not come from torch's allocator.
    """

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self.peak_bytes = 0
        self.left_bytes = 0
        self._profile: Any = None
        self._before = 0
        self._laps: list[int] = []

    def __enter__(self) -> "AllocationMeter":
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        else:
            self._profile = profile(use_kineto=True, profile_memory=True)
            with _stderr_silenced():
                self._profile.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.peak_bytes = torch.cuda.max_memory_allocated(self.device) - self._before
            self.left_bytes = torch.cuda.memory_allocated(self.device) - self._before
            return
        with _stderr_silenced():
            self._profile.__exit__(kind, error, traceback)
        live = [live for _, live in self._live()]
        self.peak_bytes, self.left_bytes = max([0, *live]), live[-1] if live else 0

    def lap(self, function: Callable[[], object]) -> object:
        """Run a function whose own peak :meth:`lap_peaks` tells; on the CPU only."""
        self._laps.append(len(self._laps))
        with record_function(f"{_LAP} {self._laps[-1]}"):
            return function()

    def lap_peaks(self) -> list[int]:
        """Bytes above its start that each lap had live at most, in order."""
        events = {event.name(): event for event in self._profile.kineto_results.events() if _LAP in event.name()}
        live = self._live()
        peaks = []
        for number in self._laps:
            event = events[f"{_LAP} {number}"]
            start, end = event.start_ns(), event.start_ns() + event.duration_ns()
            before = [found for when, found in live if when < start]
            inside = [found for when, found in live if start <= when <= end]
            base = before[-1] if before else 0
            peaks.append(max([base, *inside]) - base)
        return peaks

    def _live(self) -> list[tuple[int, int]]:
        """Time in nanoseconds and live bytes after each allocation or release."""
        found = (event for event in self._profile.kineto_results.events() if event.name() == _MEMORY_EVENT)
        changes = sorted(
            ((event.start_ns(), event.nbytes()) for event in found if event.device_type().name == "CPU"),
            key=lambda change: change[0],
        )
        return list(zip((when for when, _ in changes), accumulate(size for _, size in changes), strict=True))


def peak_of(function: Callable[[], object], device: str | torch.device = "cpu") -> int:
    """Most bytes that are live at once while a function runs, above what is live before it.

    Args:
        function: What runs; its result counts until it returns, and is dropped.
        device: Device whose allocator is asked.

    Returns:
        Bytes; exact for torch's allocator.
    """
    with AllocationMeter(device) as meter:
        function()
    return meter.peak_bytes


def peaks_of(functions: Sequence[Callable[[], object]], device: str | torch.device = "cpu") -> list[int]:
    """:func:`peak_of` each of many functions; one profile serves them all on the CPU."""
    if torch.device(device).type == "cuda":
        return [peak_of(function, device) for function in functions]
    with AllocationMeter(device) as meter:
        for function in functions:
            meter.lap(function)
    return meter.lap_peaks()


@contextmanager
def _stderr_silenced() -> Iterator[None]:
    """Drop what the profiler's C++ says on stderr as it starts and stops; what runs in between still speaks."""
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # no stderr at all
        yield
        return
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
