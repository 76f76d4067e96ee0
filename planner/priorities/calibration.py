"""Priorities from real gradients: a few backward passes, one channel norm at a time."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self, TypeAlias, TypedDict, Unpack

import torch
from torch import Tensor, nn

from trady.planner.errors import CalibrationError, TracingError
from trady.planner.models import (
    Batch,
    Inputs,
    LossFunction,
    StepKeywords,
    batch_size_of,
    call_model,
    map_tensors,
    own_loss,
    step_loss,
    synthetic_targets,
    undisturbed,
)
from trady.planner.options import NormMode, choose
from trady.planner.priorities.priorities import LayerPriority, Priorities, PrioritySource, rounded_norms
from trady.planner.priorities.tail_index import GradientSamples
from trady.planner.tracing import Layer, Trace, trace

#: What is measured on: batches, ``(inputs, targets)`` pairs, or dicts of keyword arguments with the labels inside.
Batches: TypeAlias = Iterable[Batch | tuple[Any, Any] | Mapping[str, Any]]


class MeasuringKeywords(TypedDict, total=False):
    """The fields of :class:`Measuring` as a user gives them."""

    loss: LossFunction | None
    norm: NormMode | str
    origin: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """How gradients are measured.

    Args:
        loss: ``loss(outputs, targets)``; by default the model's own loss, else cross-entropy.
        norm: What norms with running statistics do meanwhile.
        origin: The data by name.
        seed: Seed of dropout and of made-up targets.
    """

    loss: LossFunction | None = None
    norm: NormMode = NormMode.FROZEN
    origin: str = "batches"
    seed: int = 0

    @classmethod
    def read(cls, options: MeasuringKeywords) -> Self:
        """From keywords as a user gives them; unknown ones are a ``TypeError``."""
        norm = choose(NormMode, options.get("norm", NormMode.FROZEN), "Norm mode")
        fields: dict[str, Any] = {**options, "norm": norm}
        return cls(**fields)


def calibrate(
    model: nn.Module,
    batches: Batches,
    *,
    source: PrioritySource | str = PrioritySource.DATA,
    traced: Trace | None = None,
    progress: Callable[[int], None] | None = None,
    **options: Unpack[MeasuringKeywords],
) -> Priorities:
    """Gradient norms of every input channel of every drawable layer, averaged over batches.

    The model's weights, buffers, flags and training mode are as before when it returns, whatever happens. Each
    gradient is reduced to its norms and freed as soon as it is complete.

    Args:
        model: Module with real weights.
        batches: :class:`Batch`, ``(inputs, targets)`` pairs, or dicts of keyword arguments with the labels inside.
        source: What the batches are; the report tells how far to trust it.
        traced: A trace of this very model, to save tracing it again.
        progress: Called with the number of batches done.
        **options: Fields of :class:`Measuring`: ``loss``, ``norm``, ``origin`` (the data by name) and ``seed``.

    Returns:
        The norms, and how heavy the gradients' tails are.

    Raises:
        CalibrationError: No batch, or a gradient that is not finite (the layer and the batch are named).

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 4))
        >>> pictures = torch.randn(2, 3, 8, 8)
        >>> priorities = calibrate(net, [(pictures, torch.tensor([0, 1]))], origin="two pictures")
        >>> [(layer.name, len(layer.channel_norms)) for layer in priorities.layers]
        [('0', 3), ('2', 8)]
    """
    how = Measuring.read(options)
    collector: _Collector | None = None
    size = 0
    with undisturbed(model, how.norm, how.seed), ExitStack() as hooks:
        for number, item in enumerate(batches):
            batch = as_batch(item)
            if collector is None:
                size = batch_size_of(batch.inputs)
                collector = _Collector(model, (traced or trace_batch(model, batch, how)).layers, hooks)
            collector.start_batch(number)
            batch_loss(model, batch, how.loss).backward()
            if progress is not None:
                progress(number + 1)
        if collector is None:
            raise CalibrationError("Calibration got no batch. Give at least one batch of inputs and targets.")
        return collector.priorities(choose(PrioritySource, source, "Priority source"), how.origin, size)


def uniform_priorities(traced: Trace, reason: str = "asked for") -> Priorities:
    """Priorities without gradients: every weight element counts the same, so a channel weighs ``sqrt(C_W)``.

    Args:
        traced: The model's trace.
        reason: Why nothing was measured, for the report.

    Returns:
        Norms that tell no channel of a layer from another.
    """
    layers = tuple(_layer_priority(layer, [layer.weight_elements**0.5] * layer.in_channels) for layer in traced.layers)
    return Priorities(
        source=PrioritySource.UNIFORM,
        origin=reason,
        num_batches=0,
        batch_size=0,
        tail_index=None,
        layers=layers,
    )


def synthetic_batches(model: nn.Module, inputs: Inputs, num_batches: int, *, seed: int = 0) -> Iterator[Batch]:
    """Random inputs shaped like the example: normal values, shuffled token ids and masks; random classes as targets."""
    generator = torch.Generator().manual_seed(seed)

    def fresh(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            return torch.randn(tensor.shape, generator=generator, dtype=torch.float32).to(tensor)
        order = torch.randperm(tensor.numel(), generator=generator)
        return tensor.flatten()[order.to(tensor.device)].view(tensor.shape)

    for _ in range(num_batches):
        fresh_inputs = map_tensors(fresh, inputs)
        with torch.no_grad():
            outputs = call_model(model, fresh_inputs)
        targets = None if own_loss(outputs) is not None else synthetic_targets(outputs, generator)
        yield Batch(fresh_inputs, targets)


def calibration_peak_bytes(traced: Trace) -> int:
    """Upper estimate of what a calibration holds at once: weights, batch, what autograd keeps, the largest gradient."""
    step = traced.dense_step
    parameters = [storage.num_bytes for storage in step.storages if storage.kind == "parameter"]
    held = sum(storage.num_bytes for storage in step.storages if storage.kind != "activation")
    return held + step.saved_bytes + max(parameters, default=0)


def available_bytes() -> int | None:
    """Memory the machine can still give, where the system tells."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def channel_norms(gradient: Tensor, layer: Layer) -> Tensor:
    """Norm of each input channel's slice of a weight gradient.

    Args:
        gradient: Shaped like the layer's weight.
        layer: Says which dimension, and which groups, input channels run along.

    Returns:
        ``[C_in]`` norms in float32, groups one after the other.
    """
    return slice_norms(gradient, layer.channel_dim, layer.groups)


