"""Recording a forward pass below autograd: operations, storages, and what autograd packs meanwhile.

Held by ``tests/integration/test_saved_bytes.py``.
"""

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from trady.planner.models import dtype_name, input_tensors
from trady.planner.tracing.fake_kernels import run_fake
from trady.planner.tracing.records import REQUIRING_INPUTS, Capture, Operand, Operation, StorageRecord, TensorRecord
from trady.planner.tracing.saved_tensor_probes import TriggerProbes

UNRECORDED: Final = frozenset({"prim::device", "aten::sym_size", "aten::sym_stride", "aten::is_same_size"})
_PLAIN: Final = (bool, int, float, str)


class _Packed:
    """What autograd holds in place of a saved tensor: dies with the graph node that saved it."""

    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class _ApiNames(TorchFunctionMode):
    """Names the outermost Python function under which operations run."""

    def __init__(self) -> None:
        super().__init__()
        self.current = ""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        before, self.current = self.current, getattr(func, "__name__", "")
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.current = before


@dataclass
class _Draft:
    """An operation before the saved tensors are attributed to it."""

    operation: Operation
    sequence: int


def sequence_number() -> int:
    """Autograd's count of graph nodes so far."""
    return int(torch.autograd._get_sequence_nr())  # type: ignore[attr-defined]


