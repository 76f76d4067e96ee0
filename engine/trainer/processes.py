"""One process or several: who this one is, and the few things they must agree on.

Held by ``tests/integration/test_two_processes.py``.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from trady.planner.errors import EngineError

Value = TypeVar("Value")


@dataclass(frozen=True)
class Processes:
    """The processes of a run, as one of them sees them.

    Args:
        rank: Number of this process, from 0.
        size: How many there are.
        device: Device this process trains on.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009  (a device is a value)

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def totals(self, *numbers: float) -> tuple[float, ...]:
        """Each number summed over the processes, in double precision."""
        return self._reduced(numbers, dist.ReduceOp.SUM)

    def any_of(self, *flags: bool) -> tuple[bool, ...]:
        """Whether each flag is up in any process."""
        if self.size == 1:
            return flags
        return tuple(bool(found) for found in self._reduced(flags, dist.ReduceOp.MAX))

    def gathered(self, value: Value) -> list[Value]:
        """The value of every process, by rank; only the first process gets them all."""
        if self.size == 1:
            return [value]
        found: list[Any] | None = [None] * self.size if self.is_first else None
        dist.gather_object(value, found)
        return found or []

    def wait(self) -> None:
        """Go on when all processes have come this far."""
        if self.size > 1:
            dist.barrier()

    def _reduced(self, numbers: tuple[float, ...], operation: Any) -> tuple[float, ...]:
        if self.size == 1:
            return numbers
        tensor = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, operation)
        return tuple(tensor.tolist())


@contextmanager
def joined_processes(device: str) -> Iterator[Processes]:
    """Join the other processes of ``torchrun``, where it started this one.

    Args:
        device: ``cpu`` or ``cuda``; each process takes the CUDA device of its local rank.

    Yields:
        This process among them.

    Raises:
        EngineError: There is no CUDA device for this process.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "cuda" and local_rank >= torch.cuda.device_count():
        raise EngineError(
            f"Process {local_rank} of this machine has no CUDA device: there are {torch.cuda.device_count()}. "
            "Start fewer processes, or train with --device cpu."
        )
    place = torch.device(device, local_rank) if device == "cuda" else torch.device(device)
    if device == "cuda":
        torch.cuda.set_device(place)
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Processes(device=place)
        return
    joined_here = not dist.is_initialized()
    if joined_here:
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), size, place)
    finally:
        if joined_here:
            dist.destroy_process_group()
