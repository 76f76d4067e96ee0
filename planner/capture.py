"""One training step on fake tensors, recorded operation by operation.

A recording knows every ATen operation below autograd, the storages it reads and writes, and what
autograd packed for backward while it ran: PyTorch's own word, not a model of it. Nothing is computed
and no activation memory is used.
"""

import copy
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeCopyMode,
    FakeTensorMode,
)
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from trady.planner.errors import TracingError
from trady.planner.options import MemoryFormat, NormMode
from trady.planner.training_step import (
    MODEL_LOSS,
    Inputs,
    LossFunction,
    call_model,
    input_tensors,
    logits_of,
    loss_name_of,
    map_tensors,
    own_loss,
    step_loss,
    synthetic_targets,
)

_UNRECORDED: Final = frozenset({"prim::device", "aten::sym_size", "aten::sym_stride", "aten::is_same_size"})
_VIEWLESS_SCALARS = (bool, int, float, str)


@dataclass(frozen=True)
class StorageRecord:
    """A block of memory met during the step.

    Args:
        num_bytes: Its size.
        kind: ``parameter``, ``buffer``, ``input`` (the batch and its targets) or ``activation``.
        name: Dotted name of the parameter or buffer; empty otherwise.
        tensor_shape: Shape of the first tensor seen on it.
        tensor_stride: Strides of that tensor, in elements.
        itemsize: Bytes per element of that tensor.
    """

    num_bytes: int
    kind: str
    name: str
    tensor_shape: tuple[int, ...]
    tensor_stride: tuple[int, ...]
    itemsize: int


@dataclass(frozen=True)
class TensorRecord:
    """A view of a storage, as an operation read or wrote it."""

    storage: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: str
    itemsize: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        product = 1
        for size in self.shape:
            product *= size
        return product


@dataclass(frozen=True)
class Operand:
    """A tensor argument of an operation.

    Args:
        name: Argument name in the operation's schema.
        tensor: What was passed.
        differentiable: Whether autograd follows it when every parameter trains.
        upstream: Bit set of the parameters it depends on through differentiable paths.
    """

    name: str
    tensor: TensorRecord
    differentiable: bool
    upstream: int


@dataclass(frozen=True)
class Operation:
    """One ATen operation of the forward pass.

    Args:
        target: Schema name, ``aten::convolution``.
        module: Dotted path of the module running it.
        api: The Python function it was reached through, ``dropout``; empty where there was none.
        operands: Tensor arguments.
        outputs: Tensor results.
        attributes: Plain arguments (strides, flags) by schema name.
        saved: Storages autograd packed for it, still alive when the loss exists, with every parameter training.
        triggers: For each saved storage, the operands whose gradient needs it.
    """

    target: str
    module: str
    api: str
    operands: tuple[Operand, ...]
    outputs: tuple[TensorRecord, ...]
    attributes: Mapping[str, Any]
    saved: tuple[int, ...] = ()
    triggers: Mapping[int, frozenset[str]] = field(default_factory=dict)

    def operand(self, name: str) -> Operand | None:
        """The tensor argument of that schema name, if it was given."""
        return next((operand for operand in self.operands if operand.name == name), None)


@dataclass(frozen=True)
class Capture:
    """A recorded training step at one batch size.

    Args:
        batch_size: Samples in the step.
        operations: Forward operations in order, the loss included.
        storages: Every storage met, by index.
        parameters: Parameter names by bit position of :attr:`Operand.upstream`.
        saved: Storages packed by autograd and alive when the loss exists (parameters, buffers, batch left out).
        loss_name: How the loss is named in a plan.
        output: What the loss read: the model's logits, or its own loss.
    """

    batch_size: int
    operations: tuple[Operation, ...]
    storages: tuple[StorageRecord, ...]
    parameters: tuple[str, ...]
    saved: frozenset[int]
    loss_name: str
    output: TensorRecord

    @property
    def saved_bytes(self) -> int:
        """Bytes autograd keeps for backward when every parameter trains."""
        return sum(self.storages[storage].num_bytes for storage in self.saved)


