"""When memory is released in one step: how long Python holds each tensor, and how gradients pass through backward.

The step runs once more on fake tensors, forward and backward, while autograd is kept from holding what it saves:
storages then die when Python lets go of them, as they do where nothing is recorded.

Held by ``tests/integration/test_peak.py``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from trady.planner.models import input_tensors
from trady.planner.tracing.calls import Call, Shape
from trady.planner.tracing.fake_kernels import run_fake
from trady.planner.tracing.gradient_lifetimes import GradientStorage, NodeRun, Passed, follow_gradients
from trady.planner.tracing.recorder import UNRECORDED, sequence_number


@dataclass(frozen=True)
class BackwardRun:
    """The backward pass of one forward operation.

    Args:
        operation: The forward operation's place.
        upstream: Bit set of trained parameters: it runs when any of them trains.
        scratch_bytes: What PyTorch's own formula has live at most beside the gradients it takes and gives.
        taken: The gradient of each of its results as it arrives: a part of another one after a concatenation,
            one element expanded after a sum.
    """

    operation: int
    upstream: int
    scratch_bytes: int
    taken: tuple[Shape | None, ...] = ()


@dataclass(frozen=True)
class Lifetimes:
    """When the memory of one step is released.

    Args:
        batch_size: Samples in the step.
        calls: Every forward operation as it was called, the loss included, in order.
        deaths: ``(operation, output, last)``: the storage first written as that output is held until ``last`` is
            done. Storages that are held to the end are not listed.
        backwards: Backward passes in the order they run.
        gradients: Storages of gradients towards activations.
    """

    batch_size: int
    calls: tuple[Call, ...]
    deaths: tuple[tuple[int, int, int], ...]
    backwards: tuple[BackwardRun, ...]
    gradients: tuple[GradientStorage, ...]

    @cached_property
    def taken(self) -> Mapping[int, tuple[Shape | None, ...]]:
        """Gradients that the backward of an operation takes, by the operation's place."""
        return {run.operation: run.taken for run in reversed(self.backwards)}


