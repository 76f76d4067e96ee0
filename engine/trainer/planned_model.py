"""The model a plan was made for, built again: same source, same head, same inputs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from trady.planner.data import PictureFormat
from trady.planner.errors import EngineError
from trady.planner.models import (
    CROSS_ENTROPY,
    MODEL_LOSS,
    Batch,
    Inputs,
    LoadedModel,
    LossFunction,
    Preprocessing,
    batch_size_of,
    head_classes,
    load_factory,
    load_model,
    map_tensors,
    torch_dtype,
)
from trady.planner.options import DType, MemoryFormat
from trady.planner.plan import Plan, TensorSpec
from trady.planner.planning import prepare


@dataclass
class PlannedModel:
    """A model as its plan describes it, on its device.

    Args:
        model: The module, with the plan's head.
        loss: ``loss(outputs, targets)``; ``None`` takes the model's own, else cross-entropy.
        plan: The plan.
        device: Where it lies.
        notes: What must be said aloud.
    """

    model: nn.Module
    loss: LossFunction | None
    plan: Plan
    device: torch.device
    notes: list[str]

    @property
    def head(self) -> str:
        """Name of the layer that Trady gave the model for its classes; empty where the model's own stays."""
        return self.plan.model.head.layers[0] if self.plan.model.head.classes is not None else ""

    @property
    def picture(self) -> PictureFormat | None:
        """How pictures become inputs; ``None`` for other inputs."""
        record, shape = self.plan.model.pictures, self.plan.model.inputs[0].shape
        if record is None or len(shape) != 3:
            return None
        size = (shape[0], shape[1], shape[2])
        return PictureFormat(size, record.mean, record.std, record.interpolation, record.crop_fraction)

    @property
    def max_tokens(self) -> int:
        """Length of token inputs."""
        return self.plan.model.inputs[0].shape[0]

    def placed(self, batch: Batch) -> Batch:
        """A batch as the model takes it: on its device, of its type and layout, labels where it computes the loss."""
        inputs = map_tensors(self._placed_input, batch.inputs)
        targets = map_tensors(lambda tensor: tensor.to(self.device, non_blocking=True), batch.targets)
        wants_labels = self.plan.model.loss == MODEL_LOSS and targets is not None
        if wants_labels and isinstance(inputs, dict) and "labels" not in inputs:
            inputs = {**inputs, "labels": targets}
        return Batch(inputs, targets)

    def example(self) -> Inputs:
        """Inputs of the planned shapes and batch size, the same at every call."""
        return self.placed(Batch(example_inputs(self.plan.model.inputs, self.plan.settings.batch_size))).inputs

    def _placed_input(self, tensor: Tensor) -> Tensor:
        settings = self.plan.settings
        dtype = _torch_dtype(settings.dtype) if tensor.is_floating_point() else None
        moved = tensor.to(self.device, dtype or tensor.dtype, non_blocking=True)
        if settings.memory_format is MemoryFormat.CHANNELS_LAST and moved.dim() == 4:
            return moved.contiguous(memory_format=torch.channels_last)
        return moved


def build_planned(
    plan: Plan,
    source: str,
    *,
    arch: str | None = None,
    loss: str | None = None,
    trust_pickle: bool = False,
    device: torch.device | None = None,
) -> PlannedModel:
    """Load a model and give it the plan's head; element type and layout are the engine's business.

    Args:
        plan: The plan.
        source: What :func:`trady.planner.models.loading.load_model` takes.
        arch: Factory of a state dict; the plan's by default.
        loss: ``module:function``; the plan's by default.
        trust_pickle: Let a model file run any code it wants.
        device: Where the model goes; the CPU by default.

    Raises:
        EngineError: The plan's head is not in the model.

    Error:
        TradyError: The model cannot be loaded, or the plan's head does not fit it.
    """
    loaded = _loaded(plan, source, arch, loss, trust_pickle)
    if plan.model.pictures is not None:
        loaded.preprocessing = Preprocessing(**plan.model.pictures.model_dump())
    if plan.model.head.classes is not None:
        try:
            prepare(loaded, classes=plan.model.head.classes, head=plan.model.head.layers[0])
        except AttributeError as error:  # torch's word for a module path that is not there
            raise EngineError(
                f"The plan's head {plan.model.head.layers[0]!r} is not in {source}: {error}. "
                f"Give the model of the plan, {plan.model.source}, or plan anew."
            ) from error
    place = device or torch.device("cpu")
    loaded.model.to(place)
    return PlannedModel(loaded.model, loaded.loss, plan, place, loaded.notes)