class Recorder:
    """Context that records operations and saved tensors; re-enterable, so that the loss can follow the model.

    Args:
        model: The copy that runs.
        probes: What is known of its operations from earlier recordings.
    """

    def __init__(self, model: nn.Module, probes: TriggerProbes) -> None:
        self._probes = probes
        self._api = _ApiNames()
        self._dispatch = _DispatchRecorder(self)
        self._hooks = saved_tensors_hooks(self._pack, lambda packed: packed.tensor)
        self._entered = ExitStack()
        self._module_stack: list[tuple[str, str]] = [("", "")]
        self._alive: list[Any] = []
        self._storage_index: dict[int, int] = {}
        self._storages: list[StorageRecord] = []
        self._upstream: list[int] = []
        self._packed: list[tuple[Any, int, int, int]] = []
        self._drafts: list[_Draft] = []
        self._parameters: list[str] = []
        for name, parameter in model.named_parameters():
            storage = self._claim_one(parameter, "parameter", name)
            self._upstream[storage] |= 1 << len(self._parameters)
            self._parameters.append(name)
        self._required_bit = 1 << len(self._parameters)
        self._parameters.append(REQUIRING_INPUTS)
        for name, buffer in model.named_buffers():
            self._claim_one(buffer, "buffer", name)

    @property
    def running(self) -> tuple[str, str]:
        """Name of the module that runs, or ran when an error left it, and the shapes it was given."""
        return self._module_stack[-1]

    def claim(self, tensors: Iterator[Tensor] | Sequence[Tensor], kind: str) -> None:
        """Mark storages as the batch's, so that they are not counted as activations."""
        for tensor in tensors:
            self._claim_one(tensor, kind, "")

    def claim_new_buffers(self, model: nn.Module) -> bool:
        """Mark the buffers that the forward pass put in place of others; whether there were any.

        Some models make their position tables at the first forward, for the size they meet.
        """
        found = False
        for name, buffer in model.named_buffers():
            index = self._storage_of(buffer)
            if self._storages[index].kind == "activation":
                self._storages[index] = replace(self._storages[index], kind="buffer", name=name)
                found = True
        return found

    @contextmanager
    def modules_followed(self, model: nn.Module) -> Iterator[None]:
        """Know which module runs; the model is a private copy, the hooks are removed all the same."""
        handles = []
        for name, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(self._entering(name), with_kwargs=True))
            handles.append(module.register_forward_hook(self._leaving))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __enter__(self) -> None:
        with ExitStack() as entered:
            for context in (self._hooks, self._api, self._dispatch):
                entered.enter_context(context)
            self._entered = entered.pop_all()

    def __exit__(self, *exception: Any) -> None:
        self._entered.__exit__(*exception)

    def record_tensor(self, tensor: Tensor) -> TensorRecord:
        """Describe a tensor by the storage it lies on."""
        return TensorRecord(
            self._storage_of(tensor),
            tuple(tensor.shape),
            tuple(tensor.stride()),
            int(tensor.storage_offset()),
            dtype_name(tensor.dtype),
            tensor.element_size(),
        )

    def record_operation(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        """Note an operation, its operands and what its results depend on."""
        if func.name().split(".")[0] in UNRECORDED:
            return
        operands, attributes = self._read_arguments(func, args, kwargs)
        outputs = tuple(self.record_tensor(tensor) for tensor in input_tensors(result))
        upstream = 0
        for operand in operands:
            upstream |= operand.upstream
        for output, tensor in zip(outputs, input_tensors(result), strict=True):
            if tensor.is_floating_point() or tensor.is_complex():
                self._upstream[output.storage] |= upstream
        target = func.name().split(".")[0]
        operation = Operation(target, self._module_stack[-1][0], self._api.current, operands, outputs, attributes)
        self._probes.note(func, args, kwargs, operation)
        self._drafts.append(_Draft(operation, sequence_number()))

    def finish(self, batch_size: int, loss_name: str, output: TensorRecord) -> Capture:
        """The recording, saved tensors attributed to the operations that need them."""
        saved_by_operation = self._attribute_saved()
        operations = []
        for index, draft in enumerate(self._drafts):
            saved = saved_by_operation.get(index, ())
            triggers = self._probes.triggers(draft.operation, saved)
            operations.append(replace(draft.operation, saved=saved, triggers=triggers))
        alive = {storage for reference, storage, *_ in self._packed if reference() is not None}
        return Capture(
            batch_size,
            tuple(operations),
            tuple(self._storages),
            tuple(self._parameters),
            frozenset(storage for storage in alive if self._storages[storage].kind == "activation"),
            loss_name,
            output,
        )

    def _read_arguments(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Operand, ...], dict[str, Any]]:
        operands: list[Operand] = []
        attributes: dict[str, Any] = {}
        named = [(argument.name, value) for argument, value in zip(func._schema.arguments, args, strict=False)]
        for name, value in [*named, *kwargs.items()]:
            tensors = list(input_tensors(value))
            for tensor in tensors:
                record = self.record_tensor(tensor)
                if tensor.requires_grad and not self._upstream[record.storage]:
                    self._upstream[record.storage] = self._required_bit
                upstream = self._upstream[record.storage] if tensor.requires_grad else 0
                operands.append(Operand(name, record, tensor.requires_grad, upstream))
            if not tensors and (value is None or isinstance(value, _PLAIN) or _is_int_list(value)):
                attributes[name] = list(value) if isinstance(value, list | tuple) else value
        return tuple(operands), attributes

    def _claim_one(self, tensor: Tensor, kind: str, name: str) -> int:
        storage = tensor.untyped_storage()
        index = self._storage_index.get(storage._cdata)
        if index is None:
            index = len(self._storages)
            self._storage_index[storage._cdata] = index
            self._alive.append(storage)
            self._storages.append(
                StorageRecord(
                    int(storage.nbytes()),
                    kind,
                    name,
                    tuple(tensor.shape),
                    tuple(tensor.stride()),
                    tensor.element_size(),
                )
            )
            self._upstream.append(0)
        return index

    def _storage_of(self, tensor: Tensor) -> int:
        return self._claim_one(tensor, "activation", "")

    def _pack(self, tensor: Tensor) -> _Packed:
        packed = _Packed(tensor)
        sequence = sequence_number()
        self._packed.append((weakref.ref(packed), self._storage_of(tensor), sequence, len(self._drafts)))
        return packed

    def _attribute_saved(self) -> dict[int, tuple[int, ...]]:
        """Operation index -> storages packed for it.

        Inputs are packed before the operation is dispatched and results after; what they share with it is
        autograd's sequence number, taken when the graph node was made. An operation in place that needs its
        input for backward has autograd clone it first: the clone is the operation's.
        """
        by_sequence: dict[int, list[int]] = defaultdict(list)
        for index, draft in enumerate(self._drafts):
            by_sequence[draft.sequence].append(index)
        saved: dict[int, dict[int, None]] = defaultdict(dict)
        for reference, storage, sequence, position in self._packed:
            if reference() is None or self._storages[storage].kind != "activation":
                continue
            following = min(position, len(self._drafts) - 1)
            candidates = [index for index in by_sequence[sequence] if self._touches(index, storage)]
            in_place = self._drafts[following].operation.target.endswith("_")
            cloned = in_place and candidates == [following - 1] and self._is_clone(following - 1)
            saved[candidates[0] if candidates and not cloned else following][storage] = None
        return {index: tuple(storages) for index, storages in saved.items()}

    def _is_clone(self, index: int) -> bool:
        return self._drafts[index].operation.target == "aten::clone"

    def _touches(self, index: int, storage: int) -> bool:
        operation = self._drafts[index].operation
        read = any(operand.tensor.storage == storage for operand in operation.operands)
        return read or any(output.storage == storage for output in operation.outputs)

    def _entering(self, name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            shapes = ", ".join(str(list(tensor.shape)) for tensor in input_tensors((args, kwargs)))
            self._module_stack.append((name, shapes))

        return hook

    def _leaving(self, *_: Any) -> None:
        self._module_stack.pop()


class _DispatchRecorder(TorchDispatchMode):
    """Shows every operation below autograd to the recorder."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._recorder = recorder

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = run_fake(func, args, kwargs or {})
        self._recorder.record_operation(func, args, kwargs or {}, result)
        return result


def _is_int_list(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, int | bool) for item in value)
