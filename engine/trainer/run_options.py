"""The options of a run: what is not said comes from the plan and the paper's recipe; one strict JSON file.

Held by ``tests/engine/trainer/test_training.py``.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import Field, ValidationError

from trady.planner.errors import EngineError
from trady.planner.files import write_atomically
from trady.planner.options import DEFAULT_MOMENTUM, DType, OptimizerKind
from trady.planner.records import Count, Option, Record, Whole

if TYPE_CHECKING:
    from trady.planner.plan import Plan

CONFIG_FILE: Final = "config.json"

Share = Annotated[float, Field(gt=0, lt=1)]
Decay = Annotated[float, Field(ge=0, allow_inf_nan=False)]

#: The paper's learning rate for SGD, and by their usual relation to it; SinkGD's from docs/accuracy.md.
LEARNING_RATES: Final = {
    OptimizerKind.SGD: 0.125,
    OptimizerKind.SINKGD: 1e-3,
    OptimizerKind.MOMENTUM: 0.0125,
    OptimizerKind.ADAM: 1e-3,
    OptimizerKind.ADAMW: 1e-3,
}
_WARMUP_EPOCHS: Final = 5.0
_WARMUP_SHARE: Final = 0.1


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

    source: Annotated[
        str,
        Option(
            "Class folders, .npz, .csv/.tsv, torchvision:NAME, module:function.",
            "SOURCE",
            "data",
            "data",
            optional=True,
        ),
    ]
    validation_source: Annotated[str | None, Option("Other data to evaluate on.", "SOURCE", "validation-data")] = None
    validation_fraction: Annotated[Share, Option("Held out of data without a validation or test part.")] = 0.2
    tokenizer: Annotated[str | None, Option("tokenizer.json for text data.", "PATH")] = None
    root: Annotated[str | None, Option("Where torchvision's data lies.  [default: data]", "PATH", "data-root")] = None
    download: Annotated[bool, Option("Fetch torchvision's data where it is missing.")] = False
    augment: Annotated[bool, Option("Random crops and mirrors of pictures.")] = True
    workers: Annotated[Count, Option("Processes that decode.")] = 0
    batches_per_epoch: Annotated[Whole | None, Option("At the most; all by default.")] = None


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
    arch: Annotated[str | None, Option("Factory of a state dict; the plan's by default.", "FACTORY")] = None
    loss: Annotated[str | None, Option("loss(outputs, targets); the plan's by default.", "MODULE:FUNCTION")] = None
    data: DataOptions
    fit_head: Annotated[bool, Option("Fit the new head to the frozen model's features first.")] = False
    epochs: Annotated[Whole, Option("The plan's by default.", optional=True)]
    batch_size: Annotated[Whole, Option("Of a micro-batch of one process; the plan's.", optional=True)]
    accumulate: Annotated[Whole, Option("Micro-batches of a step.")] = 1
    optimizer: Annotated[OptimizerKind, Option("The plan's by default.", optional=True)]
    learning_rate: Annotated[
        float,
        Field(gt=0, allow_inf_nan=False),
        Option(
            "Peak rate.  [default: sinkgd and adam 0.001, sgd 0.125, momentum 0.0125]",
            name="lr",
            type=float,
            optional=True,
        ),
    ]
    momentum: Annotated[
        float, Field(ge=0, lt=1), Option("Of the optimizer momentum; the others have none.", type=float)
    ] = DEFAULT_MOMENTUM
    weight_decay: Annotated[Decay, Option("Of all that trains.", type=float)] = 0.0
    warmup_epochs: Annotated[
        Decay,
        Option("Then a cosine to 0.  [default: 5, or a tenth of a shorter run]", type=float, optional=True),
    ]
    label_smoothing: Annotated[float, Field(ge=0, lt=1), Option("Of cross-entropy.", type=float)] = 0.0
    clip: Annotated[
        Annotated[float, Field(gt=0, allow_inf_nan=False)] | None,
        Option("Clip the norm of all gradients; not under sinkgd.", "NORM", type=float),
    ] = None
    amp: Annotated[DType | None, Option("Autocast; the plan's by default.", type=["bfloat16", "float16", "none"])] = (
        None
    )
    device: Annotated[str, Option("The plan's by default.", type=["cpu", "cuda"], optional=True)] = "cpu"
    compile: Annotated[
        bool, Option("Run through torch.compile: bytes are then the compiler's.", parameter="compile_")
    ] = False
    draw_every: Annotated[
        Literal["epoch", "never"] | Whole, Option("epoch, never, or a number of steps.", "WHEN", type=str)
    ] = "epoch"
    carry: Annotated[bool, Option("Keep Adam's state of channels that leave, for their return.")] = False
    seed: Annotated[Count, Option("Of draws, order, augmentation, dropout.")] = 0
    strict: Annotated[bool, Option("Refuse batches larger than planned.")] = False
    tensorboard: Annotated[bool, Option("Write for TensorBoard where it is installed.")] = True
    processes: Whole = 1

    def save(self, folder: Path) -> None:
        """Write the options into a run's folder."""
        write_atomically(folder / CONFIG_FILE, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "RunOptions":
        """Read a run's options; nothing in the file is run.

        Returns:
            The options of the run.

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


class VerifyOptions(Record):
    """How one real step is verified; what is left out is the plan's.

    Args:
        arch: Factory of a state dict.
        loss: ``module:function``.
        data: Labelled data for the batch; by default made up in the planned shapes.
        tokenizer: ``tokenizer.json`` for texts.
        device: ``cpu`` or ``cuda``.
        trust_pickle: Let a model file run any code it wants.
        epoch: The draw of which epoch is measured.
        seed: Seed of the draws.
    """

    data: Annotated[str | None, Option("Labelled data for the batch; made up by default.", "SOURCE")] = None
    tokenizer: Annotated[Path | None, Option("tokenizer.json for text data.", "PATH")] = None
    arch: Annotated[str | None, Option("Factory of a state dict; the plan's by default.", "FACTORY")] = None
    loss: Annotated[str | None, Option("loss(outputs, targets); the plan's by default.", "MODULE:FUNCTION")] = None
    device: Annotated[str | None, Option("The plan's by default.", type=["cpu", "cuda"])] = None
    trust_pickle: Annotated[bool, Option("Run the code a model file names: your own only.")] = False
    epoch: Annotated[Count, Option("Measure the draw of this epoch.")] = 0
    seed: Annotated[Count, Option("Of the draws.")] = 0


def options_for(plan: "Plan", given: dict[str, Any]) -> RunOptions:
    """Options of a new run: those given, the rest from the plan and the paper.

    Args:
        plan: Gives model, loss, batch size, epochs, optimizer, precision and device.
        given: Fields of :class:`RunOptions`; those that are ``None`` or missing are filled in.

    Returns:
        The options, completed.

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


def default_warmup_epochs(epochs: int) -> float:
    """The paper's five epochs, a tenth of the run where that is shorter."""
    return min(_WARMUP_EPOCHS, _WARMUP_SHARE * epochs)


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"])) or "content"
    return f"{where}: {first['msg']}, got {first['input']!r}"
