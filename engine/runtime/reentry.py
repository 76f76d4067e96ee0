"""Entering the engine's mode where the engine's own forward is not on the stack.

Two cases: a region that checkpointing computes again during backward, on whatever thread, and a model the engine is
attached to, which the user calls directly. Both are met by hooks on all modules, kept outside the model, so that
nothing of ours is in its pickles and copies; they act on this engine's modules only.

Held by ``tests/engine/runtime/test_checkpointing.py``.
"""

import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Final, Protocol

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from trady.planner.errors import EngineError

#: What to tell who wraps in ``torch.nn.DataParallel``.
DATA_PARALLEL: Final = (
    "torch.nn.DataParallel copies the model for each device at every step, and the copies train no slices. "
    "Use torch.nn.parallel.DistributedDataParallel, one process for each device (torchrun), or show this process a "
    "single device (CUDA_VISIBLE_DEVICES=0)."
)

_local = threading.local()


class Runner(Protocol):
    """What is entered again."""

    model: nn.Module

    def redirected(self, inputs: object = None) -> AbstractContextManager[object]:
        """The context of a lean forward pass."""


class Reentry:
    """Hooks that enter an engine's mode; nothing happens before :meth:`install`.

    Args:
        runner: The engine, held weakly.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = weakref.ref(runner)
        self._modules = {id(module) for module in runner.model.modules()}
        self._handles: list[Any] = []
        self.attached = False

    @property
    def is_installed(self) -> bool:
        """Whether the hooks are in place."""
        return bool(self._handles)

    def install(self, *, attached: bool = False) -> None:
        """Put the hooks in place.

        Args:
            attached: Enter at each call of the model itself too, not only while checkpointing recomputes.
        """
        self.attached = self.attached or attached
        if not self._handles:
            before, after = weakref.WeakMethod(self._before), weakref.WeakMethod(self._after)
            self._handles.append(register_module_forward_pre_hook(_calling(before)))
            self._handles.append(register_module_forward_hook(_calling(after), always_call=True))
            weakref.finalize(self, _remove, self._handles)

    def remove(self) -> None:
        """Take the hooks away."""
        _remove(self._handles)
        self.attached = False

    def _before(self, module: nn.Module, args: Any) -> None:
        if self.attached and getattr(module, "_is_replica", False):
            runner = self._runner()
            if runner is not None and type(module) is type(runner.model):
                raise EngineError(DATA_PARALLEL)
        if id(module) not in self._modules or is_active(self) or not torch.is_grad_enabled():
            return
        runner = self._runner()
        if runner is None:
            return
        recomputes = torch._C._current_graph_task_id() != -1
        if recomputes or (self.attached and module is runner.model):
            stack = ExitStack()
            stack.enter_context(runner.redirected(None if recomputes else (args, {})))
            _entered().append((self, module, stack))

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        entered = _entered()
        if entered and entered[-1][0] is self and entered[-1][1] is module:
            failed = output is None and sys.exc_info()[0] is not None
            entered.pop()[2].__exit__(*(sys.exc_info() if failed else (None, None, None)))


def is_active(key: object) -> bool:
    """Whether a mode was entered by these hooks, or by the engine's forward, on this thread."""
    return any(found is key for found, *_ in _entered())


def mark_active(key: object) -> Callable[[], None]:
    """Tell that the engine's forward runs on this thread; returns what undoes it."""
    entered = _entered()
    entered.append((key, None, None))

    def undo() -> None:
        entered.pop()

    return undo


def _entered() -> list[tuple[Any, Any, Any]]:
    if not hasattr(_local, "entered"):
        _local.entered = []
    found: list[tuple[Any, Any, Any]] = _local.entered
    return found


def _calling(method: "weakref.WeakMethod[Any]") -> Callable[..., None]:
    """A hook that keeps nobody alive."""

    def hook(*args: Any) -> None:
        found = method()
        if found is not None:
            found(*args)

    return hook


def _remove(handles: list[Any]) -> None:
    for handle in handles:
        handle.remove()
    handles.clear()
