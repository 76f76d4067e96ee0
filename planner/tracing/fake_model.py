"""One training step on fake tensors: PyTorch's own word on what it keeps, not a model of it.

Nothing is computed and no activation memory is used; weights may lie on the ``meta`` device.

Held by ``tests/planner/tracing/test_tracing.py``.
"""

import copy
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeCopyMode,
    FakeTensorMode,
)

from trady.planner.errors import TracingError
from trady.planner.models import (
    MODEL_LOSS,
    Inputs,
    LossFunction,
    StepOptions,
    batch_size_of,
    call_model,
    input_tensors,
    logits_of,
    loss_name_of,
    map_tensors,
    own_loss,
    set_training_mode,
    step_loss,
    synthetic_targets,
    torch_dtype,
)
from trady.planner.options import MemoryFormat
from trady.planner.tracing.lifetimes import LifetimeRecorder, Lifetimes
from trady.planner.tracing.recorder import Recorder
from trady.planner.tracing.records import Capture
from trady.planner.tracing.saved_tensor_probes import TriggerProbes


class FakeModel:
    """A copy of a model that computes shapes only; one copy serves many recordings.

    Args:
        model: The user's model, on any device (``meta`` too); left untouched.
        options: How its step is run.
    """

    def __init__(self, model: nn.Module, options: StepOptions) -> None:
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._options = options
        self._probes = TriggerProbes()
        with self._mode:
            self._model = set_training_mode(_fake_copy(model, self._mode, options), options.norm)
        self._requires_grad = {name: parameter.requires_grad for name, parameter in self._model.named_parameters()}

    def capture(
        self,
        inputs: Inputs,
        batch_size: int,
        *,
        targets: object = None,
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

        Returns:
            Every operation and what it keeps.

        Error:
            TracingError: The step cannot run on fake tensors, or no parameter reaches the loss.
        """
        self._train(trainable)
        with self._mode:
            batch = self._batch(inputs, targets, batch_size)
            with _unpacked_sequences(inputs):
                found, is_lasting = self._try_record(batch, batch_size, loss)
                return found if is_lasting else self._try_record(batch, batch_size, loss)[0]

    def lifetimes(
        self,
        inputs: Inputs,
        batch_size: int,
        *,
        targets: object = None,
        loss: LossFunction | None = None,
        trainable: frozenset[str] | None = None,
    ) -> Lifetimes:
        """Record when the memory of one training step is released; arguments as for :meth:`capture`.

        Returns:
            When each storage is made and released.

        Raises:
            TracingError: The step or its backward pass cannot run on fake tensors.
        """
        self._train(trainable)
        with self._mode, _unpacked_sequences(inputs):
            try:
                return self._lifetimes(self._batch(inputs, targets, batch_size), batch_size, loss)
            except Exception as error:
                raise TracingError(f"The backward pass cannot be followed on fake tensors: {error}") from error

    def _lifetimes(self, batch: list[Any], batch_size: int, loss: LossFunction | None) -> Lifetimes:
        inputs, targets = batch
        recorder = LifetimeRecorder(self._model, batch)
        with _autocast(self._options):
            with recorder:
                outputs = call_model(self._model, inputs)
            if targets is None and (loss is not None or own_loss(outputs) is None):
                targets = synthetic_targets(outputs)
                recorder.claim(targets)
            with recorder:
                value = step_loss(outputs, targets, loss)
        with recorder:
            recorder.backward(value)
        return recorder.finish(batch_size)

    def _train(self, trainable: frozenset[str] | None) -> None:
        for name, parameter in self._model.named_parameters():
            parameter.requires_grad_(self._requires_grad[name] and (trainable is None or name in trainable))

    def _batch(self, inputs: Inputs, targets: Any, batch_size: int) -> list[Any]:
        example_size = batch_size_of(inputs)
        return [_fake_batch(nested, example_size, batch_size, self._options) for nested in (inputs, targets)]

    def _try_record(self, batch: list[Any], batch_size: int, loss: LossFunction | None) -> tuple[Capture, bool]:
        """A recording, and whether the next step runs the same operations: a first one may fill in buffers.

        Raises:
            TracingError: The step cannot be followed; the module and the shapes are named.
        """
        recorder = Recorder(self._model, self._probes)
        try:
            return self._record(recorder, batch, batch_size, loss), not recorder.claim_new_buffers(self._model)
        except TracingError:
            raise
        except Exception as error:
            raise TracingError(_explained(error, recorder, self._model)) from error

    def _record(self, recorder: Recorder, batch: list[Any], batch_size: int, loss: LossFunction | None) -> Capture:
        inputs, targets = batch
        recorder.claim(input_tensors(batch), "input")
        with recorder.modules_followed(self._model), _autocast(self._options):
            with recorder:
                outputs = call_model(self._model, inputs)
            if targets is None and (loss is not None or own_loss(outputs) is None):
                targets = synthetic_targets(outputs)
                recorder.claim([targets], "input")
            with recorder, _loss_failures_told(outputs, loss):
                value = step_loss(outputs, targets, loss)
        loss_name = loss_name_of(outputs, loss)
        read_by_loss = recorder.record_tensor(_read_by_loss(outputs, loss_name, value))
        if not self._requires_grad:
            raise TracingError("The model has no parameters, so it has no layer to train.")
        if not (isinstance(value, Tensor) and value.requires_grad):
            raise TracingError(
                "The loss does not depend on any parameter that requires a gradient. "
                "Set requires_grad to True on the parameters Trady may train."
            )
        del outputs
        return recorder.finish(batch_size, loss_name, read_by_loss)


def _autocast(options: StepOptions) -> AbstractContextManager[object]:
    """The autocast context of the step, or an empty one.

    Raises:
        TracingError: Autocast for CUDA where there is no CUDA: torch switches it off there.
    """
    if options.amp is None:
        return nullcontext()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise TracingError(
            "Autocast for CUDA cannot be traced on a machine without CUDA. "
            "Plan with --dtype bfloat16, or on a machine with a CUDA device."
        )
    return torch.autocast(options.device, dtype=torch_dtype(options.amp))


@contextmanager
def _unpacked_sequences(inputs: Inputs) -> Iterator[None]:
    """Tell transformers that positions count up, which it reads off values that fake tensors lack.

    Without it the causal models of transformers 5 take fake inputs for several sequences packed in one, and build
    a mask that a real step does without. Positions given as an input are left for it to judge.
    """
    masking = sys.modules.get("transformers.masking_utils")
    known = getattr(masking, "find_packed_sequence_indices", None)
    if known is None or (isinstance(inputs, Mapping) and "position_ids" in inputs):
        yield
        return
    try:
        masking.find_packed_sequence_indices = lambda *_, **__: None  # type: ignore[union-attr]
        yield
    finally:
        masking.find_packed_sequence_indices = known  # type: ignore[union-attr]


@contextmanager
def _loss_failures_told(outputs: Any, loss: LossFunction | None) -> Iterator[None]:
    """A loss that fails is not the model's fault.

    Raises:
        TracingError: The loss failed; what it was given is named.
        DataDependentOutputException: It looks at values.
        DynamicOutputShapeException: The shape of what it makes depends on values.
    """
    try:
        yield
    except (DataDependentOutputException, DynamicOutputShapeException):
        raise
    except Exception as error:
        given = ", ".join(str(list(tensor.shape)) for tensor in input_tensors(outputs)) or "no tensor"
        name = "The loss" if loss is None else f"The loss {loss_name_of(outputs, loss)!r}"
        raise TracingError(
            f"{name} failed on the model's output ({type(outputs).__name__} of {given}): {error}. "
            "Give a loss(outputs, targets) for this output."
        ) from error


def _read_by_loss(outputs: Any, loss_name: str, value: Tensor) -> Tensor:
    own = own_loss(outputs) if loss_name == MODEL_LOSS else None
    if own is not None:
        return own
    try:
        return logits_of(outputs)
    except TracingError:
        return value


def _explained(error: Exception, recorder: Recorder, model: nn.Module) -> str:
    """Which module failed, on what shapes, and what helps."""
    name, shapes = recorder.running
    kind = type(dict(model.named_modules()).get(name, model)).__name__
    where = f"Module {name!r} ({kind})" if name else f"The model ({kind})"
    if isinstance(error, DataDependentOutputException | DynamicOutputShapeException):
        return (
            f"{where} routes by the values of its inputs ({error.func}), which a plan cannot know. For a mixture of "
            "experts of transformers build the model with experts_implementation='grouped_mm', whose shapes are fixed."
        )
    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".") + "."
    return (
        f"{where} cannot run on inputs of shape {shapes or 'unknown'}: {first_line} "
        "Give inputs that the model takes (--input 3x224x224 on the command line)."
    )


def _fake_copy(model: nn.Module, mode: FakeTensorMode, options: StepOptions) -> nn.Module:
    """Deep copy in which every parameter and buffer is fake: no element is read or copied."""
    cast_to = torch_dtype(options.dtype)

    def fake(tensor: Tensor) -> Tensor:
        dtype = cast_to if cast_to is not None and tensor.is_floating_point() else tensor.dtype
        if options.memory_format is MemoryFormat.CHANNELS_LAST and tensor.dim() == 4:
            return torch.empty(tensor.shape, dtype=dtype, device=options.device, memory_format=torch.channels_last)
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype, device=options.device)

    def fake_parameter(parameter: nn.Parameter) -> Tensor:
        made = fake(parameter).requires_grad_(parameter.requires_grad)
        made._is_param = True  # what nn.Parameter does for tensor subclasses
        return made

    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = fake_parameter(parameter)
    for buffer in model.buffers():
        memo[id(buffer)] = fake(buffer)
    with FakeCopyMode(mode):
        copied: nn.Module = copy.deepcopy(model, memo)
    return copied


def _fake_batch(nested: Any, example_size: int, batch_size: int, options: StepOptions) -> Any:
    """The example at another batch size; tensors that have no batch dimension stay as they are."""
    cast_to = torch_dtype(options.dtype)

    def fake(tensor: Tensor) -> Tensor:
        batched = tensor.dim() > 0 and tensor.shape[0] == example_size
        shape = (batch_size, *tensor.shape[1:]) if batched else tuple(tensor.shape)
        dtype = cast_to if cast_to is not None and tensor.is_floating_point() else tensor.dtype
        channels_last = options.memory_format is MemoryFormat.CHANNELS_LAST and len(shape) == 4
        layout = torch.channels_last if channels_last else torch.contiguous_format
        return torch.empty(shape, dtype=dtype, device=options.device, memory_format=layout)

    return map_tensors(fake, nested)
