"""The data of a run: what trains, what is evaluated on, and which is which.

Held by ``tests/engine/trainer/test_loaders.py``.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trady.engine.trainer.loaders import Batches, EvaluationBatches, FunctionBatches, ItemBatches
from trady.engine.trainer.planned_model import PlannedModel
from trady.engine.trainer.processes import Processes
from trady.engine.trainer.run_options import DataOptions
from trady.planner.data import GeneratedBatches, LabelledData, TextFormat, open_data
from trady.planner.errors import DataError, EngineError
from trady.planner.models import fit_head

#: Samples that a head is fitted to.
_FIT_SAMPLES: Final = 512

Source = LabelledData | GeneratedBatches


@dataclass
class TrainingData:
    """Opened data.

    Args:
        training: What trains.
        validation: What is evaluated on; ``None`` where the data is a function without a part for it.
        note: How they were told apart, in words.
    """

    training: Source
    validation: Source | None
    note: str

    @property
    def num_classes(self) -> int | None:
        """Classes of labelled items; ``None`` for a function's batches."""
        return len(self.training.classes) if isinstance(self.training, LabelledData) else None

    def training_batches(self, options: DataOptions, batch_size: int, seed: int, processes: Processes) -> Batches:
        """Batches to train on."""
        limit = options.batches_per_epoch
        if isinstance(self.training, GeneratedBatches):
            return FunctionBatches(self.training, processes, limit)
        augment, workers = options.augment, options.workers
        return ItemBatches(self.training, batch_size, processes, seed, augment, workers, limit)

    def validation_batches(self, options: DataOptions, batch_size: int, processes: Processes) -> Batches | None:
        """Batches to evaluate on; ``None`` where there are none."""
        if self.validation is None:
            return None
        if isinstance(self.validation, GeneratedBatches):
            return FunctionBatches(self.validation, processes, options.batches_per_epoch)
        return EvaluationBatches(self.validation, batch_size, processes, options.workers)


def open_training_data(options: DataOptions, planned: PlannedModel) -> TrainingData:
    """Open what trains and what is evaluated on.

    The validation part is, in this order: other data where it is named, the data's own validation part, its test
    part, or a share held out class by class.

    Raises:
        DataError: The data cannot be read, has one class, or the validation data has other classes.
    """
    training = _opened(options, options.source, planned, "train")
    if options.validation_source is not None:
        other = _opened_part(options, options.validation_source, planned, ("validation", "test", "train"))
        if other is None:
            raise DataError(f"Validation data {options.validation_source!r} has no part to evaluate on.")
        _check_same_classes(training, other)
        return TrainingData(training, other, f"evaluated on {options.validation_source}")
    if isinstance(training, GeneratedBatches):
        return TrainingData(training, None, "not evaluated: a function has no validation part (--validation-data)")
    own = _opened_part(options, options.source, planned, ("validation", "test"))
    if own is not None:
        _check_same_classes(training, own)
        part = getattr(own, "note", "") or "a part of its own"
        return TrainingData(training, own, f"evaluated on {part}")
    kept, held_out = training.split(options.validation_fraction)
    return TrainingData(kept, held_out, f"evaluated on {options.validation_fraction:.0%} of the data, held out")


def fit_head_to(training: Source, planned: PlannedModel, seed: int) -> float:
    """Fit the head that the plan put in place to features of the frozen model.

    Returns:
        Accuracy on what it was fitted to, 0 to 1.

    Raises:
        EngineError: The model's own head stays, or the data is a function.
    """
    if not planned.head or not isinstance(training, LabelledData):
        raise EngineError(
            "--fit-head needs a head that the plan put in place, and data of labelled items. "
            "Plan with --data, or leave --fit-head out."
        )
    size = min(planned.plan.settings.batch_size, len(training))
    batches = training.batches(size, seed=seed, limit=max(1, _FIT_SAMPLES // size))
    return fit_head(planned.model, planned.head, batches)


def _opened_part(options: DataOptions, source: str, planned: PlannedModel, parts: tuple[str, ...]) -> Source | None:
    """The first of the parts that the data has.

    Raises:
        DataError: The data has none of them.
    """
    for part in parts:
        try:
            return _opened(options, source, planned, part)
        except DataError as error:
            if part == parts[-1] == "train":
                raise
            del error  # the data has no such part: the next one may be there
    return None


def _opened(options: DataOptions, source: str, planned: PlannedModel, part: str) -> Source:
    text = None
    if options.tokenizer is not None:
        text = TextFormat.from_file(
            options.tokenizer,
            max_tokens=planned.max_tokens,
            token_types=any(spec.name == "token_type_ids" for spec in planned.plan.model.inputs),
        )
    root = None if options.root is None else Path(options.root)
    return open_data(source, picture=planned.picture, text=text, split=part, root=root, download=options.download)


def _check_same_classes(training: Source, validation: Source) -> None:
    if isinstance(training, GeneratedBatches) or isinstance(validation, GeneratedBatches):
        return
    if training.classes != validation.classes:
        raise DataError(
            f"Validation data {validation.source} has other classes than {training.source}: "
            f"{_in_words(validation.classes)}, not {_in_words(training.classes)}. Give data of the same classes."
        )


def _in_words(classes: tuple[str, ...]) -> str:
    return f"{len(classes)} ({', '.join(classes[:3])}{', ...' if len(classes) > 3 else ''})"