class LifetimeRecorder(TorchDispatchMode):
    """Context that records a forward pass; :meth:`backward` and :meth:`finish` follow inside it.

    Args:
        model: The fake copy that runs.
        batch: Inputs and targets.
    """

    def __init__(self, model: nn.Module, batch: Sequence[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._hooks = saved_tensors_hooks(self._pack, self._unpack)
        self._muted = False
        self._lasting: set[int] = set()
        self.claim([*model.parameters(), *model.buffers(), batch])
        self._parameters = [parameter for _, parameter in model.named_parameters()]
        self._from_parameters = {_storage_of(parameter) for parameter in self._parameters}
        self._references: list[StorageWeakRef] = []
        self._alive: dict[int, tuple[StorageWeakRef, int, int]] = {}
        self._deaths: list[tuple[int, int, int]] = []
        self._calls: list[Call] = []
        self._sequences: list[int] = []
        self._is_of_parameter: list[bool] = []
        self._backward: _BackwardRecorder | None = None

    def claim(self, tensors: object) -> None:
        """Leave out tensors that are there before the step: parameters, buffers, the batch."""
        self._lasting.update(_storage_of(tensor) for tensor in input_tensors(tensors))

    def __enter__(self) -> "LifetimeRecorder":
        self._hooks.__enter__()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        self._hooks.__exit__(*exception)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation and note what it makes."""
        kwargs = kwargs or {}
        if self._muted:
            return run_fake(func, args, kwargs)
        if self._backward is not None:
            return self._backward.run(func, args, kwargs)
        self._collect()
        result = run_fake(func, args, kwargs)
        if func.name().split(".")[0] not in UNRECORDED:
            self._note(func, args, kwargs, result)
        return result

    def backward(self, loss: Tensor) -> None:
        """Run the backward pass of the forward pass recorded before."""
        self._collect()
        self._backward = _BackwardRecorder(self._operation_of, self._is_of_parameter, self._parameters)
        try:
            self._backward.record(loss)
        finally:
            for parameter in self._parameters:
                parameter.grad = None

    def finish(self, batch_size: int) -> Lifetimes:
        """What was recorded."""
        assert self._backward is not None
        return Lifetimes(
            batch_size,
            tuple(self._calls),
            tuple(self._deaths),
            tuple(self._backward.backwards),
            follow_gradients(self._backward.runs),
        )

    def _note(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        place = len(self._calls)
        self._calls.append(Call.of(func, args, kwargs))
        self._sequences.append(sequence_number())
        outputs = list(input_tensors(result))
        for position, tensor in enumerate(outputs):
            storage = _storage_of(tensor)
            if storage not in self._lasting and storage not in self._alive:
                self._alive[storage] = (StorageWeakRef(tensor.untyped_storage()), place, position)
        sources = {_storage_of(tensor) for tensor in input_tensors((args, kwargs))}
        made = {_storage_of(tensor) for tensor in outputs}
        if func.name().startswith("aten::_to_copy") and sources <= self._from_parameters:
            self._from_parameters |= made
        self._is_of_parameter.append(bool(made) and made <= self._from_parameters)

    def _collect(self) -> None:
        """Notice what died since the last operation."""
        last = len(self._calls) - 1
        for storage, (reference, place, position) in list(self._alive.items()):
            if reference.expired():
                del self._alive[storage]
                self._from_parameters.discard(storage)
                self._deaths.append((place, position, last))

    def _operation_of(self, name: str, sequence: int) -> int:
        """The operation that a graph node was made for, by autograd's count and by name.

        An operation in place that needs its input for backward has autograd clone it in between.
        """
        wanted = name.rstrip("0123456789").removesuffix("Backward").lower()
        near = [place for place, count in enumerate(self._sequences) if sequence < count <= sequence + 2]
        for place in near:
            target = self._calls[place].function.name().split(".")[0].removeprefix("aten::")
            if target.replace("_", "") == wanted:
                return place
        return near[0] if near else len(self._calls) - 1

    def _pack(self, tensor: Tensor) -> Tensor | Shape:
        return tensor if _storage_of(tensor) in self._lasting else Shape.of(tensor)

    def _unpack(self, packed: Tensor | Shape) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        self._muted = True
        try:
            return packed.new()
        finally:
            self._muted = False


class _BackwardRecorder:
    """Follows the nodes of a graph as they run.

    Args:
        operation_of: Node's name and sequence number -> place of its forward operation.
        is_of_parameter: For each operation whether it only views or casts a parameter.
        parameters: Of the model, in order.
    """

    def __init__(
        self, operation_of: Callable[[str, int], int], is_of_parameter: Sequence[bool], parameters: Sequence[Tensor]
    ) -> None:
        self._operation_of, self._is_of_parameter = operation_of, is_of_parameter
        self._bit_of = {id(parameter): bit for bit, parameter in enumerate(parameters)}
        self._references: list[StorageWeakRef] = []
        self._seen: set[int] = set()
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}
        self._most = 0
        self._taken: dict[int, int] = {}
        self._shapes: tuple[Shape | None, ...] = ()
        self.runs: list[NodeRun] = []
        self.backwards: list[BackwardRun] = []

    def record(self, loss: Tensor) -> None:
        """Run the backward pass with hooks on every node; the hooks are removed on any exit."""
        nodes = _nodes_of(loss.grad_fn)
        upstreams = self._upstreams(nodes)
        handles = []
        try:
            for place, node in enumerate(nodes.values()):
                if not hasattr(node, "variable"):
                    handles.append(node.register_prehook(self._entering))
                    handles.append(node.register_hook(self._leaving(node, place, nodes, upstreams)))
            loss.backward()
        finally:
            for handle in handles:
                handle.remove()

    def run(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """One operation of the backward pass."""
        for tensor in input_tensors((args, kwargs)):
            self._known(tensor)
        result = run_fake(func, args, kwargs)
        for tensor in input_tensors(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._seen:
                self._seen.add(storage._cdata)
                self._made[storage._cdata] = (self._reference(storage), int(storage.nbytes()))
        self._made = {key: found for key, found in self._made.items() if not found[0].expired()}
        self._most = max(self._most, sum(size for _, size in self._made.values()))
        return result

    def _reference(self, storage: Any) -> StorageWeakRef:
        """A weak reference, kept so that no other storage gets the same address."""
        self._references.append(StorageWeakRef(storage))
        return self._references[-1]

    def _entering(self, gradients: Sequence[Tensor | None]) -> None:
        self._made, self._most = {}, 0
        self._taken = {slot: self._known(found) for slot, found in enumerate(gradients) if found is not None}
        self._shapes = tuple(None if found is None else Shape.of(found) for found in gradients)

    def _known(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self._reference(storage)
        return int(storage._cdata)

    def _leaving(
        self, node: Any, place: int, nodes: Mapping[int, Any], upstreams: Mapping[int, int]
    ) -> Callable[..., None]:
        places = {key: number for number, key in enumerate(nodes)}

        def hook(given: Sequence[Tensor | None], _: Any) -> None:
            operation = self._operation_of(node.name(), node._sequence_nr())
            passed, fresh = [], set()
            for gradient, (following, slot) in zip(given, node.next_functions, strict=True):
                if gradient is None or following is None:
                    continue
                fresh.add(self._known(gradient))
                if not self._is_parameters(following):
                    passed.append(_passed(gradient, places[id(following)], slot))
            kept = sum(size for storage, (_, size) in self._made.items() if storage in fresh)
            upstream = upstreams[id(node)]
            self.runs.append(NodeRun(place, operation, upstream, self._taken, tuple(passed)))
            self.backwards.append(BackwardRun(operation, upstream, max(0, self._most - kept), self._shapes))

        return hook

    def _is_parameters(self, node: Any) -> bool:
        """Whether a node takes the gradient of a parameter, or of a view or cast of one."""
        if hasattr(node, "variable"):
            return True
        return self._is_of_parameter[self._operation_of(node.name(), node._sequence_nr())]

    def _upstreams(self, nodes: Mapping[int, Any]) -> dict[int, int]:
        """Bit set of the parameters each node leads to."""
        upstreams: dict[int, int] = {}
        for key, node in sorted(nodes.items(), key=lambda item: _order(item[1])):
            if hasattr(node, "variable"):
                upstreams[key] = 1 << self._bit_of[id(node.variable)] if id(node.variable) in self._bit_of else 0
            else:
                upstreams[key] = 0
                for following, _ in node.next_functions:
                    if following is not None:
                        upstreams[key] |= upstreams[id(following)]
        return upstreams


def _order(node: Any) -> int:
    """Leaves first, then by age: a node leads to older ones only."""
    return -1 if hasattr(node, "variable") else int(node._sequence_nr())


def _nodes_of(root: Any) -> dict[int, Any]:
    """Every node a loss leads to, by identity; holding them keeps their Python objects."""
    nodes, stack = {}, [root]
    while stack:
        node = stack.pop()
        if id(node) not in nodes:
            nodes[id(node)] = node
            stack.extend(following for following, _ in node.next_functions if following is not None)
    return nodes


def _passed(gradient: Tensor, node: int, slot: int) -> Passed:
    storage = gradient.untyped_storage()
    own = gradient.numel() * gradient.element_size()
    return Passed(node, slot, int(storage._cdata), int(storage.nbytes()), own)


def _storage_of(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