def check_classes(planned: PlannedModel, classes: int, say: Callable[[str], None]) -> None:
    """The head must tell the data's classes apart.

    Args:
        planned: The model.
        classes: Classes of the data.
        say: Told where the head has more outputs than there are classes.

    Raises:
        EngineError: The head has fewer outputs.
    """
    layers = planned.plan.model.head.layers
    if len(layers) != 1 or not isinstance(planned.model.get_submodule(layers[0]), nn.Linear | nn.Conv2d):
        return
    outputs = head_classes(planned.model, layers[0])
    if outputs < classes:
        raise EngineError(
            f"The plan's head {layers[0]!r} has {outputs} outputs, the data {classes} classes. "
            f"Plan anew with trady-plan --data, or --classes {classes}."
        )
    if outputs > classes:
        say(f"Note: the head {layers[0]!r} has {outputs} outputs for {classes} classes; trady-plan --data fits it.")


def example_inputs(specs: tuple[TensorSpec, ...], batch_size: int) -> Inputs:
    """Inputs of a plan's shapes: normal numbers, zeros for ids, ones for masks; the same at every call."""
    generator = torch.Generator().manual_seed(0)
    tensors = {spec.name: _example_tensor(spec, batch_size, generator) for spec in specs}
    if not all(name.isdecimal() for name in tensors):
        return tensors
    return next(iter(tensors.values())) if len(tensors) == 1 else tuple(tensors.values())


def _example_tensor(spec: TensorSpec, batch_size: int, generator: torch.Generator) -> Tensor:
    shape, dtype = (batch_size, *spec.shape), getattr(torch, spec.dtype)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.full(shape, int(spec.name.endswith("mask")), dtype=dtype)


def _loaded(plan: Plan, source: str, arch: str | None, loss: str | None, trust_pickle: bool) -> LoadedModel:
    """The module with its inputs as planned."""
    known_arch = arch or (plan.model.arch if Path(source).exists() else "") or None
    shape = _input_text(plan.model.inputs)
    loaded = load_model(source, arch=known_arch, input_shape=shape, loss=loss, trust_pickle=trust_pickle)
    if loaded.loss is None and plan.model.loss not in (CROSS_ENTROPY, MODEL_LOSS):
        loaded.loss = _loss_named(plan.model.loss)
    planned = example_inputs(plan.model.inputs, batch_size_of(loaded.inputs))
    if _shapes(planned) != _shapes(loaded.inputs):
        loaded.inputs = planned
    return loaded


def _loss_named(name: str) -> LossFunction:
    """The plan's loss, which the model does not bring along."""
    found = load_factory(name, "Loss of the plan")
    return found() if isinstance(found, type) else found


def _input_text(specs: tuple[TensorSpec, ...]) -> str | None:
    """``--input`` of a single input by position; several are told by what the model brings along."""
    if len(specs) != 1 or not specs[0].shape or not specs[0].name.isdecimal():
        return None
    sizes = "x".join(map(str, specs[0].shape))
    is_tokens = not getattr(torch, specs[0].dtype).is_floating_point
    return f"tokens:{sizes}" if is_tokens else sizes


def _shapes(inputs: Inputs) -> object:
    return map_tensors(lambda tensor: tuple(tensor.shape), inputs)


def _torch_dtype(dtype: DType | None) -> torch.dtype | None:
    if dtype is DType.INT8:
        raise EngineError("The plan is an int8 accounting, which PyTorch cannot train. Plan without --dtype int8.")
    return torch_dtype(dtype)
