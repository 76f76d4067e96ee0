"""Several processes: gradients averaged over them where the user's wrapper does not do it, and equal frozen weights.

``DistributedDataParallel`` averages the parameters it found when it was made. Around an engine these are its slices
and what always trains: nothing is left to do while the slices stay, and a draw that made new ones needs a new wrapper.
Around a model with an engine attached it finds no slices: their gradients are averaged here.

Held by ``tests/integration/test_two_processes.py``.
"""

import sys
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.weak import WeakIdKeyDictionary

from trady.engine.runtime.contract import PlannedModel
from trady.planner.errors import EngineError


class GradientAverage:
    """Sees to it that what one engine trains is averaged over processes, once.

    Slices are averaged at the end of a backward pass, before anything clips or unscales gradients, in the one order
    that is the same in all processes. An average of sums is the sum of averages, so accumulated gradients come out
    right, with ``no_sync`` and without.
    """

    def __init__(self) -> None:
        self._wrapper: weakref.ref[DistributedDataParallel] | None = None
        self._has_slices = False
        self._held: list[weakref.ref[nn.Parameter]] = []
        self._hooked: Any = WeakIdKeyDictionary()
        self._waiting: list[nn.Parameter] = []
        self._averages = False
        self._group: Any = None
        self._weights_are_equal = False

    def before_forward(self, engine: PlannedModel) -> None:
        """Look at the wrapper whose forward pass this is.

        Error:
            EngineError: The wrapper averages parameters that train no longer.
        """
        wrapper = DistributedDataParallel._get_active_ddp_module() if dist.is_available() else None
        if isinstance(wrapper, DistributedDataParallel):
            if self._wrapper is None or self._wrapper() is not wrapper:
                self._meet(wrapper, engine)
            self._check_held(engine)
            self._group = wrapper.process_group
            self._averages = not self._has_slices and wrapper.require_backward_grad_sync
        else:
            self._group, self._averages = None, is_sharded(engine.model)
        if self._averages:
            for _, parameter in engine.slices.named_parameters():
                if parameter not in self._hooked:
                    self._hooked[parameter] = parameter.register_post_accumulate_grad_hook(self._queue)

    def _meet(self, wrapper: DistributedDataParallel, engine: PlannedModel) -> None:
        """A wrapper not seen before: what it averages, and weights that it has not made equal."""
        self._wrapper = weakref.ref(wrapper)
        self._has_slices = any(module is engine for module in wrapper.module.modules())
        if wrapper.module is engine:
            held = wrapper._module_parameters
            if not self._weights_are_equal:
                _broadcast(engine.model.parameters(), wrapper.process_group)
                self._weights_are_equal = True
        else:
            held = self._averaged_by_wrapper(engine)
        self._held = [weakref.ref(parameter) for parameter in held]

    def _averaged_by_wrapper(self, engine: PlannedModel) -> list[nn.Parameter]:
        """What a wrapper made now would average."""
        slices = [parameter for _, parameter in engine.slices.named_parameters()] if self._has_slices else []
        return [*slices, *(parameter for parameter in engine.model.parameters() if parameter.requires_grad)]

    def _check_held(self, engine: PlannedModel) -> None:
        held, wanted = {id(found()) for found in self._held}, self._averaged_by_wrapper(engine)
        missing = sum(id(parameter) not in held for parameter in wanted)
        if missing or len(held) != len(wanted):
            raise EngineError(
                f"DistributedDataParallel was made before the draw of epoch {engine.epoch}, which changed how many "
                f"channels layers train: {missing} of {len(wanted)} parameters would not be averaged over the "
                "processes. Wrap again after each draw, engine.resample(epoch); model = DistributedDataParallel("
                "engine), or plan with --strategy solver, whose counts stay."
            )

    def _queue(self, parameter: nn.Parameter) -> None:
        """Called when a slice's gradient is complete."""
        if self._averages:
            if not self._waiting:
                torch.autograd.Variable._execution_engine.queue_callback(self._average)
            self._waiting.append(parameter)

    def _average(self) -> None:
        waiting, self._waiting = self._waiting, []
        average_([parameter.grad for parameter in waiting if parameter.grad is not None], self._group)


def is_sharded(model: nn.Module) -> bool:
    """Whether ``fully_shard`` was applied to a model; its class is then a made-up one."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(model, fsdp.FSDPModule)


def _broadcast(parameters: Iterable[nn.Parameter], group: Any) -> None:
    """Give all processes the first one's weights, of which the wrapper of an engine only knows those that train."""
    for parameter in parameters:
        received = parameter.detach().clone(memory_format=torch.contiguous_format)
        dist.broadcast(received, group=group, group_src=0)
        with torch.no_grad():
            parameter.copy_(received)


def average_(tensors: list[Tensor], group: dist.ProcessGroup | None = None) -> None:
    """Average tensors over processes, in place."""
    size = dist.get_world_size(group)
    sums = [tensor.contiguous() for tensor in tensors]
    for work in [dist.all_reduce(found, group=group, async_op=True) for found in sums]:
        work.wait()
    for tensor, found in zip(tensors, sums, strict=True):
        torch.div(found, size, out=tensor)


def mean_over_processes(norms: Mapping[str, list[float]], device: torch.device) -> dict[str, list[float]]:
    """Norms that each process measured on batches of its own, averaged: all of them draw by the same.

    Args:
        norms: Layer -> norm of each channel.
        device: Where the processes' backend wants tensors.

    Returns:
        The mean of every value, the same in all processes.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return dict(norms)
    tensors = {name: torch.tensor(found, dtype=torch.float64, device=device) for name, found in norms.items()}
    average_(list(tensors.values()))
    return {name: found.tolist() for name, found in tensors.items()}
