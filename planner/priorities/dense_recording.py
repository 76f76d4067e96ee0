"""A rehearsal of fine-tuning: a few epochs of dense training, recorded and then undone."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Final, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from trady.planner.errors import CalibrationError
from trady.planner.models import Batch, LossFunction, batch_size_of, fingerprint, undisturbed
from trady.planner.priorities.calibration import (
    Batches,
    Measuring,
    MeasuringKeywords,
    as_batch,
    batch_loss,
    channel_norms,
    trace_batch,
)
from trady.planner.priorities.gradient_recordings import FloatArray, GradientRecording, RecordedLayer, RecordingHeader
from trady.planner.priorities.gradient_sketches import SKETCH_SIZE, channel_rows, sketch
from trady.planner.priorities.tail_index import GradientSamples
from trady.planner.tracing import Layer

DEFAULT_LEARNING_RATE: Final = 0.01
#: An epoch whose mean loss is so many times that of the very first batch has diverged.
_DIVERGED: Final = 10.0


def record_gradients(
    model: nn.Module,
    batches: Callable[[int], Batches],
    *,
    epochs: int,
    learning_rate: float = DEFAULT_LEARNING_RATE,
    source: str = "",
    head: str = "auto",
    progress: Callable[[int, float], None] | None = None,
    **options: Unpack[MeasuringKeywords],
) -> GradientRecording:
    """Train the weights of all drawable layers and the head for some epochs, and keep what their gradients did.

    SGD without momentum. Each gradient is reduced, applied and freed as soon as it is complete: beside a calibration's
    memory this takes one copy of the trained weights. The model's weights, buffers, flags and training mode are as
    before when it returns, whatever happens.

    Args:
        model: Module with real weights, its head fitted: a fresh one makes the first epochs its own.
        batches: Called with each epoch's number, from 0; gives that epoch's batches, as
            :func:`trady.planner.priorities.calibration.calibrate` takes them, in an order of its own.
        epochs: Epochs to train, 1 or more.
        learning_rate: Above 0.
        source: The model by name.
        head: What trains beside the drawable layers: ``auto``, ``none`` or the name of a layer.
        progress: Called with the number of epochs done and the mean loss of the last one.
        **options: Fields of :class:`~trady.planner.priorities.calibration.Measuring`: ``loss``, ``norm``, ``origin``
            (the data by name) and ``seed``.

    Returns:
        Norms and sketches of every epoch.

    Error:
        CalibrationError: An epoch without a batch, an argument outside its range, a loss or gradient that is not
            finite (layer, epoch and batch are named), or training that diverges.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 4))
        >>> pictures = torch.randn(2, 3, 8, 8)
        >>> recording = record_gradients(net, lambda epoch: [(pictures, torch.tensor([0, 1]))], epochs=2)
        >>> recording.num_epochs
        2

    Known limitations:
        The exact norm of an epoch's mean gradient would need a dense copy of it; the squared norm of a sketch is an
        unbiased estimate of its square.
    """
    how = Measuring.read(options)
    _check_arguments(epochs, learning_rate)
    with undisturbed(model, how.norm, how.seed):
        traced = trace_batch(model, _first_batch(batches(0)), how, head)
        wanted = {layer.weight_name for layer in traced.layers} | traced.always_trained
        trained = {name: parameter for name, parameter in model.named_parameters() if name in wanted}
        with restored(trained.values()), ExitStack() as hooks:
            training = _Training(model, traced.layers, trained, learning_rate, hooks)
            for epoch in range(epochs):
                mean_loss = training.run_epoch(batches(epoch), how.loss)
                if progress is not None:
                    progress(epoch + 1, mean_loss)
    header = RecordingHeader(
        fingerprint=fingerprint(model),
        source=source,
        origin=how.origin,
        num_batches=training.num_batches,
        batch_size=training.batch_size,
        learning_rate=learning_rate,
        norm=how.norm,
        seed=how.seed,
        sketch_size=SKETCH_SIZE,
        layers=tuple(_recorded_layer(layer) for layer in traced.layers),
        tail_index=tuple(training.tail_index),
        losses=tuple(training.losses),
    )
    return GradientRecording(header, _stacked(training.norms), _stacked(training.sketches))


@contextmanager
def restored(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Put the values of tensors back on any exit; holds a copy of them meanwhile."""
    before = [(tensor, tensor.detach().clone()) for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, values in before:
                tensor.copy_(values)


class _Training:
    """SGD that reduces each gradient to norms and a sketch, applies it and frees it the moment it is complete."""

    def __init__(
        self,
        model: nn.Module,
        layers: tuple[Layer, ...],
        trained: Mapping[str, nn.Parameter],
        learning_rate: float,
        hooks: ExitStack,
    ) -> None:
        self._model = model
        self._layers = layers
        self._learning_rate = learning_rate
        self._first_loss: float | None = None
        self._batch = 0
        self._epoch = _EpochSums(layers)
        self.num_batches = self.batch_size = 0
        self.losses: list[float] = []
        self.tail_index: list[float | None] = []
        self.norms: list[list[Tensor]] = []
        self.sketches: list[list[Tensor]] = []
        by_weight = {layer.weight_name: layer for layer in layers}
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for name, parameter in trained.items():
            parameter.requires_grad_(True)
            hooks.callback(parameter.register_post_accumulate_grad_hook(self._hook(name, by_weight.get(name))).remove)

    @property
    def _where(self) -> str:
        return f"in epoch {len(self.losses)}, batch {self._batch}, at learning rate {self._learning_rate:g}"

    def run_epoch(self, batches: Batches, loss: LossFunction | None) -> float:
        """Train on the batches; the mean loss.

        Raises:
            CalibrationError: There is no batch.
        """
        self._epoch = _EpochSums(self._layers)
        losses = []
        for self._batch, item in enumerate(batches):
            losses.append(self._step(as_batch(item), loss))
        if not losses:
            raise CalibrationError(f"Epoch {len(self.losses)} got no batch. Give at least one in every epoch.")
        mean = math.fsum(losses) / len(losses)
        self._check_converging(mean)
        self.num_batches = max(self.num_batches, len(losses))
        self.losses.append(mean)
        self.tail_index.append(self._epoch.samples.tail_index(len(losses)))
        self.norms.append([found / len(losses) for found in self._epoch.norms.values()])
        self.sketches.append([found / len(losses) for found in self._epoch.sketches.values()])
        return mean

    def _step(self, batch: Batch, loss: LossFunction | None) -> float:
        self.batch_size = max(self.batch_size, batch_size_of(batch.inputs))
        found = batch_loss(self._model, batch, loss)
        value = float(found.detach())
        if not math.isfinite(value):
            raise CalibrationError(f"Loss is {value} {self._where}. Lower --lr, or check the data.")
        if self._first_loss is None:
            self._first_loss = value
        found.backward()
        return value

    def _check_converging(self, mean: float) -> None:
        first = self._first_loss or 0.0
        if 0.0 < _DIVERGED * first < mean:
            raise CalibrationError(
                f"Training diverged: the mean loss of epoch {len(self.losses)} is {mean:.4g}, that of the first batch "
                f"was {first:.4g}, at learning rate {self._learning_rate:g}. Lower --lr."
            )

    def _hook(self, name: str, layer: Layer | None) -> Callable[[Tensor], None]:
        def reduce(parameter: Tensor) -> None:
            gradient, parameter.grad = parameter.grad, None
            assert gradient is not None
            if not torch.isfinite(gradient).all():
                what = f"layer {layer.name!r}" if layer else repr(name)
                raise CalibrationError(
                    f"Gradient of {what} is not finite {self._where}. "
                    "Lower --lr, or check the data (normalisation, labels) and the weights."
                )
            if layer is not None:
                self._epoch.add(layer, gradient)
            with torch.no_grad():
                parameter.add_(gradient, alpha=-self._learning_rate)

        return reduce


class _EpochSums:
    """Sums over an epoch's batches, by weight name in the order of the layers."""

    def __init__(self, layers: tuple[Layer, ...]) -> None:
        self.samples = GradientSamples()
        self.norms = {layer.weight_name: torch.zeros(layer.in_channels, dtype=torch.float64) for layer in layers}
        self.sketches = {
            layer.weight_name: torch.zeros(layer.in_channels, SKETCH_SIZE, dtype=torch.float64) for layer in layers
        }

    def add(self, layer: Layer, gradient: Tensor) -> None:
        """Count one batch's gradient."""
        rows = channel_rows(gradient, layer.channel_dim, layer.groups)
        self.norms[layer.weight_name] += channel_norms(gradient, layer).double().cpu()
        self.sketches[layer.weight_name] += sketch(rows, layer.weight_name).double()
        self.samples.add(layer.weight_name, gradient)


def _check_arguments(epochs: int, learning_rate: float) -> None:
    if epochs < 1:
        raise CalibrationError(f"A recording needs 1 epoch or more, got {epochs}. Give --record 5.")
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise CalibrationError(f"Learning rate must be finite and above 0, got {learning_rate}. Give --lr 0.01.")


def _first_batch(batches: Batches) -> Batch:
    for item in batches:
        return as_batch(item)
    raise CalibrationError("Epoch 0 got no batch. Give at least one in every epoch.")


def _recorded_layer(layer: Layer) -> RecordedLayer:
    return RecordedLayer(name=layer.name, weight_name=layer.weight_name, channels=layer.in_channels)


def _stacked(epochs: list[list[Tensor]]) -> tuple[FloatArray, ...]:
    """Values by epoch and layer -> for each layer one array whose first dimension are the epochs."""
    return tuple(
        np.stack([values.numpy().astype(np.float32) for values in layer]) for layer in zip(*epochs, strict=True)
    )