@dataclass(frozen=True)
class StepSettings:
    """How a step is run: everything that changes what is saved, the batch size apart.

    Args:
        norm: What norms with running statistics do.
        dtype: Element type floating-point parameters, buffers and inputs are cast to; ``None`` keeps theirs.
        amp: Autocast element type; ``None`` for none.
        device: Device the step is planned for.
        memory_format: Layout of four-dimensional tensors.
    """

    norm: NormMode = NormMode.FROZEN
    dtype: torch.dtype | None = None
    amp: torch.dtype | None = None
    device: str = "cpu"
    memory_format: MemoryFormat = MemoryFormat.CONTIGUOUS

    def autocast(self) -> AbstractContextManager[Any]:
        """The autocast context of the step, or an empty one."""
        return nullcontext() if self.amp is None else torch.autocast(self.device, dtype=self.amp)


def set_training_mode(model: nn.Module, norm: NormMode) -> nn.Module:
    """Put a model in training mode, norms with running statistics in the asked one; in place.

    A frozen norm normalises with its running statistics and leaves them, and its batch counter, alone.
    """
    model.train()
    if norm is NormMode.FROZEN:
        for module in model.modules():
            if hasattr(module, "running_mean"):
                module.train(False)
    return model


class FakeModel:
    """A copy of a model that computes shapes only; one copy serves many recordings.

    Args:
        model: The user's model, on any device (``meta`` too); left untouched.
        settings: Norm mode, element types, device, layout.
    """

    def __init__(self, model: nn.Module, settings: StepSettings) -> None:
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._settings = settings
        with self._mode:
            self._model = set_training_mode(_fake_copy(model, self._mode, settings), settings.norm)
        self._requires_grad = {name: parameter.requires_grad for name, parameter in self._model.named_parameters()}

    def capture(
        self,
        inputs: Inputs,
        batch_size: int,
        *,
        targets: Any = None,
        loss: LossFunction | None = None,
        trainable: frozenset[str] | None = None,
    ) -> Capture:
        """Record one training step.

        Args:
            inputs: Example inputs; their first dimension is replaced by ``batch_size``.
            batch_size: Samples in the recorded step.
            targets: Targets of ``loss``, batched like the inputs; made up for cross-entropy where not given.
            loss: ``loss(outputs, targets)``; ``None`` takes the model's own, else cross-entropy.
            trainable: Names of the parameters that train; ``None`` for all that require a gradient. Kernels are
                chosen by it: attention with a trained mask takes another path than with a frozen one.

        Raises:
            TracingError: The step cannot run on fake tensors, or no parameter reaches the loss.
        """
        for name, parameter in self._model.named_parameters():
            parameter.requires_grad_(self._requires_grad[name] and (trainable is None or name in trainable))
        with self._mode:
            batch = [_fake_batch(nested, batch_size, self._settings) for nested in (inputs, targets)]
            recorder = _Recorder(self._model)
            try:
                return self._record(recorder, batch, batch_size, loss)
            except TracingError:
                raise
            except Exception as error:
                raise _explained(error, recorder, self._model) from error

    def _record(self, recorder: "_Recorder", batch: list[Any], batch_size: int, loss: LossFunction | None) -> Capture:
        inputs, targets = batch
        recorder.claim(input_tensors(batch), "input")
        with recorder.modules_followed(self._model), self._settings.autocast():
            with recorder:
                outputs = call_model(self._model, inputs)
            if targets is None and (loss is not None or own_loss(outputs) is None):
                targets = synthetic_targets(outputs)
                recorder.claim([targets], "input")
            with recorder:
                value = step_loss(outputs, targets, loss)
        loss_name = loss_name_of(outputs, loss)
        read_by_loss = recorder.record_tensor(_read_by_loss(outputs, loss_name, value))
        if not (isinstance(value, Tensor) and value.requires_grad):
            raise TracingError(
                "The loss does not depend on any parameter that requires a gradient. "
                "Set requires_grad to True on the parameters Trady may train."
            )
        del outputs
        return recorder.finish(batch_size, loss_name, read_by_loss)


def _read_by_loss(outputs: Any, loss_name: str, value: Tensor) -> Tensor:
    own = own_loss(outputs) if loss_name == MODEL_LOSS else None
    if own is not None:
        return own
    try:
        return logits_of(outputs)
    except TracingError:
        return value


