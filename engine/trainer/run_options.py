"""The options of a run: what is not said comes from the plan and the paper's recipe; one strict JSON file."""

from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationError

from trady.engine.optim import MOMENTUM
from trady.engine.trainer.recipes import LEARNING_RATES, default_warmup_epochs
from trady.planner.errors import EngineError
from trady.planner.files import write_atomically
from trady.planner.options import DType, OptimizerKind
from trady.planner.plan import Plan
from trady.planner.records import Record

CONFIG_FILE: Final = "config.json"

Share = Annotated[float, Field(gt=0, lt=1)]
Whole = Annotated[int, Field(ge=1)]


class DataOptions(Record):
    """Which data, and how it is read.

    Args:
        source: What ``open_data`` takes.
        validation_source: Other data to evaluate on; by default a part of ``source``.
        validation_fraction: Share held out where the data has no validation or test part.
        tokenizer: ``tokenizer.json`` for texts.
        root: Folder of torchvision's datasets.
        download: Fetch a torchvision dataset that is missing.
        augment: Random crops and mirrors of pictures.
        workers: Processes that decode.
        batches_per_epoch: Batches of an epoch at the most; ``None`` takes all.
    """

    source: str
    validation_source: str | None = None
    validation_fraction: Share = 0.2
    tokenizer: str | None = None
    root: str | None = None
    download: bool = False
    augment: bool = True
    workers: Annotated[int, Field(ge=0)] = 0
    batches_per_epoch: Whole | None = None


class RunOptions(Record):
    """Everything that decides a run's outcome, its plan and its data's content apart.

    Args:
        model: What ``load_model`` takes.
        arch: Factory of a state dict.
        loss: ``module:function``; ``None`` takes the model's own, else cross-entropy.
        data: Which data.
        fit_head: Fit the new head to the features of the untrained model first.
        epochs: Passes over the data.
        batch_size: Samples of a micro-batch of one process.
        accumulate: Micro-batches of an optimizer step.
        optimizer: Its kind.
        learning_rate: Its peak.
        momentum: For the optimizer ``momentum``.
        weight_decay: Of all that trains.
        warmup_epochs: Epochs, or parts of one, until the peak.
        label_smoothing: Of cross-entropy.
        clip: Largest norm of all gradients together; ``None`` for none.
        amp: Autocast type; ``None`` for none.
        device: ``cpu`` or ``cuda``.
        compile: Run the engine through ``torch.compile``.
        draw_every: ``epoch``, ``never``, or a number of optimizer steps.
        carry: Keep the optimizer state of channels that leave, for their return.
        seed: Of draws, order, augmentation and dropout.
        strict: Refuse a batch larger than planned.
        tensorboard: Write for TensorBoard too.
        processes: Processes of the run.
    """

    model: str
    arch: str | None = None
    loss: str | None = None
    data: DataOptions
    fit_head: bool = False
    epochs: Whole
    batch_size: Whole
    accumulate: Whole = 1
    optimizer: OptimizerKind
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    momentum: Annotated[float, Field(ge=0, lt=1)] = MOMENTUM
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    warmup_epochs: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    clip: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    amp: DType | None = None
    device: str = "cpu"
    compile: bool = False
    draw_every: Literal["epoch", "never"] | Whole = "epoch"
    carry: bool = False
    seed: Annotated[int, Field(ge=0)] = 0
    strict: bool = False
    tensorboard: bool = True
    processes: Whole = 1

    def save(self, folder: Path) -> None:
        """Write the options into a run's folder."""
        write_atomically(folder / CONFIG_FILE, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "RunOptions":
        """Read a run's options; nothing in the file is run.

        Raises:
            EngineError: There is no run in the folder, or the file is not a run's options.
        """
        path = folder / CONFIG_FILE
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise EngineError(
                f"Run {folder} has no {CONFIG_FILE} ({error.strerror}), so there is nothing to go on with. "
                f"Start it with trady-train PLAN MODEL --data ... -o {folder}."
            ) from error
        except ValidationError as error:
            raise EngineError(f"Options {path} cannot be used: {_first_problem(error)}. Start the run anew.") from error


def options_for(plan: Plan, given: dict[str, Any]) -> RunOptions:
    """Options of a new run: those given, the rest from the plan and the paper.

    Args:
        plan: Gives model, loss, batch size, epochs, optimizer, precision and device.
        given: Fields of :class:`RunOptions`; those that are ``None`` or missing are filled in.

    Raises:
        EngineError: A value is out of its range.
    """
    settings = plan.settings
    known: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    optimizer = OptimizerKind(known.setdefault("optimizer", settings.optimizer))
    epochs = known.setdefault("epochs", settings.epochs)
    known |= {"optimizer": optimizer} | ({"amp": DType(known["amp"])} if "amp" in known else {})
    defaults: dict[str, Any] = {
        "model": plan.model.source,
        "batch_size": settings.batch_size,
        "learning_rate": LEARNING_RATES[optimizer],
        "warmup_epochs": default_warmup_epochs(epochs),
        "device": settings.device,
    }
    if "amp" not in given:
        defaults["amp"] = settings.amp
    try:
        options = RunOptions(**defaults | known)
    except ValidationError as error:
        raise EngineError(f"Training cannot start: {_first_problem(error)}.") from error
    if optimizer is OptimizerKind.SINKGD and options.clip is not None:
        raise EngineError(
            f"Training cannot start: --clip {options.clip:g} does nothing under sinkgd, whose steps are as long "
            "whatever the gradients. Leave it out and take a smaller --lr, or another --optimizer."
        )
    return options


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"])) or "content"
    return f"{where}: {first['msg']}, got {first['input']!r}"
