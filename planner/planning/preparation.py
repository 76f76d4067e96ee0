"""From what the user names (a model, data, a number of classes) to what a plan is made from.

Planning, training and verifying prepare a model by these functions, so that they mean the same one.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from torch import nn

from trady.planner.data import LabelledData, PictureFormat, TextFormat, open_data
from trady.planner.errors import DataError, TradyError
from trady.planner.models import (
    Batch,
    Inputs,
    LoadedModel,
    Preprocessing,
    WeightsOrigin,
    batch_size_of,
    fit_head,
    head_classes,
    input_tensors,
    replace_head,
)
from trady.planner.options import NormMode
from trady.planner.plan import PictureRecord
from trady.planner.planning.model_options import DEFAULT_BATCH_SIZE, DEFAULT_BATCHES, CalibrationOptions
from trady.planner.planning.planning import ModelSource
from trady.planner.priorities import (
    DEFAULT_LEARNING_RATE,
    GradientRecording,
    Priorities,
    PrioritySource,
    calibrate,
    calibration_peak_bytes,
    record_gradients,
)
from trady.planner.tracing import trace
from trady.planner.units import format_bytes

#: The head is fitted to so many times more batches, other ones: a head that knows the samples by heart has no gradient.
_HEAD_SHARE: Final = 2


@dataclass
class Prepared:
    """A model ready to be planned.

    Args:
        loaded: What was loaded; its model carries the wanted head.
        source: Record for the plan.
        head: Name of the head that was put in place of the model's own; empty where the model's own stays.
        asked_head: What always trains, as asked: ``auto``, ``none`` or a name.
        data: Labelled data, where given.
        inputs: Example inputs, those of the data where given.
    """

    loaded: LoadedModel
    source: ModelSource
    head: str
    asked_head: str
    data: LabelledData | Iterable[Batch] | None
    inputs: Inputs


def prepare(
    loaded: LoadedModel,
    *,
    data: str | None = None,
    classes: int | None = None,
    tokenizer: str | Path | None = None,
    head: str = "auto",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Prepared:
    """Open the data and give the model a head for its classes.

    Args:
        loaded: What :func:`trady.planner.models.loading.load_model` gave; its model is changed in place.
        data: Folder, file or ``module:function`` of labelled data.
        classes: Outputs of the head; by default those of the data, else the model's own.
        tokenizer: ``tokenizer.json`` for text data.
        head: ``"auto"`` or the name of the layer to replace.
        mean: Mean of each colour, on values scaled to 0..1, where the model carries none.
        std: Deviation of each colour.

    Returns:
        Model, data and the inputs a step is traced with.

    Raises:
        TradyError: The data cannot be read, has other classes than asked, or the head cannot be found or replaced.
    """
    loaded.preprocessing = _preprocessing(loaded, mean, std)
    opened = None if data is None else _open(data, loaded, tokenizer)
    inputs = _example_of(opened, loaded.inputs)
    wanted = _wanted_classes(opened, classes)
    replaced, head_name = None, ""
    if wanted is not None and head == "none":
        raise TradyError(f"{wanted} classes need a head to tell them apart. Leave --head none out, or the classes.")
    if wanted is not None:
        head_name = _head_name(loaded.model, inputs, head)
        if head_classes(loaded.model, head_name) != wanted:
            replace_head(loaded.model, head_name, wanted)
            replaced = wanted
            inputs = _without_labels(inputs)
    trained = loaded.weights not in (WeightsOrigin.RANDOM, WeightsOrigin.META)
    source = ModelSource(loaded.source, loaded.arch or "", replaced, trained, _picture_record(loaded.preprocessing))
    return Prepared(loaded, source, head_name if replaced else "", head, opened, inputs)


def priorities_from_data(
    prepared: Prepared,
    *,
    num_batches: int = DEFAULT_BATCHES,
    batch_size: int = DEFAULT_BATCH_SIZE,
    norm: NormMode | str = NormMode.FROZEN,
    seed: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> Priorities:
    """Fit a replaced head, then measure gradient norms; the memory this takes is said first.

    Args:
        prepared: Model and data.
        num_batches: Batches to measure on.
        batch_size: Samples in each.
        norm: What norms with running statistics do meanwhile.
        seed: Chooses the samples.
        say: Called with a line of text before each stage.

    Returns:
        Gradient norms of every drawable layer.

    Raises:
        DataError: There is no data, or less than one batch.

    Error:
        CalibrationError: A gradient is not finite.
    """
    if prepared.data is None:
        raise DataError("Gradient norms need labelled data. Give --data, or plan without it on synthetic inputs.")
    model, loss = prepared.loaded.model, prepared.loaded.loss

    def batches() -> Iterator[Batch]:
        return take_batches(prepared.data, batch_size, num_batches, seed)

    first = next(batches(), None)
    if first is None:
        raise DataError("The data gives no batch. Give more samples, or a smaller --calibration-batch-size.")
    size = batch_size_of(first.inputs)
    targets = first.targets if loss else None
    traced = trace(
        model, first.inputs, targets=targets, loss=loss, norm=norm, head=prepared.asked_head, batch_sizes=(size,)
    )
    say(f"Calibration will hold about {format_bytes(calibration_peak_bytes(traced))} at batch size {size}")
    if prepared.head:
        fitted = take_batches(prepared.data, batch_size, _HEAD_SHARE * num_batches, seed + 1)
        accuracy = fit_head(model, prepared.head, fitted)
        say(f"Fitted the new head {prepared.head!r} to the data ({accuracy:.1%} of it right)")
    say(f"Measuring gradient norms on up to {num_batches} batches of {size}")
    return calibrate(
        model,
        batches(),
        loss=loss,
        norm=norm,
        source=PrioritySource.DATA,
        origin=origin_of(prepared.data),
        seed=seed,
        traced=traced,
    )


def _preprocessing(
    loaded: LoadedModel, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Preprocessing | None:
    if mean is None and std is None:
        return loaded.preprocessing
    if mean is None or std is None or len(mean) != len(std) or min(std) <= 0:
        raise TradyError("Normalisation needs --mean and --std together, as many of each, every deviation above 0.")
    given = Preprocessing(mean=tuple(mean), std=tuple(std), source="given")
    known = loaded.preprocessing
    if known is None:
        return given
    return replace(given, interpolation=known.interpolation, crop_fraction=known.crop_fraction)


def _picture_record(preprocessing: Preprocessing | None) -> PictureRecord | None:
    return None if preprocessing is None else PictureRecord(**asdict(preprocessing))


def take_batches(
    data: LabelledData | Iterable[Batch] | None, batch_size: int, num_batches: int, seed: int
) -> Iterator[Batch]:
    """At most so many batches of the data, the classes spread evenly over them where their labels are known."""
    if isinstance(data, LabelledData):
        # Half a small set fills a batch although some of it may be unreadable.
        yield from data.batches(min(batch_size, max(1, len(data) // 2)), seed=seed, limit=num_batches)
    elif data is not None:
        for number, batch in enumerate(data):
            if number == num_batches:
                return
            yield batch


def _open(data: str, loaded: LoadedModel, tokenizer: str | Path | None) -> LabelledData | Iterable[Batch]:
    shapes = [tuple(tensor.shape) for tensor in input_tensors(loaded.inputs)]
    picture = text = None
    if len(shapes[0]) == 4 and loaded.preprocessing is not None:
        _, channels, height, width = shapes[0]
        how = loaded.preprocessing
        picture = PictureFormat((channels, height, width), how.mean, how.std, how.interpolation, how.crop_fraction)
    if tokenizer is not None:
        text = TextFormat.from_file(tokenizer, max_tokens=shapes[0][1])
    return open_data(data, picture=picture, text=text)


def _example_of(data: LabelledData | Iterable[Batch] | None, otherwise: Inputs) -> Inputs:
    """Inputs of the data, so that the plan is of the shapes that will be trained on."""
    if data is None:
        return otherwise
    first = next(take_batches(data, 2, 1, 0), None)
    return otherwise if first is None else first.inputs


def _wanted_classes(data: LabelledData | Iterable[Batch] | None, classes: int | None) -> int | None:
    found = len(data.classes) if isinstance(data, LabelledData) else None
    if classes is not None and found is not None and classes < found:
        raise TradyError(f"The data has {found} classes, more than --classes {classes}. Leave --classes out.")
    return classes if classes is not None else found


def _head_name(model: nn.Module, inputs: Inputs, head: str) -> str:
    if head != "auto":
        return head
    found = trace(model, inputs, batch_sizes=(batch_size_of(inputs),)).head_names
    if len(found) != 1:
        what = "no head" if not found else f"{len(found)} heads ({', '.join(found)})"
        raise TradyError(f"The model has {what} to replace. Name the layer that gives the logits with --head.")
    return found[0]


def _without_labels(inputs: Inputs) -> Inputs:
    """Labels of a model's own example do not fit a new head; cross-entropy takes the place of the model's loss."""
    if isinstance(inputs, dict) and "labels" in inputs:
        return {name: value for name, value in inputs.items() if name != "labels"}
    return inputs


def origin_of(data: LabelledData | Iterable[Batch]) -> str:
    """The data by name, for reports."""
    return Path(data.source).name if isinstance(data, LabelledData) else "batches of a function"


def record_from_data(
    prepared: Prepared,
    *,
    epochs: int,
    learning_rate: float = DEFAULT_LEARNING_RATE,
    calibration: CalibrationOptions | None = None,
    norm: NormMode | str = NormMode.FROZEN,
    say: Callable[[str], None] = lambda _: None,
) -> GradientRecording:
    """Record gradients on a prepared model's data, other samples in another order each epoch.

    A replaced head must have been fitted, which :func:`trady.planner.planning.preparation.priorities_from_data` does.

    Args:
        prepared: Model and data.
        epochs: Epochs to train.
        learning_rate: Of SGD.
        calibration: Batches of an epoch, samples in each, and the seed that chooses them and their order.
        norm: What norms with running statistics do meanwhile.
        say: Called with a line of text after each epoch.

    Returns:
        What the gradients did, epoch by epoch.

    Raises:
        DataError: There is no data, or less than one batch.

    Error:
        CalibrationError: As :func:`record_gradients`.
    """
    if prepared.data is None:
        raise DataError("Recording gradients needs labelled data. Give --data.")

    how = calibration or CalibrationOptions()

    def batches(epoch: int) -> Iterator[Batch]:
        return take_batches(prepared.data, how.batch_size, how.num_batches, _epoch_seed(how.seed, epoch))

    loaded = prepared.loaded
    say(f"Recording {epochs} epochs of training, learning rate {learning_rate:g}")
    return record_gradients(
        loaded.model,
        batches,
        epochs=epochs,
        learning_rate=learning_rate,
        loss=loaded.loss,
        norm=norm,
        source=loaded.source,
        origin=origin_of(prepared.data),
        seed=how.seed,
        head=prepared.asked_head,
        progress=lambda done, mean_loss: say(f"Recorded epoch {done} of {epochs}, mean loss {mean_loss:.4g}"),
    )


def _epoch_seed(seed: int, epoch: int) -> int:
    """A seed of its own for each epoch, so that those of recordings with neighbouring seeds do not meet."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