def _explained(error: Exception, recorder: "_Recorder", model: nn.Module) -> TracingError:
    """Which module failed, on what shapes, and what helps."""
    name, shapes = recorder.running
    kind = type(dict(model.named_modules()).get(name, model)).__name__
    where = f"Module {name!r} ({kind})" if name else f"The model ({kind})"
    if isinstance(error, DataDependentOutputException | DynamicOutputShapeException):
        return TracingError(
            f"{where} routes by the values of its inputs ({error.func}), which a plan cannot know. For a mixture of "
            "experts of transformers build the model with experts_implementation='grouped_mm', whose shapes are fixed."
        )
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return TracingError(
        f"{where} cannot run on inputs of shape {shapes or 'unknown'}: {first_line} "
        "Give inputs that the model takes (--input 3x224x224 on the command line)."
    )


def _fake_copy(model: nn.Module, mode: FakeTensorMode, settings: StepSettings) -> nn.Module:
    """Deep copy in which every parameter and buffer is fake: no element is read or copied."""

    def fake(tensor: Tensor) -> Tensor:
        dtype = settings.dtype if settings.dtype is not None and tensor.is_floating_point() else tensor.dtype
        if settings.memory_format is MemoryFormat.CHANNELS_LAST and tensor.dim() == 4:
            return torch.empty(
                tensor.shape, dtype=dtype, device=settings.device, memory_format=torch.channels_last
            )
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype, device=settings.device)

    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(fake(parameter.detach()), requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = fake(buffer)
    with FakeCopyMode(mode):
        copied: nn.Module = copy.deepcopy(model, memo)
    return copied


def _fake_batch(nested: Any, batch_size: int, settings: StepSettings) -> Any:
    def fake(tensor: Tensor) -> Tensor:
        shape = (batch_size, *tensor.shape[1:]) if tensor.dim() else ()
        dtype = settings.dtype if settings.dtype is not None and tensor.is_floating_point() else tensor.dtype
        channels_last = settings.memory_format is MemoryFormat.CHANNELS_LAST and len(shape) == 4
        layout = torch.channels_last if channels_last else torch.contiguous_format
        return torch.empty(shape, dtype=dtype, device=settings.device, memory_format=layout)

    return map_tensors(fake, nested)


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

    function: Any
    arguments: tuple[Sequence[Any], Mapping[str, Any]]
    operation: Operation
    sequence: int


class _Recorder:
    """Context that records operations and saved tensors; re-enterable, so that the loss can follow the model."""

    def __init__(self, model: nn.Module) -> None:
        self._api = _ApiNames()
        self._dispatch = _DispatchRecorder(self)
        self._hooks = saved_tensors_hooks(self._pack, lambda packed: packed.tensor)
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
        self._hooks.__enter__()
        self._api.__enter__()
        self._dispatch.__enter__()

    def __exit__(self, *exception: Any) -> None:
        self._dispatch.__exit__(*exception)
        self._api.__exit__(*exception)
        self._hooks.__exit__(*exception)

    def record_tensor(self, tensor: Tensor) -> TensorRecord:
        """Describe a tensor by the storage it lies on."""
        return TensorRecord(
            self._storage_of(tensor),
            tuple(tensor.shape),
            tuple(tensor.stride()),
            int(tensor.storage_offset()),
            str(tensor.dtype).removeprefix("torch."),
            tensor.element_size(),
        )

    def record_operation(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        """Note an operation, its operands and what its results depend on."""
        if func.name().split(".")[0] in _UNRECORDED:
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
        self._drafts.append(_Draft(func, (args, kwargs), operation, torch.autograd._get_sequence_nr()))

    def finish(self, batch_size: int, loss_name: str, output: TensorRecord) -> Capture:
        """The recording, saved tensors attributed to the operations that need them."""
        saved_by_operation = self._attribute_saved()
        operations = []
        probes = _TriggerProbes()
        for index, draft in enumerate(self._drafts):
            saved = saved_by_operation.get(index, ())
            triggers = probes.triggers(draft.function, draft.arguments, draft.operation, saved)
            operations.append(_with_saved(draft.operation, saved, triggers))
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
                upstream = self._upstream[record.storage] if tensor.requires_grad else 0
                operands.append(Operand(name, record, tensor.requires_grad, upstream))
            if not tensors and (value is None or isinstance(value, _VIEWLESS_SCALARS) or _is_int_list(value)):
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
        sequence = torch.autograd._get_sequence_nr()
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
            saved[candidates[-1] if candidates and not cloned else following][storage] = None
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

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self._recorder.record_operation(func, args, kwargs or {}, result)
        return result


class _TriggerProbes:
    """Which operand's gradient needs which saved tensor, found by asking autograd.

    Autograd saves the factor of a product only when the other factor needs a gradient, and most operations
    have a rule of their own. Each operation is run again on fake tensors with one operand at a time needing a
    gradient; what is packed then is what that operand's gradient needs. Answers hold per operation and
    pattern of arguments, whatever the shapes.
    """

    def __init__(self) -> None:
        self._known: dict[Any, dict[str, frozenset[str]] | None] = {}

    def triggers(
        self, func: Any, arguments: tuple[Sequence[Any], Mapping[str, Any]], operation: Operation, saved: Sequence[int]
    ) -> dict[int, frozenset[str]]:
        """For each saved storage, the names of the operands whose gradient needs it."""
        names = frozenset(operand.name for operand in operation.operands if operand.differentiable)
        if len(names) < 2 or not saved:
            return dict.fromkeys(saved, names)
        key = (func, tuple((operand.name, operand.differentiable) for operand in operation.operands))
        if key not in self._known:
            self._known[key] = _probe(func, arguments, names)
        needs = self._known[key]
        if needs is None:
            return dict.fromkeys(saved, names)
        roles = _roles(operation)
        return {storage: self._who_needs(roles[storage], needs, names) for storage in saved}

    @staticmethod
    def _who_needs(
        roles: frozenset[str], needs: Mapping[str, frozenset[str]], names: frozenset[str]
    ) -> frozenset[str]:
        found = frozenset(name for name, needed in needs.items() if roles & needed)
        return found or names


def _probe(
    func: Any, arguments: tuple[Sequence[Any], Mapping[str, Any]], names: frozenset[str]
) -> dict[str, frozenset[str]] | None:
    """Roles packed when only one operand needs a gradient, by operand; ``None`` where the call cannot be repeated."""
    needs = {}
    for name in sorted(names):
        try:
            needs[name] = _packed_roles(func, arguments, name)
        except (RuntimeError, TypeError, ValueError):
            return None
    return needs


def _packed_roles(
    func: Any, arguments: tuple[Sequence[Any], Mapping[str, Any]], trained: str
) -> frozenset[str]:
    args, kwargs = arguments
    schema = func._schema.arguments
    roles: dict[int, set[str]] = defaultdict(set)
    alive: list[Any] = []

    def fresh(name: str, value: Any) -> Any:
        def one(tensor: Tensor) -> Tensor:
            new = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
            if name == trained and tensor.requires_grad:
                new = new.requires_grad_().clone()
            alive.append(new)
            roles[new.untyped_storage()._cdata].add(name)
            return new

        return map_tensors(one, value) if any(True for _ in input_tensors(value)) else value

    new_args = [fresh(argument.name, value) for argument, value in zip(schema, args, strict=False)]
    new_kwargs = {name: fresh(name, value) for name, value in kwargs.items()}
    packed: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor)
        return tensor

    with torch.enable_grad(), saved_tensors_hooks(pack, lambda tensor: tensor):
        results = list(input_tensors(func(*new_args, **new_kwargs)))
    for position, result in enumerate(results):
        roles[result.untyped_storage()._cdata].add(f"output {position}")
    return frozenset(role for tensor in packed for role in roles.get(tensor.untyped_storage()._cdata, ()))


def _roles(operation: Operation) -> dict[int, frozenset[str]]:
    roles: dict[int, set[str]] = defaultdict(set)
    for operand in operation.operands:
        roles[operand.tensor.storage].add(operand.name)
    for position, output in enumerate(operation.outputs):
        roles[output.storage].add(f"output {position}")
    return defaultdict(frozenset, {storage: frozenset(names) for storage, names in roles.items()})


def _with_saved(operation: Operation, saved: tuple[int, ...], triggers: Mapping[int, frozenset[str]]) -> Operation:
    if not saved:
        return operation
    return Operation(
        operation.target,
        operation.module,
        operation.api,
        operation.operands,
        operation.outputs,
        operation.attributes,
        saved,
        triggers,
    )


def _is_int_list(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, int | bool) for item in value)
