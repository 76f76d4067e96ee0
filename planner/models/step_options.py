"""How one training step is run: the same for tracing, planning and the command line. No torch.

Held by ``tests/planner/planning/test_planning.py``.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal, TypedDict

from pydantic import BeforeValidator

from trady.planner.options import DType, MemoryFormat, NormMode, read_patterns
from trady.planner.records import Option, Record, one_of

if TYPE_CHECKING:
    from trady.planner.models.training_step import LossFunction


class StepKeywords(TypedDict, total=False):
    """:class:`StepOptions` as a user gives them, and what the step computes."""

    norm: NormMode | str
    loss: "LossFunction | None"
    targets: object
    dtype: DType | str | None
    amp: DType | str | None
    device: str
    memory_format: MemoryFormat | str
    head: str
    train: str | Sequence[str]


class StepOptions(Record):
    """How a step is run: everything that changes what is saved, the batch size, loss and head apart.

    Args:
        norm: What norms with running statistics do.
        dtype: Element type that floating-point parameters, buffers and inputs are cast to; ``None`` keeps theirs.
        amp: Autocast element type; ``None`` for none.
        device: Device the step is planned for.
        memory_format: Layout of four-dimensional tensors.
        train: Patterns of other parameters that are always trained.
    """

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
