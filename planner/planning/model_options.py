"""Which model, on which data, and how its step is run: options of every command that loads one. No torch."""

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field

from trady.planner.options import DType, MemoryFormat, NormMode, read_patterns
from trady.planner.records import Option, Record, Whole, one_of

#: Batches of data that head and gradient norms are fitted to, and their size, unless said.
DEFAULT_BATCHES: Final = 8
DEFAULT_BATCH_SIZE: Final = 16


class LoadingOptions(Record):
    """How a model is loaded: what :func:`trady.planner.load_model` takes."""

    input_shape: Annotated[
        str | None, Option("Shape of one sample: 3x224x224, tokens:128.", "SHAPE", "input", "input_shape")
    ] = None
    arch: Annotated[str | None, Option("Factory of a state dict, for instance torchvision:resnet18.", "FACTORY")] = None
    loss: Annotated[str | None, Option("loss(outputs, targets).", "MODULE:FUNCTION")] = None
    pretrained: Annotated[bool, Option("Weights of named models.")] = True
    meta: Annotated[bool, Option("Build a large model without its memory.")] = False
    trust_pickle: Annotated[bool, Option("Run the code a file names: your own only.")] = False


class PreparationOptions(Record):
    """Which data, and the head for it: what :func:`trady.planner.planning.preparation.prepare` takes."""

    data: Annotated[str | None, Option("Class folders, .npz, .csv/.tsv, module:function.", "SOURCE")] = None
    tokenizer: Annotated[Path | None, Option("tokenizer.json for text data.", "PATH")] = None
    mean: Annotated[tuple[float, ...] | None, Option("Mean of pictures scaled to 0..1.", "R,G,B")] = None
    std: Annotated[tuple[float, ...] | None, Option("Deviation of the same.", "R,G,B")] = None
    classes: Annotated[Annotated[int, Field(ge=2)] | None, Option("Outputs of the head; the data's by default.")] = None
    head: Annotated[str, Option("Layer that always trains: auto, none or a name.", "NAME")] = "auto"


class CalibrationOptions(Record):
    """What gradient norms are measured on: what priorities_from_data takes beside the norm mode."""

    num_batches: Annotated[
        Whole, Option("Batches to measure.", name="calibration-batches", parameter="calibration_batches")
    ] = DEFAULT_BATCHES
    batch_size: Annotated[
        Whole, Option("Samples in each.", name="calibration-batch-size", parameter="calibration_batch_size")
    ] = DEFAULT_BATCH_SIZE
    seed: Annotated[int, Field(ge=0), Option("Seed of the calibration.")] = 0


class StepOptions(Record):
    """How the step is run: what :func:`trady.planner.trace` takes beside loss, targets and head."""

    norm: Annotated[
        NormMode,
        one_of(NormMode, "Norm mode"),
        Option("Norms with running statistics."),
    ] = NormMode.FROZEN
    dtype: Annotated[
        DType | None, one_of(DType, "Element type"), Option("Cast the model; int8 is accounting in scope update.")
    ] = None
    amp: Annotated[
        DType | None, one_of(DType, "Element type"), Option("Run under autocast.", type=["bfloat16", "float16"])
    ] = None
    device: Annotated[Literal["cpu", "cuda"], Option("Device to plan for.")] = "cpu"
    memory_format: Annotated[MemoryFormat, one_of(MemoryFormat, "Memory format"), Option("Layout.")] = (
        MemoryFormat.CONTIGUOUS
    )
    train: Annotated[
        tuple[str, ...], BeforeValidator(read_patterns), Option("Parameters that always train: '*.norm.*'.", "PATTERN")
    ] = ()