def slice_norms(weight: Tensor, channel_dim: int, groups: int) -> Tensor:
    """Norm of each input channel's slice of a weight, or of anything shaped like it.

    Args:
        weight: A layer's weight ``[C_out, C_in / groups, *kernel]``, or with ``C_in`` first when transposed.
        channel_dim: Dimension that input channels run along.
        groups: Convolution groups.

    Returns:
        ``[C_in]`` norms in float32, groups one after the other.
    """
    wide = weight.detach().float()
    if groups > 1 and channel_dim == 1:
        grouped = wide.reshape(groups, -1, wide.shape[1], wide[0, 0].numel())
        return grouped.square().sum(dim=(1, 3)).sqrt().flatten()
    others = [dim for dim in range(wide.dim()) if dim != channel_dim]
    return wide.square().sum(dim=others).sqrt()


class _Collector:
    """Turns each layer's gradient into channel norms the moment it is complete, and frees it."""

    def __init__(self, model: nn.Module, layers: tuple[Layer, ...], hooks: ExitStack) -> None:
        self._layers = layers
        self._sums = {layer.weight_name: torch.zeros(layer.in_channels, dtype=torch.float64) for layer in layers}
        self._samples = GradientSamples()
        self._batch = 0
        parameters = dict(model.named_parameters())
        for parameter in parameters.values():
            parameter.requires_grad_(False)
        for layer in layers:
            weight = parameters[layer.weight_name].requires_grad_(True)
            hooks.callback(weight.register_post_accumulate_grad_hook(self._hook(layer)).remove)

    def start_batch(self, number: int) -> None:
        self._batch = number

    def priorities(self, source: PrioritySource, origin: str, batch_size: int) -> Priorities:
        num_batches = self._batch + 1
        layers = tuple(
            _layer_priority(layer, (self._sums[layer.weight_name] / num_batches).tolist()) for layer in self._layers
        )
        return Priorities(
            source=source,
            origin=origin,
            num_batches=num_batches,
            batch_size=batch_size,
            tail_index=self._samples.tail_index(num_batches),
            layers=layers,
        )

    def _hook(self, layer: Layer) -> Callable[[Tensor], None]:
        def reduce(parameter: Tensor) -> None:
            gradient, parameter.grad = parameter.grad, None
            assert gradient is not None
            norms = channel_norms(gradient, layer)
            if not torch.isfinite(norms).all():
                raise CalibrationError(
                    f"Gradient of layer {layer.name!r} is not finite in batch {self._batch}. "
                    "Check the data (normalisation, labels) and the weights, or leave the layer out with --exclude."
                )
            self._sums[layer.weight_name] += norms.double().cpu()
            self._samples.add(layer.weight_name, gradient)

        return reduce


def _layer_priority(layer: Layer, norms: list[float]) -> LayerPriority:
    return LayerPriority(
        name=layer.name,
        weight_name=layer.weight_name,
        channel_norms=rounded_norms(norms),
        weight_elements=layer.weight_elements,
        sample_elements=layer.activation_elements // layer.batch_size,
    )


def trace_batch(model: nn.Module, batch: Batch, how: Measuring, head: str = "auto") -> Trace:
    """Trace the step on one batch.

    Raises:
        CalibrationError: The step cannot be followed.
    """
    size = batch_size_of(batch.inputs)
    targets = batch.targets if how.loss else None
    step: StepKeywords = {"targets": targets, "loss": how.loss, "norm": how.norm, "head": head}
    try:
        return trace(model, batch.inputs, batch_sizes=(size,), **step)
    except TracingError as error:
        raise CalibrationError(f"Calibration cannot follow the model on the first batch. {error}") from error


def batch_loss(model: nn.Module, batch: Batch, loss: LossFunction | None) -> Tensor:
    """The step's loss on a batch, which is taken to the model's device."""
    device = next(model.parameters()).device
    inputs, targets = (map_tensors(lambda tensor: tensor.to(device), part) for part in (batch.inputs, batch.targets))
    return step_loss(call_model(model, inputs), targets, loss)


def as_batch(item: Batch | tuple[Inputs, object] | Mapping[str, object]) -> Batch:
    """One batch of whatever form: a Batch, a pair of inputs and targets, or keywords with the labels inside."""
    if isinstance(item, Batch):
        return item
    if isinstance(item, Mapping):
        return Batch(dict(item))
    inputs, targets = item
    return Batch(inputs, targets)
