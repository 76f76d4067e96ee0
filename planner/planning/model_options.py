"""Which model, and on which data: options of every command that loads one. No torch.

Held by ``tests/planner/planning/test_preparation.py``.
"""

from pathlib import Path
from typing import Annotated, Final

from pydantic import Field

from trady.planner.records import Option, Record, Whole

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
